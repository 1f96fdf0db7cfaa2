"""One short life of a store that passes every named crash point: write, checkpoint, sleep, forget, restore, delete.

Each step carries its own idempotency key, so that the whole scenario can be played again after any crash: what was
done answers as it did, what was not is done now, and the integer model says what must be there in the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs.campaign_load import TIMEOUT_S, Answer, Request
from jobs.campaign_model import TenantModel
from jobs.campaign_store import LOCAL, PlannedFact, Store, key_of, once
from memory_actor.errors import NotFound
from memory_actor.types import ReadMode, Retention, as_plain

WRITES: tuple[tuple[str, tuple[PlannedFact, ...]], ...] = (
    ("ant", tuple(PlannedFact(prompt, 100 + prompt) for prompt in range(4))),
    ("ant", (PlannedFact(1, 201), PlannedFact(2, 202), PlannedFact(7, 203, rows=2))),  # supersedes two
    ("bee", tuple(PlannedFact(prompt, 300 + prompt) for prompt in range(3))),
    ("ant", tuple(PlannedFact(10 + prompt, 400 + prompt, rows=1 + prompt % 3) for prompt in range(6))),
)
LATE_WRITE = ("ant", (PlannedFact(20, 501), PlannedFact(21, 502)))  # after the checkpoint
RESTORE_VERSION = 3  # of "ant", after its writes above


@dataclass
class Scenario:
    """Plays the steps on `store`. `models` is what the answers amount to; `answers` what each step was answered."""

    store: Store
    reopen: Callable[[], Store]  # once the store is closed
    models: dict[str, TenantModel] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    receipts: set[str] = field(default_factory=set)
    ended: bool = False  # "bee" was deleted when this scenario was played before
    _lock: threading.Lock = field(default_factory=threading.Lock)  # a step may be played twice at the same time

    def steps(self) -> list[tuple[str, Callable[[], Any]]]:
        """Name and action of each step, in order. An action returns what the store answered."""
        writes = [(f"write {number}", self._writes(number, *write)) for number, write in enumerate(WRITES)]
        return [
            ("create ant", lambda: self._create("ant")),
            ("create bee", lambda: self._create("bee")),
            *writes,
            ("checkpoint", lambda: self._checkpoint("ant")),
            ("sleep", lambda: self._sleep_and_recall("ant")),
            ("late write", self._writes(90, *LATE_WRITE)),
            ("restart", self._restart),
            ("sleep again", lambda: self._sleep_and_recall("ant")),
            ("forget", self._forget),
            ("erase", self._erase),
            ("restore", lambda: self._restore("cow", in_place=False)),
            ("restore in place", lambda: self._restore("ant", in_place=True)),
            ("delete", self._delete),
            ("erase again", self._erase),
        ]

    def play(self, attempt: Callable[[str, Callable[[], Any]], Any]) -> None:
        """Every step through `attempt(name, action)`, which returns what the action does."""
        for name, action in self.steps():
            self.answers[name] = attempt(name, action)

    # -- steps --------------------------------------------------------------------------------------------------

    def _create(self, tenant: str) -> Any:
        reply = self.store.engine.create_tenant(tenant, Retention.TEXT, once(f"create-{tenant}")).result(TIMEOUT_S)
        self.models.setdefault(tenant, TenantModel())
        return _said(reply)

    def _writes(self, number: int, tenant: str, facts: tuple[PlannedFact, ...]) -> Callable[[], Any]:
        return lambda: self._change(Request(number, tenant, facts))

    def _forget(self) -> Any:
        first, fourth = self.answers["write 0"]["fact_ids"], self.answers["write 3"]["fact_ids"]
        return self._change(Request(91, "ant", fact_ids=(first[0], *fourth[:2], "f_unknown")))

    def _change(self, request: Request) -> Any:
        try:
            answer = Answer.of(request.number, request.submit(self.store).result(TIMEOUT_S))
        except NotFound:
            if request.tenant != "bee":
                raise
            self.ended = True  # then its deletion has to be known too: see `_delete`
            return None
        with self._lock:
            first = self.answers.setdefault(f"k{request.number}", answer)
            if first is answer:
                expected = self._foresee(self.models[request.tenant], request, answer)
                if (answer.version, answer.superseded or answer.fact_ids) != expected:
                    raise AssertionError(f"request {request.number} answered {answer}, expected {expected}")
        if first != answer:
            raise AssertionError(f"request {request.number} answered {answer}, first {first}")
        if answer.receipt_id is not None:
            self.receipts.add(answer.receipt_id)
        return as_plain(answer)

    @staticmethod
    def _foresee(model: TenantModel, request: Request, answer: Answer) -> tuple[int, tuple[str, ...]]:
        if request.facts:
            superseded = tuple(model.write(request.facts, answer.fact_ids))
            return model.version, superseded or answer.fact_ids
        return model.version + 1, tuple(model.forget(request.fact_ids))

    def _checkpoint(self, tenant: str) -> None:
        self.store.engine.checkpoint(tenant, LOCAL)

    def _restart(self) -> None:
        """The next incarnation finds a checkpoint and writes after it."""
        self.store.engine.close()
        self.store = self.reopen()
        self._recall("ant")

    def _sleep_and_recall(self, tenant: str) -> None:
        self.store.engine.sleep(tenant)
        self._recall(tenant)

    def _recall(self, tenant: str) -> None:
        recall = self.store.engine.recall(tenant, key_of(7)[None], ReadMode.SNAP, 0)
        if recall.fact_id not in self.models[tenant].live:
            raise AssertionError(f"{tenant} woke up and recalls {recall.fact_id}")

    def _erase(self) -> None:
        """Wait until every erasure is done."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.store.engine.status().pending_erasures:
            if time.monotonic() > deadline:
                raise AssertionError("erasures stay pending")
            self.store.engine.erase_now()

    def _restore(self, tenant: str, *, in_place: bool) -> Any:
        engine = self.store.engine
        newest = max(engine.checkpoints("ant"), key=lambda info: (info.version, info.created_at))
        grant = engine.grant("ant", newest.checkpoint_id)
        given = once(f"restore-{tenant}")
        reply = engine.restore(tenant, grant, RESTORE_VERSION, in_place, given).result(TIMEOUT_S)
        with self._lock:
            if self.answers.setdefault(f"restored {tenant}", reply) is reply:
                model = self.models["ant"].restored(RESTORE_VERSION)
                model.version = reply.version
                if reply.state_hash != model.hash():
                    raise AssertionError(f"{tenant}, restored, has another hash than its facts")
                self.models[tenant] = model
        return _said(reply)

    def _delete(self) -> Any:
        reply = self.store.engine.delete_tenant("bee", once("delete-bee")).result(TIMEOUT_S)
        if self.ended and not reply.replayed:
            raise AssertionError("bee was gone before it was deleted")
        self.models.pop("bee", None)
        return _said(reply)


def _said(reply: Any) -> Any:
    """A reply without how long it took, whether it was repeated, and which checkpoint a repetition found first."""
    plain = as_plain(reply)
    return {name: value for name, value in plain.items() if name not in ("ms", "replayed", "checkpoint_id")}
