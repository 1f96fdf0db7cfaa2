"""What every ledger engine owes to what is forgotten, kept in checkpoints, restored, or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from memory_actor import crash_points
from memory_actor.effects import Erasure, FactsWritten, StoredFact, TenantCreated, TenantDeleted, TenantRestored
from memory_actor.errors import Fenced, LedgerFailed, StorageFull
from memory_actor.ledger import Ledger, LedgerEntry, TenantDamaged
from memory_actor.ledger_schema import checkpoint, erase_task, fact, idempotency, tenant
from memory_actor.types import CheckpointInfo, Retention
from tests.ledger_engines import ENGINES, Engine
from tests.ledger_samples import created, forgotten, make_fact, plain, written
from tests.ledger_samples import idempotency as given


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return ENGINES[request.param](tmp_path)


@pytest.fixture
def ledger(engine: Engine) -> Iterator[Ledger]:
    with engine.open() as opened:
        yield opened


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(20260103)


@pytest.fixture
def hook() -> Iterator[Callable[[Callable[[str], None]], None]]:
    yield crash_points.install
    crash_points.install(None)


def ids(*facts: StoredFact) -> tuple[str, ...]:
    return tuple(fact.fact_id for fact in facts)


def key_ids(ledger: Ledger, name: str) -> dict[str, int]:
    """The data key of each stored fact of a tenant."""
    with ledger._connection.begin():
        rows = ledger._connection.execute(sa.select(fact.c.fact_id, fact.c.key_id).where(fact.c.tenant == name)).all()
    return dict(rows)  # type: ignore[arg-type]


def uid_of(ledger: Ledger, name: str) -> str:
    row = ledger.tenant_row(name)
    assert row is not None
    return row.uid


def restored(
    name: str, version: int, *facts: StoredFact, created: TenantCreated | None = None, receipt: str | None = None
) -> LedgerEntry:
    erasure = None if receipt is None else Erasure(receipt, 100.0)
    return LedgerEntry(TenantRestored(name, version, facts, created, erasure), None, b"")


def info_of(number: int, uid: str, name: str = "acme") -> CheckpointInfo:
    return CheckpointInfo(
        f"c_{number}", name, uid, "local", number, 3, 4096, "ab" * 32, number, "cd" * 32, float(number)
    )


# -- versions and counts ----------------------------------------------------------------------------------------


def test_facts_know_the_version_that_wrote_them(ledger: Ledger, draw: np.random.Generator):
    """Each fact comes back with the version of its write; a restored one with the version it had."""
    first, second, third = (make_fact(seq, draw) for seq in (1, 2, 3))
    ledger.commit([created("acme"), written("acme", 4, first), written("acme", 7, second, third)], 5.0)
    assert [one.version for one in ledger.facts("acme")] == [4, 7, 7]
    begin = created("copy").effect
    assert isinstance(begin, TenantCreated)
    ledger.commit([restored("copy", 9, replace(first, version=4), replace(second, version=0), created=begin)], 6.0)
    assert [one.version for one in ledger.facts("copy")] == [4, 0]


def test_the_tenants_row_counts_its_live_facts(ledger: Ledger, draw: np.random.Generator):
    """After writes, supersedes, forgets and a restore the row's count is the number of facts; live_ids lists them."""
    facts = [make_fact(seq, draw) for seq in range(1, 7)]
    steps = [
        (written("acme", 1, *facts[:4]), facts[:4]),
        (written("acme", 2, facts[4], forgotten=ids(facts[0])), facts[1:5]),
        (forgotten("acme", 3, *ids(*facts[1:3])), facts[3:5]),
        (restored("acme", 4, replace(facts[5], seq=8)), [replace(facts[5], seq=8)]),
    ]
    ledger.commit([created("acme")], 5.0)
    for entry, live in steps:
        ledger.commit([entry], 6.0)
        row = ledger.tenant_row("acme")
        assert row is not None
        assert row.facts == len(live)
        assert ledger.live_ids("acme") == [(one.fact_id, one.seq) for one in live]
    assert ledger.live_ids("nobody") == []
    assert ledger.tenant_row("nobody") is None


