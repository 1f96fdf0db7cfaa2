"""Who is in memory: the policy, the catalog under threads, and what wins when the writer and a waking thread meet."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from memory_actor.errors import NotFound, TenantQuarantined
from memory_actor.ledger_rows import TenantRow
from memory_actor.residency import Catalog, leaving
from memory_actor.tenant import TenantMemory
from memory_actor.types import Residency, Retention
from tests.memory_fixtures import SALT, SMALL, addressing_of

TIMEOUT_S = 10


def row(name: str, uid: str = "a" * 32, version: int = 3, facts: int = 0) -> TenantRow:
    return TenantRow(name, Retention.TEXT, SALT, 1.0, version, next_seq=9, uid=uid, facts=facts)


def memory_of(one: TenantRow) -> TenantMemory:
    memory = TenantMemory(
        one.name,
        one.retention,
        one.salt,
        one.created_at,
        addressing=addressing_of(SMALL),
        config=SMALL,
        rows_of=lambda ids: (),
    )
    memory.version, memory.next_seq = one.version, one.next_seq
    return memory


class Disk:
    """Loads empty memories; counts how often, waits when told to, fails when told to."""

    def __init__(self, *rows: TenantRow) -> None:
        self.rows = {one.name: one for one in rows}
        self.loads: list[str] = []
        self.gate: threading.Event | None = None
        self.begun = threading.Event()
        self.damage: str | None = None

    def load(self, name: str) -> tuple[TenantRow, TenantMemory]:
        self.loads.append(name)
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(TIMEOUT_S)
        if self.damage is not None:
            raise TenantQuarantined(name, self.damage)
        if name not in self.rows:
            raise NotFound("tenant", name)
        return self.rows[name], memory_of(self.rows[name])


def catalog_of(*rows: TenantRow) -> tuple[Catalog, Disk]:
    disk = Disk(*rows)
    return Catalog(rows, disk.load), disk


# -- the policy -------------------------------------------------------------------------------------------------


def test_nobody_leaves_while_all_fit():
    assert leaving([("a", 50, 1), ("b", 50, 2)], 100) == []


def test_the_least_recently_used_leave_first_until_a_tenth_is_free():
    sizes = [("c", 30, 3), ("a", 30, 1), ("d", 30, 4), ("b", 30, 2)]
    assert leaving(sizes, 100) == ["a"]  # 120 - 30 = 90: just 90 % of 100
    assert leaving(sizes, 90) == ["a", "b"]
    assert leaving(sizes, 10) == ["a", "b", "c"]


def test_the_one_used_last_stays_whatever_its_size():
    assert leaving([("huge", 10**12, 7)], 1) == []
    assert leaving([("huge", 10**12, 7), ("small", 1, 6)], 1) == ["small"]


# -- the catalog ------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_it_is_used():
    catalog, disk = catalog_of(row("acme", facts=5), row("globex"))
    assert disk.loads == []
    summary = catalog.resident("acme").summary()
    assert (summary.residency, summary.facts, summary.version, summary.shards) == (Residency.COLD, 5, 3, 0)
    assert [one.name for one in catalog.everyone()] == ["acme", "globex"]
    first = catalog.memory("acme")
    assert catalog.memory("acme") is first
    assert disk.loads == ["acme"]
    assert catalog.resident("acme").residency is Residency.HOT
    assert (catalog.is_ready("acme"), catalog.is_ready("globex"), catalog.is_ready("nobody")) == (True, False, True)


def test_unknown_tenants_are_not_found():
    catalog, disk = catalog_of()
    with pytest.raises(NotFound):
        catalog.memory("acme")
    assert disk.loads == []


def test_many_threads_wake_a_tenant_once():
    """16 readers at once: one load, one object."""
    catalog, disk = catalog_of(row("acme"))
    disk.gate = threading.Event()
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(catalog.memory, "acme") for _ in range(16)]
        assert disk.begun.wait(TIMEOUT_S)
        disk.gate.set()
        memories = {id(one.result(TIMEOUT_S)) for one in waiting}
    assert len(memories) == 1
    assert disk.loads == ["acme"]


def test_one_tenant_that_wakes_slowly_holds_up_no_other():
    catalog, disk = catalog_of(row("acme"), row("globex"))
    catalog.memory("globex")
    disk.gate, disk.begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(catalog.memory, "acme")
        assert disk.begun.wait(TIMEOUT_S)
        catalog.memory("globex")
        assert catalog.let_go("globex")
        assert not catalog.let_go("acme")  # returns at once: it is not in memory yet
        disk.gate.set()
        slow.result(TIMEOUT_S)


def test_letting_go_keeps_what_the_row_has_to_know():
    """Version, position and count of the memory, so that listings of a cold tenant are right; readers see it ended."""
    catalog, _ = catalog_of(row("acme"))
    memory = catalog.memory("acme")
    memory.version, memory.next_seq = 8, 20
    assert catalog.let_go("acme")
    resident = catalog.resident("acme")
    assert (resident.row.version, resident.row.next_seq, resident.residency) == (8, 20, Residency.COLD)
    assert not catalog.is_current("acme", memory)
    assert catalog.memory("acme") is not memory
    assert not catalog.let_go("nobody")


def test_a_memory_loaded_beside_a_restore_is_not_believed():
    """The writer puts another memory while a reader loads: the reader gets the writer's."""
    catalog, disk = catalog_of(row("acme"))
    disk.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(catalog.memory, "acme")
        assert disk.begun.wait(TIMEOUT_S)
        restored = row("acme", version=7)
        put = memory_of(restored)
        catalog.put(restored, put)
        disk.gate.set()
        assert reader.result(TIMEOUT_S) is put
    assert catalog.resident("acme").memory is put


def test_a_tenant_deleted_while_it_wakes_is_not_found():
    catalog, disk = catalog_of(row("acme"))
    disk.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(catalog.memory, "acme")
        assert disk.begun.wait(TIMEOUT_S)
        catalog.remove("acme")
        disk.gate.set()
        with pytest.raises(NotFound):
            reader.result(TIMEOUT_S)


def test_a_damaged_tenant_is_quarantined_until_it_is_restored():
    """Refused with its reason by whoever asks, without reading it again; others are served; `put` is the cure."""
    catalog, disk = catalog_of(row("acme"), row("globex"))
    disk.damage = "fact 4 does not open"
    for _ in range(2):
        with pytest.raises(TenantQuarantined, match="fact 4 does not open"):
            catalog.memory("acme")
    assert disk.loads == ["acme"]
    assert catalog.resident("acme").summary().residency is Residency.QUARANTINED
    disk.damage = None
    catalog.memory("globex")
    catalog.put(row("acme", version=4), cured := memory_of(row("acme", version=4)))
    assert catalog.memory("acme") is cured


def test_damage_of_an_earlier_tenant_of_that_name_is_not_held_against_the_new_one():
    catalog, _ = catalog_of(row("acme", uid="b" * 32))
    catalog.quarantine("acme", "a" * 32, "old damage")
    catalog.quarantine("nobody", "a" * 32, "old damage")
    catalog.memory("acme")
    catalog.quarantine("acme", "b" * 32, "new damage")
    with pytest.raises(TenantQuarantined, match="new damage"):
        catalog.memory("acme")
