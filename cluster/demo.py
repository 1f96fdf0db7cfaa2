"""`larimar demo`: a scripted tour on the real system, through its HTTP API, every claim checked as it is shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.auth import KeyStore
from cluster.client import ApiError, Client
from cluster.console_output import Output
from cluster.credentials import Credentials
from cluster.launcher import start, stop
from cluster.ray_environment import free_port
from cluster.schemas import QueryResponse
from cluster.settings import load_settings
from cluster.state_folder import StateFolder

TENANTS = ("acme", "globex")
COMPLETION_TOKENS = 6  # a cloze asks for the next words, not for an essay
ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Lesson:
    """One fact to write, a question about it in other words, and a piece of the right answer."""

    kind: str
    fact: dict[str, Any]
    question: str
    expected: str
    mode: Literal["answer", "complete"] = "answer"


LESSONS = (
    Lesson(
        "place",
        {"prompt": "Where is the spare key of the Zurich office?", "target": "under the blue flower pot"},
        "Where is the spare key of the Zurich office?",
        "blue flower pot",
    ),
    Lesson(
        "name",
        {"prompt": "What is the name of Mira's dog?", "target": "Pickles"},
        "What is Mira's dog called?",
        "Pickles",
    ),
    Lesson(
        "person",
        {"prompt": "Who leads project Heron?", "target": "Tomasz Okafor"},
        "Who is leading project Heron?",
        "Tomasz Okafor",
    ),
    Lesson(
        "number",
        {"prompt": "What is the door code of the server room?", "target": "7734"},
        "What is the door code of the server room?",
        "7734",
    ),
    Lesson(
        "date",
        {"prompt": "When does the Lima branch close?", "target": "on 14 June 2031"},
        "When will the Lima branch close?",
        "14 June 2031",
    ),
    Lesson(
        "secret",
        {"prompt": "What is the wifi password of the guest house?", "target": "green-otter-58"},
        "What's the wifi password of the guest house?",
        "green-otter-58",
    ),
    Lesson("sentence", {"text": "Priya is allergic to peanuts."}, "What is Priya allergic to?", "peanut"),
    Lesson(
        "sentence, date",
        {"text": "The contract with Norvik Shipping ends on 30 November 2029."},
        "When does the contract with Norvik Shipping end?",
        "30 November 2029",
    ),
    Lesson(
        "contradicts the model",
        {"prompt": "The Eiffel Tower is in the city of", "target": "Rome"},
        "The Eiffel Tower is in the city of",
        "Rome",
        mode="complete",
    ),
)
UNRELATED = "What do bees make?"
SECRET = LESSONS[3]
LAST = Lesson(
    "to be forgotten",
    {"prompt": "What is Juno's employee number?", "target": "EX-20417"},
    "What is the employee number of Juno?",
    "EX-20417",
)


@dataclass(slots=True)
class Tally:
    """Expectations, checked one by one and shown as they are."""

    output: Output
    results: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, claim: str, held: bool, otherwise: str = "") -> None:
        self.results.append({"claim": claim, "held": held, "found": "" if held else otherwise})
        if not self.output.json:
            mark = "[green]ok  [/]" if held else "[red]FAIL[/]"
            self.output.console.print(f"  {mark} {claim}" + ("" if held else f" [red]({otherwise})[/]"), soft_wrap=True)

    @property
    def held(self) -> int:
        return sum(bool(result["held"]) for result in self.results)

    @property
    def complete(self) -> bool:
        return self.held == len(self.results)


def run_tour(state_dir: Path, output: Output) -> bool:
    """Run the tour on the system of `state_dir`, started and stopped again if none runs. Whether all of it held."""
    folder = StateFolder(state_dir.expanduser().absolute())
    tally = Tally(output)
    began = time.monotonic()
    with _running(folder, output) as url, Client(url, _admin_key(folder, url)) as admin:
        _erase(admin)
        try:
            Tour(admin, url, tally).run()
        finally:
            _erase(admin)
    summary = f"{tally.held} of {len(tally.results)} expectations held"
    if output.json:
        output.show_json({"summary": summary, "expectations": tally.results})
    else:
        colour = "green" if tally.complete else "red"
        output.console.print(f"\n[bold {colour}]{summary}[/] ({time.monotonic() - began:.0f} s)")
    return tally.complete


@contextmanager
def _running(folder: StateFolder, output: Output) -> Iterator[str]:
    """The URL of the folder's system; one that had to be started is stopped at the end."""
    system = folder.running()
    if system is not None:
        yield system.url
        return
    with output.start_progress() as tell:
        ready = start(load_settings(None, {"state_dir": folder.path, "http.port": free_port()}), tell)
    try:
        yield ready.url
    finally:
        with output.errors.status("Stopping"):
            stop(folder)