# -- erasures ---------------------------------------------------------------------------------------------------


def test_what_ends_is_noted_in_the_same_commit(engine: Engine, draw: np.random.Generator):
    """Forget, supersede, restore in place and the end of a tenant each leave an erasure with the ids of facts and
    keys; it survives a restart, in the order of the commits."""
    facts = [make_fact(seq, draw) for seq in range(1, 6)]
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *facts[:4])], 5.0)
        uid, keys = uid_of(ledger, "acme"), key_ids(ledger, "acme")
        ledger.commit([forgotten("acme", 2, *ids(*facts[:2]), receipt="r_1")], 6.0)
        ledger.commit(
            [LedgerEntry(FactsWritten("acme", 3, (facts[4],), ids(facts[2]), Erasure("r_2", 101.0)), None, b"")], 7.0
        )
        keys |= key_ids(ledger, "acme")
        kept = replace(facts[3], seq=6)
        ledger.commit([restored("acme", 4, kept, receipt="r_3")], 8.0)
        last = key_ids(ledger, "acme")
        ledger.commit([LedgerEntry(TenantDeleted("acme", Erasure("r_4", 103.0)), None, b"")], 9.0)
    with engine.open() as ledger:
        pending = ledger.erasures()
        assert [(row.position, row.receipt_id, row.kind) for row in pending] == [
            (1, "r_1", "forget"),
            (2, "r_2", "supersede"),
            (3, "r_3", "restore"),
            (4, "r_4", "tenant"),
        ]
        assert {(row.tenant, row.uid, row.done_at, row.receipt) for row in pending} == {("acme", uid, None, None)}
        assert [set(row.fact_ids) for row in pending] == [
            set(ids(*facts[:2])),
            set(ids(facts[2])),
            set(ids(facts[4])),  # the other one stays, under a new key
            set(ids(facts[3])),
        ]
        assert [set(row.key_ids) for row in pending] == [
            {keys[one] for one in ids(*facts[:2])},
            {keys[one] for one in ids(facts[2])},
            {keys[one] for one in ids(*facts[3:5])},
            set(last.values()),
        ]
        assert [row.facts for row in pending] == [2, 1, 1, 1]
        first = pending[0]
        assert (first.requested_at, first.erase_by) == (6.0, 100.0)
        assert (first.state_hash_before, first.state_hash_after) == ("before r_1", "after r_1")
        assert ledger.erasure("r_1") == first
        assert ledger.erasure("r_9") is None


def test_a_completed_erasure_keeps_its_receipt_and_no_ids(engine: Engine, draw: np.random.Generator):
    """It leaves the pending ones, its ids are gone, its receipt stays; completing it again changes nothing."""
    facts = [make_fact(seq, draw) for seq in (1, 2)]
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *facts)], 5.0)
        ledger.commit([forgotten("acme", 2, facts[0].fact_id, receipt="r_1")], 6.0)
        ledger.commit([forgotten("acme", 3, facts[1].fact_id, receipt="r_2")], 7.0)
        ledger.complete_erasure("r_1", '{"receipt":1}', 8.0)
        ledger.complete_erasure("r_1", "another", 9.0)
    with engine.open() as ledger:
        done, pending = ledger.erasures(pending_only=False)
        assert ledger.erasures() == [pending]
        assert (done.receipt_id, done.receipt, done.done_at) == ("r_1", '{"receipt":1}', 8.0)
        assert (done.fact_ids, done.key_ids, done.facts) == ((), (), 1)
        assert ledger.audit_chain_ok()


