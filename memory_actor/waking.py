"""How a tenant's memory is loaded: its newest local checkpoint and what the ledger says came and went since.

Without a checkpoint, or when it is damaged, from the ledger alone. Reads only; runs on any thread, beside the writer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from memory_actor.checkpoint import Snapshot
from memory_actor.crash_points import reached
from memory_actor.effects import StoredFact
from memory_actor.errors import LedgerCorrupt, NotFound, TenantQuarantined, Unavailable
from memory_actor.ledger_rows import TenantDamaged, TenantRow
from memory_actor.tenant import TenantMemory, sums
from memory_actor.types import MemoryConfig

FACTS_AT_ONCE: Final = 2048  # read from the ledger at a time
_ATTEMPTS: Final = 5


class FactRows(Protocol):
    """What waking needs of the ledger."""

    def tenant_row(self, name: str) -> TenantRow | None: ...
    def live_ids(self, tenant: str) -> list[tuple[str, int]]: ...
    def facts(self, tenant: str, *, after_seq: int = 0, limit: int = FACTS_AT_ONCE) -> list[StoredFact]: ...
    def facts_by_id(self, tenant: str, fact_ids: Sequence[str]) -> list[StoredFact]: ...


class Waker:
    """Loads tenants. `newest_snapshot(row)` is what the newest local checkpoint holds, None without a sound one."""

    def __init__(
        self,
        ledger: FactRows,
        config: MemoryConfig,
        newest_snapshot: Callable[[TenantRow], Snapshot | None],
        new_memory: Callable[[TenantRow], TenantMemory],
    ) -> None:
        self._ledger, self._config = ledger, config
        self._newest_snapshot, self._new_memory = newest_snapshot, new_memory

    def load(self, name: str) -> tuple[TenantRow, TenantMemory]:
        """The tenant's row and its memory at that version.

        Raises: NotFound; TenantQuarantined when the ledger's rows are damaged; Unavailable when it kept changing.
        """
        for _ in range(_ATTEMPTS):
            row: TenantRow | None = None
            try:
                row = self._ledger.tenant_row(name)
                if row is None:
                    raise NotFound("tenant", name)
                memory = self._loaded(row)
            except (TenantDamaged, LedgerCorrupt) as damage:
                if self._changed_beside(name, row):
                    continue
                reason = damage.args[1]
                raise TenantQuarantined(name, reason) from damage
            # Deleting or restoring a cold tenant goes on beside this: only one row throughout makes a memory.
            if self._ledger.tenant_row(name) == row:
                return row, memory
        raise Unavailable(f"tenant {name!r}", "it is being replaced")

    def _changed_beside(self, name: str, row: TenantRow | None) -> bool:
        """Whether what was read as damage may be a change that was made meanwhile."""
        try:
            return row is not None and self._ledger.tenant_row(name) != row
        except (TenantDamaged, LedgerCorrupt):
            return False

    def _loaded(self, row: TenantRow) -> TenantMemory:
        positions = dict(self._ledger.live_ids(row.name))
        if len(positions) != row.facts:
            raise TenantDamaged(row.name, f"the ledger holds {len(positions)} facts where {row.facts} are noted")
        snapshot = self._newest_snapshot(row) if positions else None
        memory = None if snapshot is None else self._from_snapshot(row, snapshot, positions)
        if memory is None:
            memory = self._from_ledger(row)
        memory.version, memory.next_seq = row.version, row.next_seq
        if memory.facts.keys() != positions.keys():
            raise TenantDamaged(row.name, f"{len(memory.facts)} of its {len(positions)} facts could be loaded")
        return memory

    def _from_snapshot(self, row: TenantRow, snapshot: Snapshot, positions: dict[str, int]) -> TenantMemory | None:
        """The checkpoint less what is gone, plus what is new; None when the ledger alone is the better way."""
        held = {fact.fact_id for fact in snapshot.facts}
        added = [fact_id for fact_id in positions if fact_id not in held]
        kept = self._without(snapshot, [fact for fact in snapshot.facts if fact.fact_id not in positions])
        newest_kept = max((positions[fact.fact_id] for fact in kept.facts), default=0)
        if len(added) > len(kept.facts) or any(positions[fact_id] < newest_kept for fact_id in added):
            return None  # an old checkpoint, or one from before a restore that brought back older facts
        memory = self._new_memory(row)
        memory.load(kept, positions)  # a file keeps the order of facts only, the ledger knows their positions
        for start in range(0, len(added), FACTS_AT_ONCE):
            reached("recover.mid_replay")
            memory.replay(self._ledger.facts_by_id(row.name, added[start : start + FACTS_AT_ONCE]))
        return memory

    def _without(self, snapshot: Snapshot, gone: list[StoredFact]) -> Snapshot:
        """As `Snapshot.without`, but its hash stays what it was: it takes longer than all the rest, and is not used."""
        if not gone:
            return snapshot
        ended = {fact.fact_id for fact in gone}
        total = snapshot.sums.copy()
        total.merge_(sums(self._config, gone), alpha=-1)
        return replace(snapshot, sums=total, facts=tuple(one for one in snapshot.facts if one.fact_id not in ended))

    def _from_ledger(self, row: TenantRow) -> TenantMemory:
        memory = self._new_memory(row)
        after = 0
        while facts := self._ledger.facts(row.name, after_seq=after, limit=FACTS_AT_ONCE):
            reached("recover.mid_replay")
            memory.replay(facts)
            after = facts[-1].seq
        return memory
