"""Everything one memory actor does, as a plain object: tenants in memory, the ledger under them, one writer.

The Ray actor (`actor.py`) is a shell over this. Mutations return futures of the writer thread; reads are called on
reader threads. Clock and id source are injected.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from memory_actor.addressing import Addressing
from memory_actor.draft import Draft
from memory_actor.effects import StoredFact, TenantCreated, TenantDeleted
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.errors import NotFound, TenantExists, VerifyConflict
from memory_actor.ledger import Ledger, LedgerEntry
from memory_actor.replies import pack_receipt, pack_summary, pack_write, unpack_receipt, unpack_summary, unpack_write
from memory_actor.state_hash import state_hash
from memory_actor.tenant import TenantMemory, sums
from memory_actor.types import (
    EncodedFacts,
    EngineStatus,
    FactPage,
    FactRecord,
    FactText,
    Float16Array,
    ForgetReceipt,
    Idempotency,
    MemoryConfig,
    ReadMode,
    Recall,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
)
from memory_actor.writer import Command, Group, Plan, Writer

_REPLAY_FACTS = 2048  # facts read from the ledger at a time
_VERIFY_ATTEMPTS = 3
_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def random_fact_id() -> str:
    """`f_` and 26 characters of 5 random bits each: 130 bits, unguessable and unique."""
    return "f_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(26))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Process settings of one memory actor."""

    device: str = "cpu"
    group_facts_max: int = 256
    queue_max: int = 1024
    idempotency_hours: float = 24.0