def test_a_group_that_is_not_stored_leaves_no_erasure(engine: Engine, draw: np.random.Generator):
    """The erasure of a forget is rolled back with it."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw))], 5.0)
        with pytest.raises(LedgerFailed):
            ledger.commit([forgotten("acme", 2, "fact-000001", receipt="r_1"), forgotten("acme", 3, "unknown")], 6.0)
    with engine.open() as ledger:
        assert ledger.erasures() == []
        assert len(ledger.facts("acme")) == 1


def test_destroyed_keys_end_what_they_sealed(ledger: Ledger, draw: np.random.Generator):
    """With the key of a forgotten fact destroyed and the log scrubbed, the others are read as before."""
    facts = [make_fact(seq, draw) for seq in range(1, 5)]
    ledger.commit([created("acme"), written("acme", 1, *facts)], 5.0)
    ledger.commit([forgotten("acme", 2, *ids(*facts[:2]), receipt="r_1")], 6.0)
    (row,) = ledger.erasures()
    assert ledger.vault.destroy(row.uid, row.key_ids) == 2
    ledger.scrub()
    assert [plain(one) for one in ledger.facts("acme")] == [plain(one) for one in facts[2:]]


# -- restores ---------------------------------------------------------------------------------------------------


def test_a_restore_replaces_everything(engine: Engine, draw: np.random.Generator):
    """In place or as a new tenant, afterwards the facts are those restored, tags included, and writing goes on."""
    facts = [make_fact(seq, draw, tags=(f"t{seq}",)) for seq in range(1, 5)]
    moved = [replace(facts[0], seq=10), replace(facts[2], seq=11)]
    begin = created("copy").effect
    assert isinstance(begin, TenantCreated)
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *facts)], 5.0)
        ledger.commit([restored("acme", 2, *moved), restored("copy", 3, *facts[:2], created=begin)], 6.0)
    with engine.open() as ledger:
        assert [plain(one) for one in ledger.facts("acme")] == [plain(one) for one in moved]
        assert [plain(one) for one in ledger.facts("copy")] == [plain(one) for one in facts[:2]]
        assert [one.fact_id for one in ledger.select_ids("acme", tags=["t1"])] == [facts[0].fact_id]
        assert ledger.select_ids("acme", tags=["t2"]) == []
        acme, copy = ledger.tenants()
        assert (acme.version, acme.next_seq, acme.facts) == (2, 12, 2)
        assert (copy.version, copy.next_seq, copy.facts, copy.uid) == (3, 3, 2, begin.uid)
        ledger.commit([written("acme", 3, make_fact(12, draw)), written("copy", 4, make_fact(3, draw))], 7.0)
        assert ledger.audit_chain_ok()


# -- checkpoints ------------------------------------------------------------------------------------------------


def test_checkpoints_are_registered_replaced_and_removed(engine: Engine):
    """What is registered comes back to the field, of one incarnation or of all, oldest first, also after a restart."""
    ones = [info_of(number, f"{number % 2:032x}") for number in range(1, 6)]
    with engine.open() as ledger:
        for info in reversed(ones):
            ledger.add_checkpoint(info)
        assert ledger.checkpoints() == ones
        assert ledger.checkpoints(f"{1:032x}") == ones[::2]
        newer = replace(ones[1], checkpoint_id="c_new", key_id=99, manifest_sha256="ef" * 32)
        ledger.add_checkpoint(newer, replaces=ones[1].checkpoint_id)
        ledger.remove_checkpoints([ones[3].checkpoint_id, "c_unknown"])
        ledger.remove_checkpoints([])
    with engine.open() as ledger:
        assert ledger.checkpoints() == [ones[0], newer, ones[2], ones[4]]
        assert ledger.damaged_registrations() == []


def test_a_fenced_ledger_registers_nothing(engine: Engine, draw: np.random.Generator):
    """Once another incarnation has a newer epoch, every kind of change is refused, not only commits."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw), key="k")], 5.0)
        ledger.commit([forgotten("acme", 2, "fact-000001", receipt="r_1")], 6.0)
        engine.usurp(ledger)
        for change in (
            lambda: ledger.complete_erasure("r_1", "receipt", 7.0),
            lambda: ledger.add_checkpoint(info_of(1, "0" * 32)),
            lambda: ledger.remove_checkpoints(["c_1"]),
            lambda: ledger.prune_idempotency(99.0),
        ):
            with pytest.raises(Fenced):
                change()
    with engine.open() as ledger:
        assert len(ledger.erasures()) == 1
        assert ledger.checkpoints() == []
        assert ledger.idempotent_reply("acme", given("k")) is not None


