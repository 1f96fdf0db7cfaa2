"""Which tenants there are, which of them are in memory, and which have to leave it.

All tenants are known by their row; memory is loaded on first use (`waking.py`) and let go of when others need the
room. Only the writer thread adds, replaces, lets go of and removes tenants; waking may happen on any thread.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from memory_actor.errors import NotFound, TenantQuarantined
from memory_actor.ledger_rows import TenantRow
from memory_actor.tenant import TenantMemory
from memory_actor.types import Residency, TenantSummary

_LOW_WATER: Final = 0.9  # tenants leave until this part of the budget is used, so that they leave in turns


@dataclass(slots=True, eq=False)
class Resident:
    """One tenant. `row` is as of the last time it was cold; while `memory` is set, that one knows better."""

    row: TenantRow
    memory: TenantMemory | None = None
    damage: str | None = None  # why it is quarantined
    used: int = 0  # larger for what was used later
    changes: int = 0  # counts replacements by the writer: what was loaded beside one is not believed
    #: Held while the memory is loaded, so that it is loaded once.
    waking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def uid(self) -> str:
        return self.row.uid

    @property
    def version(self) -> int:
        memory = self.memory
        return self.row.version if memory is None else memory.version

    @property
    def residency(self) -> Residency:
        if self.damage is not None:
            return Residency.QUARANTINED
        return Residency.COLD if self.memory is None else Residency.HOT

    def require_sound(self) -> None:
        """Raise TenantQuarantined when its stored data is damaged."""
        if self.damage is not None:
            raise TenantQuarantined(self.name, self.damage)

    def summary(self) -> TenantSummary:
        """As listed, without a hash."""
        memory, row = self.memory, self.row
        if memory is not None and self.damage is None:
            return memory.summary(with_hash=False)
        return TenantSummary(
            name=row.name,
            retention=row.retention,
            created_at=row.created_at,
            facts=row.facts,
            version=row.version,
            shards=0,
            residency=self.residency,
        )


class Catalog:
    """All tenants of one memory actor by name."""

    def __init__(
        self,
        rows: Iterable[TenantRow],
        load: Callable[[str], tuple[TenantRow, TenantMemory]],
        damaged: Mapping[TenantRow, str] = MappingProxyType({}),
    ) -> None:
        """`load(name)` reads a tenant's memory from disk; it may raise TenantQuarantined and NotFound.

        `damaged` are tenants to refuse from the start, and why.
        """
        self._residents = {row.name: Resident(row) for row in rows}
        self._residents |= {row.name: Resident(row, damage=reason) for row, reason in damaged.items()}
        self._load = load
        self._ticks = itertools.count(1)
        self._swap = threading.Lock()  # held to set what a resident holds; never while anything is loaded
        #: Facts loaded so far, by waking.
        self.facts_loaded = 0

    # -- looking ------------------------------------------------------------------------------------------------

    def __contains__(self, name: str) -> bool:
        return name in self._residents

    def everyone(self) -> list[Resident]:
        """All tenants by name, as of one moment."""
        return sorted(self._residents.values(), key=lambda resident: resident.name)

    def resident(self, name: str) -> Resident:
        """Raises NotFound."""
        resident = self._residents.get(name)
        if resident is None:
            raise NotFound("tenant", name)
        return resident

    def is_ready(self, name: str) -> bool:
        """Whether a request on this tenant finds its memory, or its refusal, without loading anything."""
        resident = self._residents.get(name)
        return resident is None or resident.memory is not None or resident.damage is not None

    def memory(self, name: str) -> TenantMemory:
        """The tenant's memory, loaded when it is cold. Raises NotFound, TenantQuarantined and what loading raises.

        Two callers at once load once: the second waits for the first.
        """
        while True:
            resident = self.resident(name)
            resident.require_sound()
            resident.used = next(self._ticks)
            memory = resident.memory
            if memory is not None:
                return memory
            with resident.waking:
                if resident.memory is None and resident.damage is None:
                    self._wake(resident)

    def _wake(self, resident: Resident) -> None:
        """Load the memory, unless the writer replaced or removed the tenant meanwhile; then look again."""
        changes = resident.changes
        try:
            row, memory = self._load(resident.name)
        except TenantQuarantined as quarantined:
            with self._swap:
                if resident.changes == changes:
                    resident.damage = quarantined.args[1]
            return
        with self._swap:
            if resident.changes == changes and resident.damage is None and row.uid == resident.uid:
                resident.row, resident.memory = row, memory
                self.facts_loaded += len(memory.facts)

    def is_current(self, name: str, memory: TenantMemory) -> bool:
        """Whether this object is still the tenant's memory: what a reader got from another one may be wrong."""
        resident = self._residents.get(name)
        return resident is not None and resident.memory is memory

    # -- changing: the writer thread only -----------------------------------------------------------------------

    def put(self, row: TenantRow, memory: TenantMemory) -> None:
        """The tenant holds this memory from here on: it is new, or was restored in place, which ends a quarantine."""
        resident = self._residents.get(row.name)
        if resident is None or resident.uid != row.uid:
            self._residents[row.name] = Resident(row, memory, used=next(self._ticks))
            return
        with self._swap:
            resident.changes += 1
            old, resident.row, resident.memory, resident.damage = resident.memory, row, memory, None
            resident.used = next(self._ticks)
        if old is not None:
            old.end()

    def remove(self, name: str) -> None:
        """The tenant was deleted."""
        resident = self._residents.pop(name)
        with self._swap:
            resident.changes += 1
            memory, resident.memory = resident.memory, None
        if memory is not None:
            memory.end()

    def let_go(self, name: str) -> bool:
        """Take a tenant out of memory; the ledger has all of it. Returns whether it was in memory.

        Readers that still hold the memory find it ended and ask again.
        """
        resident = self._residents.get(name)
        with self._swap:
            memory = None if resident is None else resident.memory
            if resident is None or memory is None:
                return False
            resident.row, resident.memory = _row_now(resident.row, memory), None
        memory.end()
        return True

    # -- any thread ---------------------------------------------------------------------------------------------

    def quarantine(self, name: str, uid: str, reason: str) -> None:
        """Refuse this tenant until it is restored: its stored data is damaged."""
        resident = self._residents.get(name)
        if resident is None or resident.uid != uid:
            return
        with self._swap:
            if resident.memory is not None:
                resident.row = _row_now(resident.row, resident.memory)
            # The writer may be about to apply a change that it planned before; it holds the memory itself for that.
            resident.damage, resident.memory = reason, None

    def over_budget(self, bytes_max: int) -> list[str]:
        """Tenants that have to leave memory, least recently used first."""
        hot = [(resident, resident.memory) for resident in list(self._residents.values())]
        sizes = [(resident.name, memory.bytes, resident.used) for resident, memory in hot if memory is not None]
        return leaving(sizes, bytes_max)


def _row_now(row: TenantRow, memory: TenantMemory) -> TenantRow:
    """The row of a tenant whose memory is as given."""
    return replace(row, version=memory.version, next_seq=memory.next_seq, facts=len(memory.facts))


def leaving(sizes: Sequence[tuple[str, int, int]], bytes_max: int) -> list[str]:
    """Of hot tenants (name, bytes, time of last use) those that leave, least recently used first.

    None while all fit. Else until 90 % of the budget is used; the one used last always stays, or it would be loaded
    again for each request.
    """
    total = sum(size for _, size, _ in sizes)
    if total <= bytes_max:
        return []
    gone: list[str] = []
    for name, size, _ in sorted(sizes, key=lambda one: one[2])[:-1]:
        if total <= bytes_max * _LOW_WATER:
            break
        gone.append(name)
        total -= size
    return gone
