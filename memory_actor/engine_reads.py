"""What an engine is asked without changing anything: recall, listings, verification, status. On reader threads.

A tenant that is cold is loaded for those that need its memory; listings read the ledger and load nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from memory_actor.engine_parts import EngineParts
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.errors import LedgerCorrupt, NotFound, TenantQuarantined, VerifyConflict
from memory_actor.ledger_rows import TenantDamaged
from memory_actor.state_hash import state_hash
from memory_actor.tenant import TenantMemory, sums
from memory_actor.types import (
    CheckpointInfo,
    EngineStatus,
    ErasureState,
    ErasureStatus,
    FactPage,
    FactRecord,
    Float16Array,
    ReadMode,
    Recall,
    Residency,
    Selector,
    TenantSummary,
    Verification,
)
from memory_actor.waking import FACTS_AT_ONCE

_VERIFY_ATTEMPTS: Final = 3

T = TypeVar("T")


class EngineReads(EngineParts):
    """The reading half of `MemoryEngine`."""

    # -- memories -----------------------------------------------------------------------------------------------

    def is_ready(self, name: str) -> bool:
        """Whether a change of this tenant is planned without loading anything: if not, call `rouse` first."""
        return self._catalog.is_ready(name)

    def rouse(self, name: str) -> None:
        """Load a cold tenant ahead of a change, off the writer thread. Refusals are left to the change itself."""
        with suppress(NotFound, TenantQuarantined):
            self.tenant(name)

    def recall(self, name: str, keys: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        """The readout for a query's keys (P, D) float16. See `TenantMemory.recall`."""
        return self._reading(name, lambda memory: memory.recall(keys, mode, min_version))

    def wake(self, name: str) -> TenantSummary:
        """Load a cold tenant. Raises NotFound, TenantQuarantined."""
        return self._reading(name, lambda memory: memory.summary(with_hash=False))

    def summaries(self) -> list[TenantSummary]:
        """All tenants by name, without hashes."""
        self._require_serving()
        return [resident.summary() for resident in self._catalog.everyone()]

    def summary(self, name: str) -> TenantSummary:
        """One tenant with its state hash, which a cold one gets from its checkpoint if that is up to date."""
        self._require_serving()
        resident = self._catalog.resident(name)
        resident.require_sound()
        if resident.residency is Residency.COLD:
            summary, known = resident.summary(), self._checkpointing.newest_hash(resident.row)
            if known is not None:
                return replace(summary, state_hash=known)
        return self._reading(name, lambda memory: memory.summary(with_hash=True))

    def verify(self, name: str) -> Verification:
        """Rebuild the memory from the ledger's surviving facts alone and compare hashes.

        Runs beside the writer: when the tenant changed meanwhile it starts over, a few times, then VerifyConflict.
        """
        started = time.perf_counter()
        for _ in range(_VERIFY_ATTEMPTS):
            found = self._reading(name, lambda memory: self._compared(name, memory))
            if found is not None:
                return replace(found, ms=(time.perf_counter() - started) * 1e3)
        raise VerifyConflict(name, _VERIFY_ATTEMPTS)

    def _compared(self, name: str, memory: TenantMemory) -> Verification | None:
        """Both hashes, or None when they are not of one version."""
        with memory.lock:
            version, live = memory.version, memory.state_hash()
        stored = self._stored_version(name)
        rebuilt, count = self._rebuilt_hash(name)
        # A commit may be in the ledger and not yet applied: only one version everywhere makes a comparison.
        if not version == stored == self._stored_version(name):
            return None
        return Verification(name, live == rebuilt, live, rebuilt, count, version)

    def _stored_version(self, name: str) -> int:
        """The tenant's version in the ledger, -1 when it is gone."""
        row = self._ledger.tenant_row(name)
        return -1 if row is None else row.version

    def _rebuilt_hash(self, name: str) -> tuple[str, int]:
        statistics = SufficientStatistics.zeros(self._config.address_size, self._config.latent_size)
        fact_ids: list[str] = []
        after = 0
        while facts := self._ledger.facts(name, after_seq=after, limit=FACTS_AT_ONCE):
            statistics.merge_(sums(self._config, facts))
            fact_ids.extend(fact.fact_id for fact in facts)
            after = facts[-1].seq
        return state_hash(self._config, statistics, fact_ids), len(fact_ids)

    # -- the ledger ---------------------------------------------------------------------------------------------

    def select(self, name: str, selector: Selector, limit: int) -> list[FactRecord]:
        """The facts a selector matches, for a preview; nearest first for a query, else oldest first."""
        keys = selector.keys
        if keys is None:
            return self._listing(
                name, lambda: self._ledger.select_ids(name, tags=selector.tags, before=selector.before, limit=limit)
            )
        near = self._reading(name, lambda memory: memory.near(keys, limit))
        records = self._listing(name, lambda: [(self._ledger.record(name, item.fact_id), item.score) for item in near])
        return [replace(record, score=round(score, 4)) for record, score in records if record is not None]

    def facts(self, name: str, after: int, limit: int) -> FactPage:
        """Facts in the order they were written, after sequence number `after`."""
        records = self._listing(name, lambda: self._ledger.fact_records(name, after_seq=after, limit=limit + 1))
        more = len(records) > limit
        return FactPage(tuple(records[:limit]), records[limit - 1].seq if more else None)

    def fact(self, name: str, fact_id: str) -> FactRecord:
        """One fact. Raises NotFound."""
        record = self._listing(name, lambda: self._ledger.record(name, fact_id))
        if record is None:
            raise NotFound("fact", fact_id)
        return record

    def checkpoints(self, name: str) -> list[CheckpointInfo]:
        """The tenant's registered checkpoints, oldest first; those of a quarantined one too."""
        self._require_serving()
        return self._checkpointing.of(self._catalog.resident(name).uid)

    def erasure(self, receipt_id: str) -> ErasureStatus:
        """How far an erasure is, and its receipt once it is done. Raises NotFound."""
        self._require_serving()
        row = self._ledger.erasure(receipt_id)
        if row is None:
            raise NotFound("receipt", receipt_id)
        state = ErasureState.PENDING if row.receipt is None else ErasureState.DONE
        return ErasureStatus(receipt_id, row.tenant, state, row.requested_at, row.erase_by, row.receipt)

    # -- health -------------------------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        residents = self._catalog.everyone()
        summaries = [resident.summary() for resident in residents]
        return EngineStatus(
            index=self._index,
            pid=os.getpid(),
            epoch=self._ledger.epoch,
            tenants=len(summaries),
            facts=sum(summary.facts for summary in summaries),
            replayed_facts=self._catalog.facts_loaded,
            replay_s=round(self._replay_s, 3),
            uptime_s=round(time.perf_counter() - self._started, 1),
            ledger=self._ledger.engine_name,
            device=self._settings.device,
            hot_tenants=sum(summary.residency is Residency.HOT for summary in summaries),
            quarantined=tuple((one.name, one.damage) for one in residents if one.damage is not None),
            pending_erasures=self._eraser.pending,
            oldest_pending_erasure_s=round(self._eraser.oldest_age_s(), 1),
            warnings=tuple(self._checkpointing.damaged.values()),
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _reading(self, name: str, read: Callable[[TenantMemory], T]) -> T:
        """What `read` says of the tenant's memory, asked again when that left or was replaced meanwhile."""
        while True:
            self._require_serving()
            memory = self.tenant(name)
            result = self._listing(name, lambda memory=memory: read(memory))  # type: ignore[misc]
            if self._catalog.is_current(name, memory):
                return result

    def _listing(self, name: str, read: Callable[[], T]) -> T:
        """What `read` finds in the ledger. Damage of the tenant's rows quarantines it, if a second look sees it too."""
        self._require_serving()
        resident = self._catalog.resident(name)
        resident.require_sound()
        try:
            return read()
        except (TenantDamaged, LedgerCorrupt):
            pass  # it may have been read in the midst of a restore in place
        try:
            return read()
        except (TenantDamaged, LedgerCorrupt) as damage:
            reason: str = damage.args[1]
            self._catalog.quarantine(name, resident.uid, reason)
            raise TenantQuarantined(name, reason) from damage

    def _require_serving(self) -> None:
        if self._suspended is not None:
            raise self._suspended