# -- damage -----------------------------------------------------------------------------------------------------


def of_acme(seq: int) -> Any:
    return sa.and_(fact.c.tenant == "acme", fact.c.seq == seq)


DAMAGE = {
    "sealed words": sa.update(fact).where(of_acme(2)).values(words=b"\0" * 60),
    "sealed vectors": sa.update(fact).where(of_acme(2)).values(vectors=b"\0" * 200),
    "too short": sa.update(fact).where(of_acme(2)).values(words=b"", vectors=b""),
    "a time": sa.update(fact).where(of_acme(2)).values(created_at=1.5),
    "an id": sa.update(fact).where(of_acme(2)).values(fact_id="fact-000009"),
    "a version": sa.update(fact).where(of_acme(2)).values(version=9),
    "a link": sa.update(fact).where(of_acme(2)).values(supersedes="fact-000001"),
    "no link": sa.update(fact).where(of_acme(3)).values(supersedes=None),
    "another key": sa.update(fact).where(of_acme(2)).values(key_id=fact.c.key_id + 1),
    "a key that never was": sa.update(fact).where(of_acme(2)).values(key_id=10**9),
    "a lost row": sa.delete(fact).where(of_acme(2)),
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_fact_is_its_tenants_damage(engine: Engine, draw: np.random.Generator, harm: str):
    """Every change to a row is found when it is read and named with its tenant; the other tenant reads as before."""
    facts = [make_fact(seq, draw, supersedes="fact-000042" if seq == 3 else None) for seq in (1, 2, 3)]
    with engine.open() as ledger:
        ledger.commit(
            [created("acme"), created("globex"), written("acme", 1, *facts), written("globex", 1, *facts)], 5.0
        )
    with engine.open() as ledger:
        engine.tamper(ledger, DAMAGE[harm])
        with pytest.raises(TenantDamaged) as caught:
            ledger.facts("acme")
        assert caught.value.args[0] == "acme"
        assert caught.value.http_status == 503
        assert [plain(one) for one in ledger.facts("globex")] == [plain(one) for one in facts]
        ledger.commit([written("globex", 2, make_fact(4, draw))], 6.0)
        assert [row.name for row in ledger.tenants()] == ["acme", "globex"]


def test_a_lost_row_is_missed_by_live_ids(engine: Engine, draw: np.random.Generator):
    """Without opening anything, the ids alone tell that one is missing."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *(make_fact(seq, draw) for seq in (1, 2)))], 5.0)
        engine.tamper(ledger, sa.delete(fact).where(of_acme(1)))
        with pytest.raises(TenantDamaged, match="1 of its 2 facts"):
            ledger.live_ids("acme")


def test_values_of_one_row_do_not_open_in_another(engine: Engine, draw: np.random.Generator):
    """Words and vectors of one fact moved to another one's row, with their key, are damage: nothing is mixed up."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *(make_fact(seq, draw) for seq in (1, 2)))], 5.0)
        other = {name: sa.select(fact.c[name]).where(of_acme(1)).scalar_subquery() for name in ("words", "vectors")}
        engine.tamper(
            ledger, sa.update(fact).where(of_acme(2)).values(**other, key_id=key_ids(ledger, "acme")["fact-000001"])
        )
        assert [one.seq for one in ledger.facts("acme", limit=1)] == [1]
        with pytest.raises(TenantDamaged, match="fact 2"):
            ledger.facts("acme", after_seq=1)


def test_a_damaged_tenant_row_hides_no_other(engine: Engine, draw: np.random.Generator):
    """The tenant is listed as damaged and refused by name; others are listed; it can be deleted and begun anew."""
    with engine.open() as ledger:
        for name in ("acme", "globex"):
            ledger.commit([created(name), written(name, 1, make_fact(1, draw))], 5.0)
        uid = uid_of(ledger, "acme")
    with engine.open() as ledger:
        engine.tamper(ledger, sa.update(tenant).where(tenant.c.name == "acme").values(next_seq=77))
        assert [row.name for row in ledger.tenants()] == ["globex"]
        assert [damage.args[0] for damage in ledger.damaged_tenants()] == ["acme"]
        for read in (ledger.tenant_row, ledger.facts, ledger.live_ids, ledger.select_ids):
            with pytest.raises(TenantDamaged, match="acme"):
                read("acme")
        with pytest.raises(TenantDamaged):
            ledger.commit([written("acme", 2, make_fact(2, draw))], 6.0)
        end = LedgerEntry(TenantDeleted("acme", Erasure("r_1", 99.0)), None, b"")
        ledger.commit([end, created("acme"), written("acme", 1, make_fact(1, draw))], 7.0)
        assert ledger.damaged_tenants() == []
        assert uid_of(ledger, "acme") != uid
        (row,) = ledger.erasures()
        assert (row.uid, row.kind, row.fact_ids, len(row.key_ids)) == (uid, "tenant", ("fact-000001",), 1)


def test_damaged_registrations_are_reported(engine: Engine, draw: np.random.Generator):
    """A changed erasure or checkpoint is left out of the lists and named with its tenant; the rest is listed."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *(make_fact(seq, draw) for seq in (1, 2)))], 5.0)
        for number in (1, 2):
            ledger.commit([forgotten("acme", 1 + number, f"fact-{number:06d}", receipt=f"r_{number}")], 6.0)
            ledger.add_checkpoint(info_of(number, "0" * 32))
        engine.tamper(ledger, sa.update(erase_task).where(erase_task.c.position == 1).values(facts=5))
        engine.tamper(ledger, sa.update(checkpoint).where(checkpoint.c.version == 2).values(bytes=1))
        assert [row.receipt_id for row in ledger.erasures()] == ["r_2"]
        assert ledger.checkpoints() == [info_of(1, "0" * 32)]
        assert [damage.args[0] for damage in ledger.damaged_registrations()] == ["acme", "acme"]
        with pytest.raises(TenantDamaged):
            ledger.erasure("r_1")


def test_a_damaged_reply_is_its_tenants_damage(engine: Engine, draw: np.random.Generator):
    """A stored reply that was changed is never repeated to a caller."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw), key="k")], 5.0)
        engine.tamper(ledger, sa.update(idempotency).values(reply=b"another reply"))
        with pytest.raises(TenantDamaged, match="acme"):
            ledger.idempotent_reply("acme", given("k"))


def test_an_erased_tenants_key_refuses_its_writes_alone(ledger: Ledger, draw: np.random.Generator):
    """Where the vault has no key for a tenant, a group that writes to it is refused before it begins; others go on."""
    ledger.commit([created("acme", Retention.LATENT), created("globex")], 5.0)
    ledger.vault.destroy_tenant(uid_of(ledger, "acme"))
    with pytest.raises(TenantDamaged, match="acme"):
        ledger.commit([written("globex", 1, make_fact(1, draw)), written("acme", 1, make_fact(1, draw))], 6.0)
    ledger.commit([written("globex", 1, make_fact(1, draw))], 7.0)
    assert len(ledger.facts("globex")) == 1


# -- keys first, then the rows ----------------------------------------------------------------------------------


def test_a_commit_passes_its_crash_points_in_order(ledger: Ledger, draw: np.random.Generator, hook: Any):
    """Keys are durable before the transaction of the rows begins; the engine applies after it has ended."""
    ledger.commit([created("acme")], 5.0)
    passed: list[str] = []
    hook(passed.append)
    ledger.commit([written("acme", 1, make_fact(1, draw))], 6.0)
    ledger.scrub()
    hook(None)
    assert passed == [
        "keys.before_commit",
        "keys.after_commit",
        "log.before_begin",
        "log.rows_written",
        "log.after_commit_before_apply",
        "truncate.before",
        "truncate.after",
    ]


@pytest.mark.parametrize(
    ("point", "stored"),
    [
        ("keys.before_commit", False),
        ("keys.after_commit", False),
        ("log.before_begin", False),
        ("log.rows_written", False),
        ("log.after_commit_before_apply", True),
    ],
)
def test_an_error_of_the_disk_stops_the_ledger(
    engine: Engine, draw: np.random.Generator, hook: Any, point: str, stored: bool
):
    """Wherever in a commit it strikes, no later one is taken; the next incarnation finds all of the group or none."""

    def strike(name: str) -> None:
        if name == point:
            raise OSError(5, "Input/output error")

    with engine.open() as ledger:
        ledger.commit([created("acme")], 5.0)
        hook(strike)
        with pytest.raises(LedgerFailed, match="Input/output error"):
            ledger.commit([written("acme", 1, make_fact(1, draw), key="k")], 6.0)
        hook(None)
        for change in (
            lambda: ledger.commit([written("acme", 1, make_fact(1, draw))], 7.0),
            lambda: ledger.complete_erasure("r_1", "", 7.0),
            ledger.scrub,
        ):
            with pytest.raises(LedgerFailed, match="Input/output error"):
                change()
    with engine.open() as ledger:
        assert len(ledger.facts("acme")) == int(stored)
        assert (ledger.idempotent_reply("acme", given("k")) is not None) == stored
        assert ledger.audit_chain_ok()


def test_no_key_seals_two_facts(ledger: Ledger, draw: np.random.Generator):
    """Over many groups of random size, with keys kept in store in between, each fact has a key of its own."""
    ledger.commit([created("acme"), created("globex")], 5.0)
    seqs = {"acme": 1, "globex": 1}
    for version in range(1, 41):
        entries = []
        for name, seq in seqs.items():
            facts = [make_fact(seq + i, draw) for i in range(int(draw.integers(0, 6)))]
            entries.append(written(name, version, *facts))
            seqs[name] = seq + len(facts)
        ledger.commit(entries, 6.0)
    used = [key for name in seqs for key in key_ids(ledger, name).values()]
    assert len(used) == len(set(used)) == sum(seqs.values()) - 2
    assert all(len(ledger.facts(name)) == seqs[name] - 1 for name in seqs)


def test_room_is_kept_for_forgetting(engine: Engine, draw: np.random.Generator):
    """With less room than the reserve, what adds facts is refused whole; forgets, ends and erasures go on; when there
    is room again, so do writes. A server does not tell its room, and nothing is refused."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *(make_fact(seq, draw) for seq in (1, 2)))], 5.0)
        free = ledger._opened.free_bytes()
        ledger._reserve_bytes = 1 << 62
        if free is None:
            ledger.commit([written("acme", 2, make_fact(3, draw))], 6.0)
            return
        both = [forgotten("acme", 2, "fact-000001"), written("acme", 3, make_fact(3, draw))]
        for attempt in (lambda: ledger.commit(both, 6.0), ledger.require_space):
            with pytest.raises(StorageFull, match="kept for forgetting"):
                attempt()
        assert len(ledger.facts("acme")) == 2
        ledger.commit([forgotten("acme", 2, "fact-000001", receipt="r_1"), created("globex")], 7.0)
        ledger.complete_erasure("r_1", "receipt", 8.0)
        ledger.scrub()
        ledger._reserve_bytes = 0
        ledger.commit([written("acme", 3, make_fact(3, draw))], 9.0)
        assert [one.seq for one in ledger.facts("acme")] == [2, 3]
