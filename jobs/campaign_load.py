"""Seeded requests against a small engine, and the journal in which their sender notes what it asked and what it heard.

The journal is a file that is appended to with single `write` calls: what the sender noted survives its own SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.campaign_store import LOCAL, PlannedFact, Store, encoded, once
from memory_actor.errors import LarimarError
from memory_actor.types import ForgetReceipt, Retention, WriteReply

TENANTS = ("ant", "bee", "cat")
PROMPTS = 30
TIMEOUT_S = 60.0
_IN_FLIGHT_MAX = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One change of one tenant; its number makes its idempotency key, so it can be sent again."""

    number: int
    tenant: str
    facts: tuple[PlannedFact, ...] = ()  # a write when not empty, else a forget
    fact_ids: tuple[str, ...] = ()

    def submit(self, store: Store) -> Future[Any]:
        given = once(f"k{self.number}", "write" if self.facts else "forget")
        if self.facts:
            texts = [fact.text() for fact in self.facts]
            return store.engine.write(self.tenant, texts, encoded(self.facts), given)
        return store.engine.forget(self.tenant, self.fact_ids, given)

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> Request:
        facts = tuple(PlannedFact(**fact) for fact in noted["facts"])
        return cls(noted["number"], noted["tenant"], facts, tuple(noted["fact_ids"]))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sender heard: the ids written, or those forgotten."""

    number: int
    fact_ids: tuple[str, ...]
    superseded: tuple[str, ...]
    version: int
    receipt_id: str | None = None

    @classmethod
    def of(cls, number: int, reply: WriteReply | ForgetReceipt) -> Answer:
        if isinstance(reply, WriteReply):
            return cls(number, reply.fact_ids, reply.superseded, reply.version)
        return cls(number, reply.forgotten, (), reply.version, reply.receipt_id)


class Journal:
    """What one sender asked and heard. `begun` without an answer is in flight, its outcome unknown to the sender."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def begin(self, request: Request) -> None:
        self._note({"begin": asdict(request)})

    def answer(self, answer: Answer) -> None:
        self._note({"answer": asdict(answer)})

    def refuse(self, number: int, error: LarimarError) -> None:
        self._note({"refused": number, "code": error.code, "outcome": error.outcome})

    def say(self, word: str) -> None:
        """A milestone of the sender, or something that it found wrong."""
        self._note({"said": word})

    def close(self) -> None:
        os.close(self._descriptor)

    def _note(self, entry: Mapping[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(entry).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Heard:
    """A journal read back. Requests in the order of asking."""

    begun: tuple[Request, ...]
    answers: dict[int, Answer]
    refused: dict[int, str]  # number -> code
    said: tuple[str, ...]

    @property
    def in_flight(self) -> list[Request]:
        return [one for one in self.begun if one.number not in self.answers and one.number not in self.refused]


def read_journal(path: Path) -> Heard:
    """Everything a sender noted before it ended; a line that its end cut short counts as not written."""
    begun: list[Request] = []
    answers: dict[int, Answer] = {}
    refused: dict[int, str] = {}
    said: list[str] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            continue
        entry = json.loads(line)
        if "begin" in entry:
            begun.append(Request.of(entry["begin"]))
        elif "answer" in entry:
            fields = entry["answer"]
            ids = {name: tuple(fields[name]) for name in ("fact_ids", "superseded")}
            answers[fields["number"]] = Answer(**(fields | ids))
        elif "refused" in entry:
            refused[entry["refused"]] = entry["code"]
        else:
            said.append(entry["said"])
    return Heard(tuple(begun), answers, refused, tuple(said))


def create_tenants(store: Store, tenants: Sequence[str] = TENANTS) -> None:
    """Make the tenants, or hear that they were made before: each has one key for ever."""
    for name in tenants:
        store.engine.create_tenant(name, Retention.TEXT, once(f"create-{name}", "create")).result(TIMEOUT_S)


def draw_request(draw: random.Random, number: int, live: Mapping[str, Sequence[str]]) -> Request:
    """A write of one to four facts, or a forget of some of the `live` ids of a tenant and one unknown id."""
    tenant = draw.choice(list(live))
    known = live[tenant]
    if known and draw.random() < 0.4:
        chosen = draw.sample(list(known), min(len(known), draw.randint(1, 4)))
        return Request(number, tenant, fact_ids=(*chosen, "f_unknown"))
    facts = tuple(
        PlannedFact(draw.randrange(PROMPTS), draw.randrange(10**9), draw.choice((1, 1, 2, 3)), draw.random() < 0.1)
        for _ in range(draw.randint(1, 4))
    )
    return Request(number, tenant, facts)


def drive(store: Store, journal: Journal, draw: random.Random, first: int, live: Mapping[str, Sequence[str]]) -> None:
    """Send requests from number `first` on, some of them together, with checkpoints and sleeps between. For ever.

    `live`: ids that each tenant holds at the start.
    """
    known = {tenant: list(ids) for tenant, ids in live.items()}
    for number in _batches(draw, first):
        batch = [draw_request(draw, one, known) for one in number]
        sent: list[tuple[Request, Future[Any]]] = []
        for request in batch:
            journal.begin(request)
            sent.append((request, request.submit(store)))
        for request, future in sent:
            answer = Answer.of(request.number, future.result(TIMEOUT_S))
            journal.answer(answer)
            _follow(known[request.tenant], request, answer)
        if draw.random() < 0.1:
            _rest(store, draw)


def _batches(draw: random.Random, first: int) -> Iterator[range]:
    while True:
        count = draw.randint(1, _IN_FLIGHT_MAX)
        yield range(first, first + count)
        first += count


def _follow(known: list[str], request: Request, answer: Answer) -> None:
    """Keep the list of live ids: what was written begins, what was superseded or forgotten ends."""
    ended = set(answer.superseded) if request.facts else set(answer.fact_ids)
    begun = answer.fact_ids if request.facts else ()
    known[:] = [fact_id for fact_id in (*known, *begun) if fact_id not in ended]


def _rest(store: Store, draw: random.Random) -> None:
    """A checkpoint, or a tenant that leaves memory, at any moment."""
    tenant = draw.choice(TENANTS)
    # A refusal is an answer like any other; what matters is that nothing changed.
    with contextlib.suppress(LarimarError):
        if draw.random() < 0.5:
            store.engine.checkpoint(tenant, LOCAL)
        else:
            store.engine.sleep(tenant)
