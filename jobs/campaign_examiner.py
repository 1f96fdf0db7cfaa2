"""Opens what a killed process left and holds it to the integer model: nothing lost, nothing twice, nothing by half."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.campaign_load import TIMEOUT_S, Answer, Heard, Request
from jobs.campaign_model import TenantModel
from jobs.campaign_outcome import Outcome
from jobs.campaign_store import Store, key_of, prompt_text, target_text
from memory_actor.errors import LarimarError
from memory_actor.receipts import verify_receipt
from memory_actor.types import ErasureState, ReadMode

_REPLIES_KEPT = 400
_REPLIES_CHECKED = 12
_KEYS_CHECKED = 6
_PAGE = 500
_LAST_REQUESTS = 10**9


@dataclass
class Examiner:
    """The truth about one store over its whole history, and the checks against it. Violations go into `outcome`."""

    outcome: Outcome
    draw: random.Random
    models: dict[str, TenantModel]
    answered: dict[int, tuple[Request, Answer]] = field(default_factory=dict)
    receipts: set[str] = field(default_factory=set)

    def live(self) -> dict[str, list[str]]:
        """The ids each tenant must hold."""
        return {tenant: list(model.live) for tenant, model in self.models.items()}

    def take(self, heard: Heard, store: Store, label: str) -> None:
        """Bring the truth up to what a dead sender noted, asking again under the same keys where it heard nothing.

        Requests were queued in order and commits are whole, so those that were applied come before those that were
        not: I3 of the promises, with the same key as the witness.
        """
        for request in heard.begun:
            if request.number in heard.answers:
                self.follow(request, heard.answers[request.number], label)
        not_applied = False
        for request in heard.in_flight:
            reply = request.submit(store).result(TIMEOUT_S)
            self.outcome.counts["in_flight_applied" if reply.replayed else "in_flight_absent"] += 1
            if reply.replayed and not_applied:
                self.outcome.violate(f"{label}: request {request.number} is stored, an earlier one is not")
            not_applied = not_applied or not reply.replayed
            self.follow(request, Answer.of(request.number, reply), label)

    def follow(self, request: Request, answer: Answer, label: str) -> None:
        """One answered request happens to the model, which must foresee the answer."""
        model = self.models[request.tenant]
        if request.facts:
            expected: tuple[object, ...] = (tuple(model.write(request.facts, answer.fact_ids)), model.version)
            got: tuple[object, ...] = (answer.superseded, answer.version)
        else:
            expected = (tuple(model.forget(request.fact_ids)), model.version)
            got = (answer.fact_ids, answer.version)
        if answer.receipt_id is not None:
            self.receipts.add(answer.receipt_id)
        self.outcome.check(got == expected, f"{label}: request {request.number} answered {got}, expected {expected}")
        self.answered[request.number] = (request, answer)
        if len(self.answered) > _REPLIES_KEPT:
            del self.answered[next(iter(self.answered))]
        self.outcome.counts["acknowledged"] += 1

    def examine(self, store: Store, label: str, *, audit: bool = True) -> None:
        """Every tenant against its model, some answers against their repetition, the audit chain against itself."""
        for tenant, model in self.models.items():
            try:
                self._examine_tenant(store, tenant, model, label)
            except LarimarError as refusal:
                self.outcome.violate(f"{label}: {tenant} cannot be examined: {refusal}")
        for number in self.draw.sample(sorted(self.answered), min(len(self.answered), _REPLIES_CHECKED)):
            self._repeat(store, *self.answered[number], label)
        if audit:
            self.outcome.check(store.ledger.audit_chain_ok(), f"{label}: the audit chain is broken")

    def _examine_tenant(self, store: Store, tenant: str, model: TenantModel, label: str) -> None:
        summary = store.engine.summary(tenant)
        stored = stored_facts(store, tenant)
        expected = {
            fact_id: (prompt_text(fact.planned.prompt), target_text(fact.planned.seed))
            for fact_id, fact in model.live.items()
        }
        lost, extra = expected.keys() - stored.keys(), stored.keys() - expected.keys()
        self.outcome.counts["lost"] += len(lost)
        self.outcome.counts["duplicates"] += len(extra)
        check = self.outcome.check
        check(not lost, f"{label}: {tenant} lost {sorted(lost)}")
        check(not extra, f"{label}: {tenant} holds {sorted(extra)}, which nobody wrote or which ended")
        check(list(stored) == list(expected), f"{label}: {tenant} lists its facts in another order")
        check(stored == expected, f"{label}: {tenant} holds other words than were written")
        check(summary.version == model.version, f"{label}: {tenant} is at {summary.version}, not {model.version}")
        check(summary.state_hash == model.hash(), f"{label}: the hash of {tenant} is not that of its facts")
        check(store.engine.verify(tenant).identical, f"{label}: {tenant} does not verify")
        self._recall(store, tenant, model, label)

    def _recall(self, store: Store, tenant: str, model: TenantModel, label: str) -> None:
        """Some live facts are recalled whole, and no recall finds one that is gone."""
        for fact_id in self.draw.sample(list(model.live), min(len(model.live), _KEYS_CHECKED)):
            planned = model.live[fact_id].planned
            recall = store.engine.recall(tenant, key_of(planned.prompt)[None], ReadMode.SNAP, model.version)
            found = model.live.get(recall.fact_id or "")
            if found is None or recall.readout is None or found.planned.prompt != planned.prompt:
                self.outcome.violate(f"{label}: {tenant} recalls {recall.fact_id} for {fact_id}")
            elif abs(recall.readout - found.planned.latents()).max() >= 0.5:
                self.outcome.violate(f"{label}: {tenant} recalls {fact_id} wrongly")

    def _repeat(self, store: Store, request: Request, answer: Answer, label: str) -> None:
        reply = request.submit(store).result(TIMEOUT_S)
        if not reply.replayed or Answer.of(request.number, reply) != answer:
            self.outcome.counts["duplicates"] += not reply.replayed
            self.outcome.violate(f"{label}: request {request.number}, repeated, was answered differently")

    def finish_erasures(self, store: Store, label: str) -> None:
        """All erasures end in a receipt that its signature proves, and no key of a forgotten fact is left."""
        deadline = time.monotonic() + TIMEOUT_S
        while store.engine.status().pending_erasures and time.monotonic() < deadline:
            store.engine.erase_now()
        self.outcome.check(not store.engine.status().pending_erasures, f"{label}: erasures stay pending")
        for receipt_id in sorted(self.receipts):
            self._check_receipt(store, receipt_id, label)
        self.receipts.clear()

    def nothing_left(self, store: Store, state_dir: Path, label: str) -> None:
        """After one more forget of each tenant, no file is there of a checkpoint that is not registered.

        A crash may leave one that holds a live fact; it goes with the next erasure, so before it could betray anything.
        """
        for number, (tenant, model) in enumerate(self.models.items()):
            if model.live:
                request = Request(_LAST_REQUESTS + number, tenant, fact_ids=(next(iter(model.live)),))
                self.follow(request, Answer.of(request.number, request.submit(store).result(TIMEOUT_S)), label)
        self.finish_erasures(store, label)
        left = unregistered_files(store, state_dir)
        self.outcome.check(not left, f"{label}: unregistered checkpoint files stay: {left}")

    def _check_receipt(self, store: Store, receipt_id: str, label: str) -> None:
        status = store.engine.erasure(receipt_id)
        if status.state is not ErasureState.DONE or status.receipt is None:
            self.outcome.violate(f"{label}: erasure {receipt_id} is {status.state}")
            return
        try:
            receipt = verify_receipt(status.receipt, None)
        except LarimarError as error:
            self.outcome.violate(f"{label}: the receipt of {receipt_id} does not verify: {error}")
            return
        self.outcome.check(receipt.receipt_id == receipt_id, f"{label}: {receipt_id} has another's receipt")
        self.outcome.counts["receipts"] += 1


def unregistered_files(store: Store, state_dir: Path) -> list[str]:
    """Files among the checkpoints that no registered checkpoint owns."""
    folder = state_dir / "checkpoints"
    owners = [f"{info.uid}/{info.checkpoint_id}" for info in store.ledger.checkpoints()]
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in files if not name.startswith(tuple(owners)))


def stored_facts(store: Store, tenant: str) -> Mapping[str, tuple[str | None, str | None]]:
    """Prompt and target of every listed fact by id, in the order of listing."""
    facts: dict[str, tuple[str | None, str | None]] = {}
    after: int | None = 0
    while after is not None:
        page = store.engine.facts(tenant, after, _PAGE)
        facts.update({record.fact_id: (record.prompt, record.target) for record in page.facts})
        after = page.next_after
    return facts