class MemoryEngine:
    """The tenants of one memory actor. Construction replays the ledger; then every acknowledged fact is visible."""

    def __init__(
        self,
        index: int,
        ledger: Ledger,
        config: MemoryConfig,
        settings: EngineSettings,
        *,
        on_poison: Callable[[BaseException], None],
        clock: Callable[[], float] = time.time,
        new_fact_id: Callable[[], str] = random_fact_id,
    ) -> None:
        started = time.perf_counter()
        self._index, self._ledger, self._config, self._settings = index, ledger, config, settings
        self._clock, self._new_fact_id = clock, new_fact_id
        self._device = torch.device(settings.device)
        self._addressing = Addressing(config)
        self._tenants: dict[str, TenantMemory] = {}
        self._replayed_facts = self._replay()
        ledger.prune_idempotency(clock() - settings.idempotency_hours * 3600)
        self._replay_s = time.perf_counter() - started
        self._started = time.perf_counter()
        self._writer = Writer(
            ledger,
            LedgerEntry,
            clock=clock,
            group_facts_max=settings.group_facts_max,
            queue_max=settings.queue_max,
            on_poison=on_poison,
        )

    @classmethod
    def open(
        cls, index: int, path: Path, config: MemoryConfig, settings: EngineSettings, **injected: Any
    ) -> MemoryEngine:
        """Open (or create) the ledger at `path`, take its next epoch, replay. Raises StartupError subclasses."""
        owner = f"pid {os.getpid()} incarnation {secrets.token_hex(8)}"
        ledger = Ledger.open(path, config, owner, injected.get("clock", time.time)())
        try:
            return cls(index, ledger, config, settings, **injected)
        except BaseException:
            ledger.close()  # or its lock would outlive the failure
            raise

    def close(self) -> None:
        """Finish queued writes and close the ledger."""
        self._writer.close()
        self._ledger.close()

    def _replay(self) -> int:
        count = 0
        for row in self._ledger.tenants():
            tenant = self._new_tenant(TenantCreated(row.name, row.retention, row.salt, row.created_at))
            after = 0
            while facts := self._ledger.facts(row.name, after_seq=after, limit=_REPLAY_FACTS):
                tenant.replay(facts)
                after = facts[-1].seq
                count += len(facts)
            tenant.version, tenant.next_seq = row.version, row.next_seq
            self._tenants[row.name] = tenant
        return count

    def _new_tenant(self, created: TenantCreated) -> TenantMemory:
        name = created.tenant

        def rows_of(fact_ids: Sequence[str]) -> Sequence[StoredFact]:
            return self._ledger.facts_by_id(name, fact_ids) if fact_ids else ()

        return TenantMemory(
            name,
            created.retention,
            created.salt,
            created.created_at,
            addressing=self._addressing,
            config=self._config,
            rows_of=rows_of,
            device=self._device,
        )

    # -- mutations: futures of the writer thread ----------------------------------------------------------------

    def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> Future[TenantSummary]:
        """Begin a tenant. Raises (in the future) TenantExists."""
        salt = secrets.token_bytes(32)

        def plan(group: Group) -> Plan:
            if (name in self._tenants or name in group.drafts) and not _is_tombstone(group, name):
                raise TenantExists(name)
            created = TenantCreated(name, retention, salt, group.now)
            tenant = self._new_tenant(created)
            group.drafts[name] = Draft(tenant)
            return Plan(created, tenant.summary(with_hash=True), lambda: self._tenants.update({name: tenant}))

        return self._writer.submit(
            Command("", plan, idempotency=idempotency, record=pack_summary, replay=unpack_summary)
        )

    def delete_tenant(self, name: str, idempotency: Idempotency) -> Future[TenantSummary]:
        """End a tenant with all its facts; the reply is its last summary. Raises (in the future) NotFound."""

        def plan(group: Group) -> Plan:
            summary = self._draft(group, name).summary()
            group.drafts[name] = None
            return Plan(TenantDeleted(name), summary, lambda: self._forget_tenant(name))

        return self._writer.submit(
            Command("", plan, idempotency=idempotency, record=pack_summary, replay=unpack_summary)
        )

    def write(
        self,
        tenant: str,
        texts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None = None,
    ) -> Future[WriteReply]:
        """Write N facts. Resolved when durable and visible; refused whole or applied whole."""

        def plan(group: Group) -> Plan:
            fact_ids = tuple(self._new_fact_id() for _ in texts)
            prepared = self._draft(group, tenant).write(texts, encoded, fact_ids, group.now)
            reply = WriteReply(tenant, fact_ids, prepared.superseded, prepared.effect.version)
            return Plan(prepared.effect, reply, lambda: self._tenants[tenant].apply(prepared), reply.ms)

        return self._writer.submit(
            Command(
                tenant,
                plan,
                facts=len(texts),
                idempotency=idempotency,
                record=pack_write,
                replay=unpack_write,
                timeout_s=timeout_s,
            )
        )

    def forget(
        self, tenant: str, fact_ids: Sequence[str], idempotency: Idempotency | None, *, dry_run: bool = False
    ) -> Future[ForgetReceipt]:
        """Forget facts as if they had never been written; a dry run says what would happen and changes nothing."""

        def plan(group: Group) -> Plan:
            draft = Draft(self.tenant(tenant)) if dry_run else self._draft(group, tenant)
            before = draft.state_hash()
            prepared = draft.forget(fact_ids)
            found = prepared.effect.fact_ids  # type: ignore[union-attr]
            known = set(found)
            receipt = ForgetReceipt(
                tenant=tenant,
                forgotten=found,
                not_found=tuple(fact_id for fact_id in dict.fromkeys(fact_ids) if fact_id not in known),
                state_hash_before=before,
                state_hash_after=draft.state_hash() if found else before,
                version=prepared.effect.version,
                facts=draft.facts,
                dry_run=dry_run,
            )
            if dry_run or not found:
                return Plan(None, receipt, _nothing)
            return Plan(prepared.effect, receipt, lambda: self._tenants[tenant].apply(prepared), receipt.ms)

        return self._writer.submit(
            Command(
                tenant,
                plan,
                facts=len(fact_ids),
                idempotency=None if dry_run else idempotency,
                record=pack_receipt,
                replay=unpack_receipt,
            )
        )

    def _draft(self, group: Group, name: str) -> Draft:
        """The group's draft on a tenant: later commands of one commit see what earlier ones will have done."""
        if name not in group.drafts:
            group.drafts[name] = Draft(self.tenant(name))
        draft: Draft | None = group.drafts[name]
        if draft is None:
            raise NotFound("tenant", name)
        return draft

    def _forget_tenant(self, name: str) -> None:
        self._tenants.pop(name).end()

    # -- reads: called on reader threads ------------------------------------------------------------------------

    def tenant(self, name: str) -> TenantMemory:
        """The tenant's memory. Raises NotFound."""
        tenant = self._tenants.get(name)
        if tenant is None:
            raise NotFound("tenant", name)
        return tenant

    def summaries(self) -> list[TenantSummary]:
        """All tenants by name, without hashes."""
        tenants = list(self._tenants.values())  # at once: the writer may add and delete meanwhile
        return sorted((tenant.summary(with_hash=False) for tenant in tenants), key=lambda summary: summary.name)

    def summary(self, name: str) -> TenantSummary:
        """One tenant with its state hash."""
        return self.tenant(name).summary(with_hash=True)

    def recall(self, name: str, key: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        """The readout for a query's key (D,) float16. See `TenantMemory.recall`."""
        return self.tenant(name).recall(key, mode, min_version)

    def select(self, name: str, selector: Selector, limit: int) -> list[FactRecord]:
        """The facts a selector matches, for a preview; nearest first for a query, else oldest first."""
        tenant = self.tenant(name)
        if selector.key is None:
            return self._ledger.select_ids(name, tags=selector.tags, before=selector.before, limit=limit)
        near = tenant.near(selector.key, limit)
        records = [(self._ledger.record(name, item.fact_id), item.score) for item in near]
        return [_scored(record, score) for record, score in records if record is not None]

    def facts(self, name: str, after: int, limit: int) -> FactPage:
        """Facts in the order they were written, after sequence number `after`."""
        self.tenant(name)
        records = self._ledger.fact_records(name, after_seq=after, limit=limit + 1)
        more = len(records) > limit
        return FactPage(tuple(records[:limit]), records[limit - 1].seq if more else None)

    def fact(self, name: str, fact_id: str) -> FactRecord:
        """One fact. Raises NotFound."""
        self.tenant(name)
        record = self._ledger.record(name, fact_id)
        if record is None:
            raise NotFound("fact", fact_id)
        return record

    def verify(self, name: str) -> Verification:
        """Rebuild the memory from the ledger's surviving facts alone and compare hashes.

        Runs beside the writer: when the tenant changed meanwhile it starts over, a few times, then VerifyConflict.
        """
        started = time.perf_counter()
        for _ in range(_VERIFY_ATTEMPTS):
            tenant = self.tenant(name)
            with tenant.lock:
                version, live = tenant.version, tenant.state_hash()
            stored = self._stored_version(name)
            rebuilt, count = self._rebuilt_hash(name)
            # A commit may be in the ledger and not yet applied: only one version everywhere makes a comparison.
            if version == stored == self._stored_version(name):
                ms = (time.perf_counter() - started) * 1e3
                return Verification(name, live == rebuilt, live, rebuilt, count, version, ms)
        raise VerifyConflict(name, _VERIFY_ATTEMPTS)

    def _stored_version(self, name: str) -> int:
        """The tenant's version in the ledger, -1 when it is gone."""
        return next((row.version for row in self._ledger.tenants() if row.name == name), -1)

    def _rebuilt_hash(self, name: str) -> tuple[str, int]:
        statistics = SufficientStatistics.zeros(self._config.address_size, self._config.latent_size)
        fact_ids: list[str] = []
        after = 0
        while facts := self._ledger.facts(name, after_seq=after, limit=_REPLAY_FACTS):
            statistics.merge_(sums(self._config, facts))
            fact_ids.extend(fact.fact_id for fact in facts)
            after = facts[-1].seq
        return state_hash(self._config, statistics, fact_ids), len(fact_ids)

    def status(self) -> EngineStatus:
        summaries = self.summaries()
        return EngineStatus(
            index=self._index,
            pid=os.getpid(),
            epoch=self._ledger.epoch,
            tenants=len(summaries),
            facts=sum(summary.facts for summary in summaries),
            replayed_facts=self._replayed_facts,
            replay_s=round(self._replay_s, 3),
            uptime_s=round(time.perf_counter() - self._started, 1),
            ledger="sqlite",
            device=str(self._device),
        )


def _is_tombstone(group: Group, name: str) -> bool:
    """Whether the tenant is deleted earlier in the same commit."""
    return name in group.drafts and group.drafts[name] is None


def _scored(record: FactRecord, score: float) -> FactRecord:
    """The record with the cosine that a preview found it by."""
    return replace(record, score=round(score, 4))


def _nothing() -> None:
    """The change that a dry run makes."""
