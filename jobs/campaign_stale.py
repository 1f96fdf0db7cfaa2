"""A raylet is stopped with SIGSTOP, Ray starts a second memory actor, then the raylet goes on: who may still commit?

Two raylets of a Ray of our own on this machine, one memory actor that writes without pause in its own process, so that
nothing but the fence can stop it. Every stored fact names the process that wrote it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_store import CONFIG, PlannedFact, encoded, fresh_schema, once, opened
from memory_actor.actor import MemoryActor
from memory_actor.errors import LarimarError
from memory_actor.types import FactText, Retention

TENANT = "ant"
_NAMESPACE = "campaign"
_WAIT_S = 90.0
_POLL_S = 0.05
_ACKS = 20  # acknowledged writes that count as running
_OVERLAP_S = 1.0  # both incarnations alive, at least
#: A hung raylet is given up after about two seconds instead of about a minute.
_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 4,
}

_PlainActor: Any = MemoryActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]


class LoadedActor(_PlainActor):  # type: ignore[misc]
    """The memory actor with a writer in its own process, which needs no caller and heeds nobody."""

    def __init__(self, journal: str, state_dir: str, ledger: dict[str, Any]) -> None:
        super().__init__(0, state_dir, CONFIG, torch_threads=1, **ledger)
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._note(said="open")
        threading.Thread(target=self._write_for_ever, name="campaign-load", daemon=True).start()

    def _write_for_ever(self) -> None:
        self._engine.create_tenant(TENANT, Retention.TEXT, once("create")).result(_WAIT_S)
        number = 0
        while True:
            number += 1
            name = f"pid {os.getpid()} write {number}"
            fact = PlannedFact(number % 100, number, keep_both=True)
            text = FactText(name, keep_both=True)
            try:
                self._engine.write(TENANT, [text], encoded([fact]), once(name)).result(_WAIT_S)
            except LarimarError as refusal:
                self._note(said=f"refused {refusal.code}")
                time.sleep(_POLL_S)  # it goes on asking for as long as it lives
                continue
            self._note(acknowledged=name)

    def _note(self, **entry: Any) -> None:
        line = {"pid": os.getpid(), "at": time.time(), **entry}
        os.write(self._journal, json.dumps(line).encode() + b"\n")


def stale_incarnation(count: int, seed: int, advance: Advance, *, ledger_url: str | None = None) -> Outcome:
    """`count` stopped raylets, each in a Ray of its own. Commits by the stale incarnation: 0."""
    outcome = Outcome("stale_incarnation", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="larimar-stale-") as folder:
            url = None if ledger_url is None else fresh_schema(ledger_url)
            _Trial(outcome, f"trial {number}", Path(folder), url).run(draw.uniform(0, 0.5))
        advance(1)
    outcome.counts["stale_commits"] += 0
    return outcome


@dataclass
class _Trial:
    outcome: Outcome
    label: str
    folder: Path
    ledger_url: str | None

    def run(self, wait_s: float) -> None:
        with _cluster() as place:
            actor = self._start(place)
            stale = self._await("the first incarnation writes", self._running)
            threading.Event().wait(wait_s)
            raylet = psutil.Process(stale).parent()
            if raylet is None or "raylet" not in raylet.name():
                raise RuntimeError(f"process {stale} was not started by a raylet but by {raylet}")
            os.kill(raylet.pid, signal.SIGSTOP)
            stopped = time.time()
            try:
                self._await("the second incarnation writes", lambda: self._running(stale))
                self.outcome.figures["takeover_max_s"] = max(
                    self.outcome.figures.get("takeover_max_s", 0.0), time.time() - stopped
                )
                threading.Event().wait(_OVERLAP_S)
                # Fenced, it ends at once, often before its writer has noted the refusal; a stopped raylet kills nobody.
                self.outcome.counts["ended_itself"] += _ended(stale)
            finally:
                os.kill(raylet.pid, signal.SIGCONT)
            self._await("the stale process ends", lambda: _ended(stale) or None)
            self._await("the second goes on", lambda: self._running(stale))
            ray.kill(actor)
        self._judge(stale)

    def _start(self, place: dict[str, Any]) -> Any:
        ledger = {} if self.ledger_url is None else {"ledger_url": self.ledger_url}
        remote: Any = ray.remote(max_restarts=-1, max_task_retries=0)(LoadedActor)
        return remote.options(name="memory", lifetime="detached", **place).remote(
            str(self.folder / "journal"), str(self.folder / "state"), ledger
        )

    def _running(self, other_than: int | None = None) -> int | None:
        """The process that acknowledged its share of writes since the last look at another one's."""
        acknowledged = [entry["pid"] for entry in self._journal() if "acknowledged" in entry][-_ACKS:]
        pids = set(acknowledged) - {other_than}
        return pids.pop() if len(pids) == 1 and len(acknowledged) == _ACKS else None

    def _await(self, what: str, condition: Any) -> Any:
        deadline = time.monotonic() + _WAIT_S
        while (found := condition()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.label}: {what}: not within {_WAIT_S:.0f} s")
            time.sleep(_POLL_S)
        return found

    def _journal(self) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def _judge(self, stale: int) -> None:
        """What is stored names its writer: everything acknowledged is there, nothing stale after anything newer."""
        journal = self._journal()
        taken_over = min(entry["at"] for entry in journal if entry["pid"] != stale and entry.get("said") == "open")
        with opened(self.folder / "state", url=self.ledger_url) as store:
            stored, after = [], 0
            while page := store.engine.facts(TENANT, after, 1000).facts:
                stored += [record.prompt or "" for record in page]
                after = page[-1].seq
            self.outcome.check(store.engine.verify(TENANT).identical, f"{self.label}: does not verify")
        acknowledged = [entry["acknowledged"] for entry in journal if "acknowledged" in entry]
        late = [e for e in journal if "acknowledged" in e and e["pid"] == stale and e["at"] > taken_over]
        mine = [prompt.startswith(f"pid {stale} ") for prompt in stored]
        first_newer = mine.index(False) if False in mine else len(mine)
        behind = sum(mine[first_newer:])
        lost = set(acknowledged) - set(stored)
        self.outcome.counts["stale_commits"] += max(behind, len(late))
        self.outcome.counts["lost"] += len(lost)
        self.outcome.counts["acknowledged"] += len(acknowledged)
        self.outcome.counts["refused"] += sum("refused" in entry.get("said", "") for entry in journal)
        check = self.outcome.check
        check(not behind, f"{self.label}: {behind} facts of the stale process lie behind those of its successor")
        check(not late, f"{self.label}: the stale process acknowledged {len(late)} writes after it was superseded")
        check(not lost, f"{self.label}: {len(lost)} acknowledged facts are lost: {sorted(lost)[:3]}")
        check(len(stored) == len(set(stored)), f"{self.label}: a fact is stored twice")


def _ended(pid: int) -> bool:
    """Whether a process runs no more; that nobody has reaped it does not count."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextmanager
def _cluster() -> Iterator[dict[str, Any]]:
    """A Ray of our own: a head that runs nothing and two raylets that can run the actor. Yields where to place it."""
    temp_dir = tempfile.mkdtemp(prefix="larimar-", dir="/tmp")
    before = os.environ.get("RAY_TMPDIR")
    # Not only its sockets and logs: where Ray notes the address that others would find without being told.
    os.environ["RAY_TMPDIR"] = temp_dir
    (Path(temp_dir) / "ray").mkdir()
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster()
    try:
        cluster.add_node(**node, include_dashboard=False, _system_config=_HEALTH)
        for _ in range(2):
            cluster.add_node(**node, resources={"memory_actor": 1})
        ray.init(address=cluster.address, namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)
        yield {"resources": {"memory_actor": 1}, "num_cpus": 0}
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(temp_dir, ignore_errors=True)
