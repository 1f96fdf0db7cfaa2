"""What a memory engine is made of, how the parts are put together, and how they start, stop and fail as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from memory_actor.addressing import Addressing
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpointing import Checkpointing
from memory_actor.effects import StoredFact
from memory_actor.engine_settings import EngineSettings, random_fact_id, random_receipt_id
from memory_actor.eraser import Eraser, Signer
from memory_actor.errors import LedgerCorrupt, LocationUnavailable, NotFound, Unavailable
from memory_actor.evictor import Evictor
from memory_actor.ledger import Ledger, LedgerEntry
from memory_actor.ledger_rows import TenantDamaged, TenantRow
from memory_actor.residency import Catalog
from memory_actor.restoring import Restorer
from memory_actor.tenant import TenantMemory
from memory_actor.types import MemoryConfig, Retention
from memory_actor.waking import Waker
from memory_actor.writer import Command, Group, Plan, Writer

log = logging.getLogger("larimar.engine")

T = TypeVar("T")

_UNKNOWN_UID = "0" * 32


class EngineParts:
    """Construction reads the catalog of tenants and loads none of them."""

    def __init__(
        self,
        index: int,
        ledger: Ledger,
        config: MemoryConfig,
        settings: EngineSettings,
        *,
        signer: Signer,
        stores: Mapping[str, CheckpointStore],
        on_poison: Callable[[BaseException], None],
        clock: Callable[[], float] = time.time,
        new_fact_id: Callable[[], str] = random_fact_id,
        new_receipt_id: Callable[[], str] = random_receipt_id,
    ) -> None:
        started = time.perf_counter()
        self._index, self._ledger, self._config, self._settings = index, ledger, config, settings
        self._clock, self._new_fact_id, self._new_receipt_id = clock, new_fact_id, new_receipt_id
        self._device = torch.device(settings.device)
        self._addressing = Addressing(config)
        self._suspended: Unavailable | None = None
        self._checkpointing = Checkpointing(
            ledger,
            ledger.vault,
            stores,
            config,
            keep=settings.checkpoints_keep,
            clock=clock,
            between_commits=self._between_commits,
        )
        waker = Waker(ledger, config, self._checkpointing.newest_snapshot, self._new_memory)
        self._restorer = Restorer(self._checkpointing, config, self._new_memory)
        damaged = {self._stand_in(one.args[0]): one.args[1] for one in ledger.damaged_tenants()}
        self._catalog = Catalog(ledger.tenants(), waker.load, damaged)
        ledger.prune_idempotency(clock() - settings.idempotency_hours * 3600)
        self._eraser = Eraser(
            ledger,
            ledger.vault,
            self._checkpointing.purge,
            signer,
            settled=lambda: self._between_commits(_nothing),
            window_s=settings.erase_window_s,
            clock=clock,
            on_failure=self._poison,
            beyond_reach=ledger.beyond_reach,
        )
        self._evictor = Evictor(
            lambda: self._catalog.over_budget(settings.hot_mb << 20), self._put_to_sleep, self._poison
        )
        self._replay_s = time.perf_counter() - started
        self._started = time.perf_counter()
        self._writer = Writer(
            ledger,
            LedgerEntry,
            clock=clock,
            group_facts_max=settings.group_facts_max,
            queue_max=settings.queue_max,
            on_poison=on_poison,
            on_damage=self._quarantine,
        )
        self._eraser.start()
        self._evictor.start()

    def close(self) -> None:
        """Finish queued writes and the erasure that is running, and close the ledger. May be called twice."""
        self._evictor.close()
        self._eraser.close()
        self._writer.close()
        self._ledger.close()

    def suspend(self, reason: str | None) -> None:
        """Refuse reads and writes with Unavailable, since a newer process may be serving; None: go on."""
        self._suspended = None if reason is None else Unavailable("the memory actor", reason)
        self._writer.suspend(self._suspended)

    def superseded(self) -> str | None:
        """Why this process may not serve any more: a newer one took over. Raises LedgerFailed, LedgerCorrupt."""
        if self._ledger.engine_name == "sqlite":
            return None  # whoever opened the file after us would have had to get it from us
        newest = self._ledger.newest_epoch()
        return f"a newer process has epoch {newest}" if newest != self._ledger.epoch else None

    # -- memories -----------------------------------------------------------------------------------------------

    def tenant(self, name: str) -> TenantMemory:
        """The tenant's memory, loaded when it is cold. Raises NotFound, TenantQuarantined."""
        loaded = self._catalog.facts_loaded
        memory = self._catalog.memory(name)
        if self._catalog.facts_loaded != loaded:
            self._evictor.look()
        return memory

    def _new_memory(self, row: TenantRow) -> TenantMemory:
        """An empty memory for this tenant."""
        name = row.name

        def rows_of(fact_ids: Sequence[str]) -> Sequence[StoredFact]:
            found = self._ledger.facts_by_id(name, fact_ids) if fact_ids else []
            if len(found) < len(fact_ids):
                self._ledger.live_ids(name)  # raises when rows were lost, rather than forgotten meanwhile
            return found

        return TenantMemory(
            name,
            row.retention,
            row.salt,
            row.created_at,
            addressing=self._addressing,
            config=self._config,
            rows_of=rows_of,
            device=self._device,
        )

    def _stand_in(self, name: str) -> TenantRow:
        """A row for a tenant whose own is damaged: to list it, refuse it, grant its checkpoints and delete it."""
        uids = [info.uid for info in self._ledger.checkpoints() if info.tenant == name]
        uid = uids[-1] if uids else _UNKNOWN_UID
        return TenantRow(name, Retention.TEXT, b"", 0.0, version=0, next_seq=1, uid=uid, facts=0)

    def _put_to_sleep(self, name: str) -> None:
        """See a tenant out of memory: its checkpoint is brought up to date first, so that it wakes fast."""
        try:
            self._checkpointing.keep_cold(name)
        except LocationUnavailable as error:
            log.warning("tenant_sleeps_without_checkpoint: %s; it wakes from the ledger", error)
        except (TenantDamaged, LedgerCorrupt) as damage:
            self._quarantine(name, damage.args[1])
            return
        self._let_go(name)

    def _let_go(self, name: str) -> None:
        """Take a tenant out of memory between two commits, unless one that changes it is under way."""

        def plan(group: Group) -> Plan:
            def apply() -> None:
                if name not in group.drafts:
                    self._catalog.let_go(name)

            return Plan(None, None, apply)

        self._writer.submit(Command(name, plan)).result()

    # -- failing ------------------------------------------------------------------------------------------------

    def _quarantine(self, name: str, reason: str) -> None:
        try:
            resident = self._catalog.resident(name)
        except NotFound:
            return
        self._catalog.quarantine(name, resident.uid, reason)

    def _poison(self, error: BaseException) -> None:
        """Storage failed beside the writer: nothing more is served, and the process ends."""
        self._writer.poison(error)

    def _between_commits(self, read: Callable[[], T]) -> T:
        """What `read` finds while everything committed is applied and nothing else changes: on the writer thread."""

        def plan(_: Group) -> Plan:
            return Plan(None, read(), _nothing)

        future: Future[T] = self._writer.submit(Command("", plan))
        return future.result()


def _nothing() -> None:
    """The change of what changes nothing."""