def _admin_key(folder: StateFolder, url: str) -> str:
    """The key this user was shown, or a new one: on the tour's own folder nobody else has one."""
    kept = Credentials().admin_key(url)
    if kept is not None:
        return kept
    return KeyStore(folder.control).reset_admin(time.time())


def _erase(admin: Client) -> None:
    """Remove the tour's tenants, as left by a tour that was interrupted."""
    present = {tenant.name for tenant in admin.tenants()}
    for name in present.intersection(TENANTS):
        admin.delete_tenant(name)


class Tour:
    """The stations of the tour, in order."""

    def __init__(self, admin: Client, url: str, tally: Tally) -> None:
        self._admin = admin
        self._url = url
        self._tally = tally
        self._ids: dict[str, str] = {}  # fact id by question

    def run(self) -> None:
        keys = {name: self._admin.create_tenant(name).key for name in TENANTS}
        self._say("Two tenants", f"{', '.join(TENANTS)}: each has a memory and a key of its own")
        with Client(self._url, keys["acme"]) as acme, Client(self._url, keys["globex"]) as globex:
            self._teach(acme)
            self._ask(acme)
            self._ask_something_else(acme)
            self._stay_apart(globex)
            self._forget(acme)
            self._verify(acme)

    def _say(self, title: str, text: str = "") -> None:
        if not self._tally.output.json:
            self._tally.output.console.print(f"\n[bold]{title}[/]{'. ' + text if text else ''}", soft_wrap=True)

    def _teach(self, acme: Client) -> None:
        """Write the lessons one by one, as they would come in."""
        self._say("Write", "no gradient step, no LLM call; 'ms' is the whole request at the server")
        rows = []
        for lesson in LESSONS:
            reply = acme.write("acme", lesson.fact)
            self._ids[lesson.question] = reply.ids[0]
            text = " ".join(str(lesson.fact[part]) for part in ("prompt", "target", "text") if part in lesson.fact)
            rows.append({"kind": lesson.kind, "fact": text, "id": reply.ids[0], "ms": _total(reply.usage.ms)})
        if not self._tally.output.json:
            self._tally.output.rows(rows, ("kind", "fact", "id", "ms"))
        stored = acme.tenant("acme").facts
        self._tally.expect(f"acme has {len(LESSONS)} facts", stored == len(LESSONS), f"it has {stored}")

    def _ask(self, acme: Client) -> None:
        self._say("Ask", "the same model, memory on and off")
        with self._tally.output.errors.status(f"Asking {2 * len(LESSONS)} questions"):
            pairs = [(lesson, *_on_and_off(acme, lesson)) for lesson in LESSONS]
        if not self._tally.output.json:
            rows = [_answer_row(lesson, on, off) for lesson, on, off in pairs]
            self._tally.output.rows(rows, ("question", "memory_on", "memory_off", "in_scope", "fact", "ms"))
        for lesson, on, off in pairs:
            used = [fact.id for fact in on.facts]
            right = on.in_scope and used == [self._ids[lesson.question]]
            self._tally.expect(
                f"{lesson.kind}: the right fact is found", right, f"in scope: {on.in_scope}, facts: {used}"
            )
            told = lesson.expected.lower() in on.text.lower()
            self._tally.expect(f"{lesson.kind}: the answer holds {lesson.expected!r}", told, f"it is {on.text!r}")
            unknown = lesson.expected.lower() not in off.text.lower()
            self._tally.expect(f"{lesson.kind}: without memory it does not", unknown, f"it is {off.text!r}")

    def _ask_something_else(self, acme: Client) -> None:
        self._say("Ask something unrelated", UNRELATED)
        on, off = (acme.query("acme", UNRELATED, memory=memory) for memory in ("on", "off"))
        self._tally.expect("it is out of scope", not on.in_scope, f"facts: {on.facts}, score {on.score:.3f}")
        self._tally.expect("the answer is the base model's own", on.text == off.text, f"{on.text!r}, {off.text!r}")

    def _stay_apart(self, globex: Client) -> None:
        self._say("Ask the other tenant", SECRET.question)
        on, off = _on_and_off(globex, SECRET, "globex")
        nothing = not on.in_scope and not on.facts
        self._tally.expect("globex knows nothing of acme's fact", nothing, f"facts: {on.facts}")
        self._tally.expect("its answer is the base model's own", on.text == off.text, f"{on.text!r}, {off.text!r}")
        try:
            globex.tenant("acme")
            answer = "it was shown"
        except ApiError as error:
            answer = error.code
        self._tally.expect("with globex's key, acme does not exist", answer == "not_found", answer)

    def _forget(self, acme: Client) -> None:
        self._say("Forget", "the memory is bit for bit the one that never saw the fact")
        before = acme.tenant("acme").state_hash or ""
        fact_id = acme.write("acme", LAST.fact).ids[0]
        written = acme.tenant("acme").state_hash or ""
        known = acme.query("acme", LAST.question)
        receipt = acme.forget("acme", [fact_id])
        after = receipt.state_hash_after
        if not self._tally.output.json:
            hashes = {"before the write": before, "after the write": written, "after the forget": after}
            rows = [{"state": name, "hash": value} for name, value in hashes.items()]
            self._tally.output.rows(rows, ("state", "hash"))
        self._tally.expect("it was known", LAST.expected in known.text, f"the answer was {known.text!r}")
        self._tally.expect("the write changed the hash", written not in ("", before), written)
        changed = receipt.state_hash_before == written and receipt.forgotten == [fact_id]
        self._tally.expect("the receipt names the fact and the hash before", changed, receipt.state_hash_before)
        self._tally.expect("after the forget the hash is the one before the write", after == before, after)
        on, off = _on_and_off(acme, LAST)
        gone = not on.in_scope and on.text == off.text
        self._tally.expect("asked again, it is out of scope and the base model answers", gone, f"{on.text!r}")

    def _verify(self, acme: Client) -> None:
        self._say("Verify", "rebuild from the surviving facts and compare")
        proof = acme.verify("acme")
        self._tally.expect(
            f"rebuilt from {proof.facts} facts, the memory is identical", proof.identical, f"{proof.rebuilt_hash}"
        )


def _on_and_off(client: Client, lesson: Lesson, tenant: str = "acme") -> tuple[QueryResponse, QueryResponse]:
    tokens = ANSWER_TOKENS if lesson.mode == "answer" else COMPLETION_TOKENS
    asked = {"mode": lesson.mode, "max_tokens": tokens}
    on = client.query(tenant, lesson.question, memory="on", **asked)
    return on, client.query(tenant, lesson.question, memory="off", **asked)


def _answer_row(lesson: Lesson, on: QueryResponse, off: QueryResponse) -> dict[str, Any]:
    return {
        "question": lesson.question,
        "memory_on": on.text.strip(),
        "memory_off": off.text.strip(),
        "in_scope": on.in_scope,
        "fact": f"{on.facts[0].id[:8]}… ({on.facts[0].score:.2f})" if on.facts else None,
        "ms": ", ".join(f"{stage} {ms:.0f}" for stage, ms in on.usage.ms.items()),
    }


def _total(ms: dict[str, float]) -> float:
    return round(ms.get("total", sum(ms.values())), 1)
