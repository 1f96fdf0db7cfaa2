"""Damaged data through the engine: one tenant is refused, the others are served, the doctor names a cure that works."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from memory_actor.errors import CheckpointDamaged, LedgerFailed, StorageFull, TenantQuarantined
from memory_actor.types import ReadMode, Residency
from tests.engine_fixtures import TIMEOUT_S, Engines, create, encoding, forget, fresh, seen, together, write
from tests.memory_fixtures import Bench, once, texts_of, unit_keys

FLIPS = {
    "words": "UPDATE fact SET words = zeroblob(length(words)) WHERE tenant = 'acme' AND seq = 4",
    "vectors": "UPDATE fact SET vectors = substr(vectors, 1, 40) || x'00' || substr(vectors, 42) "
    "WHERE tenant = 'acme' AND seq = 4",
    "a plain column": "UPDATE fact SET supersedes = 'f_00001' WHERE tenant = 'acme' AND seq = 4",
    "another's key": "UPDATE fact SET key_id = key_id + 1 WHERE tenant = 'acme' AND seq = 4",
    "a lost row": "DELETE FROM fact WHERE tenant = 'acme' AND seq = 4",
    "a value that is no text": "UPDATE fact SET fact_id = CAST(x'ff' AS TEXT) WHERE tenant = 'acme' AND seq = 4",
}


REFUSED = {
    "recall": lambda e: e.recall("acme", unit_keys(1, 1), ReadMode.SNAP, 0),
    "write": lambda e: write(e, 20, 1),
    "forget": lambda e: forget(e, ["f_00001"]),
    "verify": lambda e: e.verify("acme"),
    "summary": lambda e: e.summary("acme"),
    "facts": lambda e: e.facts("acme", 0, 5),
    "sleep": lambda e: e.sleep("acme"),
    "wake": lambda e: e.wake("acme"),
    "checkpoint": lambda e: e.checkpoint("acme", "local"),
}


@pytest.fixture
def engines(tmp_path) -> Iterator[Engines]:
    made = Engines.on_copy_of_empty_state(tmp_path / "state", erase_window_s=1e6)
    yield made
    made.close()


def edit(engines: Engines, statement: str) -> None:
    """Change the ledger file while no engine has it open."""
    with closing(sqlite3.connect(engines.path)) as connection, connection:
        assert connection.execute(statement).rowcount == 1


def damaged(engines: Engines, statement: str, *, checkpoint: bool = False):
    """An engine on a ledger with one damaged tenant, `acme`, and a sound one; with acme's ids, hash and checkpoint."""
    engine = engines.open()
    for name in ("acme", "globex"):
        create(engine, name)
        write(engine, 0, 9, name)
    info = engine.checkpoint("acme", "local") if checkpoint else None
    engine.close()
    edit(engines, statement)
    return engines.open(), info


@pytest.mark.parametrize(
    "change",
    ["ended = zeroblob(length(ended))", "uid = 'f' || substr(uid, 2) || 'f'", "tenant = 'acne'", "done_at = 1.0"],
)
def test_a_damaged_note_of_what_was_forgotten_lets_nothing_come_back(engines, change):
    """With it nobody knows what a checkpoint may still give back, so that none can be restored; the doctor says so."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 6)
    info = engine.checkpoint("acme", "local")
    forget(engine, ["f_00002"])
    engine.close()
    edit(engines, f"UPDATE erase_task SET {change}")  # noqa: S608 - constants

    engine = engines.open()

    with pytest.raises(CheckpointDamaged, match="forgotten is damaged"):
        engine.grant("acme", info.checkpoint_id)
    assert any("erasure" in finding.what for finding in engine.doctor(None))


@pytest.mark.parametrize("harm", FLIPS)
def test_a_damaged_row_quarantines_its_tenant_alone(engines, harm):
    """Found when it wakes: every verb but the cures is refused with 503 and the reason; the status tells; the other
    tenant goes on; nothing was changed; a restart finds the same."""
    engine, _ = damaged(engines, FLIPS[harm])
    for _ in range(2):
        for verb, call in REFUSED.items():
            with pytest.raises(TenantQuarantined) as refused:
                call(engine)
            assert type(refused.value) is TenantQuarantined, verb
        ((name, reason),) = engine.status().quarantined
        assert (name, reason) == ("acme", refused.value.args[1])
        assert {one.name: one.residency for one in engine.summaries()}["acme"] is Residency.QUARANTINED
        assert engine.verify("globex").identical
        engine = engines.reopen(engine)
    assert engine.status().quarantined == ()  # not looked at yet


@pytest.mark.parametrize("harm", FLIPS)
def test_the_doctor_names_the_place_and_a_cure_that_works(engines, harm):
    """Restored in place from the checkpoint it names, the tenant is as it was; the others were never touched."""
    engine, info = damaged(engines, FLIPS[harm], checkpoint=True)
    assert [finding.tenant for finding in engine.doctor("globex")] == []
    (finding,) = engine.doctor(None)
    assert (finding.code, finding.severity, finding.tenant) == ("tenant_damaged", "error", "acme")
    if harm not in {"a lost row", "a value that is no text"}:
        assert "position 4" in finding.what
    assert info.checkpoint_id in finding.safe
    assert f"--checkpoint {info.checkpoint_id} --in-place" in finding.cure
    with pytest.raises(TenantQuarantined):
        engine.verify("acme")
    grant = engine.grant("acme", info.checkpoint_id)
    reply = engine.restore("acme", grant, None, True, once(fresh())).result(TIMEOUT_S)
    assert reply.state_hash == info.state_hash
    assert engine.status().quarantined == ()
    assert engine.verify("acme").identical
    assert write(engine, 30, 1).version == 3
    engine.erase_now()
    assert engine.doctor(None) == []


def test_deleting_is_a_cure_too(engines):
    engine, _ = damaged(engines, FLIPS["words"])
    with pytest.raises(TenantQuarantined):
        engine.verify("acme")
    engine.delete_tenant("acme", once(fresh())).result(TIMEOUT_S)
    create(engine)
    assert engine.summary("acme").state_hash == Bench.new().hash
    assert engine.status().quarantined == ()


def test_a_damaged_tenant_row_is_known_from_the_start(engines):
    """It is not taken for unknown: its name is not given away, it is refused, and can be copied and deleted."""
    engine, info = damaged(engines, "UPDATE tenant SET version = 7 WHERE name = 'acme'", checkpoint=True)
    assert [name for name, _ in engine.status().quarantined] == ["acme"]
    with pytest.raises(TenantQuarantined):
        engine.verify("acme")
    (finding,) = engine.doctor("acme")
    assert finding.code == "tenant_row_damaged"
    copy = engine.restore("copy", engine.grant("acme", None), None, False, once(fresh())).result(TIMEOUT_S)
    assert copy.state_hash == info.state_hash
    with pytest.raises(TenantQuarantined):
        engine.restore("acme", engine.grant("acme", None), None, True, once(fresh())).result(TIMEOUT_S)
    engine.delete_tenant("acme", once(fresh())).result(TIMEOUT_S)
    assert [one.name for one in engine.summaries()] == ["copy", "globex"]
    assert engine.verify("copy").identical


def test_damage_that_shows_while_it_is_hot_quarantines(engines):
    """A forget that needs the damaged row is refused, with nothing changed; so is the next read."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    connection = engine._ledger._connection
    connection.exec_driver_sql("UPDATE fact SET vectors = zeroblob(length(vectors)) WHERE seq = 2")
    connection.commit()
    assert seen(engine, 3)  # memory does not need it
    with pytest.raises(TenantQuarantined, match="does not open"):
        forget(engine, ["f_00002"])
    with pytest.raises(TenantQuarantined):
        seen(engine, 1)
    assert engine._ledger.tenant_row("acme").version == 1


def test_a_row_lost_under_a_hot_tenant_ends_no_reader_in_a_loop(engines):
    """The sums of a frozen shard come from the ledger: a row that is missing there is damage, not a change."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 12)  # a full shard, frozen, and one with room
    connection = engine._ledger._connection
    connection.exec_driver_sql("DELETE FROM fact WHERE seq = 2")
    connection.commit()
    with pytest.raises(TenantQuarantined, match="11 of its 12 facts"):
        engine.recall("acme", unit_keys(1, 1), ReadMode.SNAP, 0)


def test_a_tenant_without_its_key_is_refused_and_others_of_the_commit_are_not(engines):
    """The vault lost a tenant's key: writes of one commit to it and to another: one refused, one stored."""
    engine = engines.open()
    for name in ("acme", "globex"):
        create(engine, name)
        write(engine, 0, 2, name)
    engine._ledger.vault.destroy_tenant(engine._catalog.resident("acme").uid)
    engine._ledger._key_store.drop([engine._catalog.resident("acme").uid])
    refused, stored = together(
        engine,
        lambda: [engine.write(name, texts_of(1, 9), encoding(9, 1), once(fresh())) for name in ("acme", "globex")],
    )
    assert isinstance(refused.exception(), TenantQuarantined)
    assert stored.result().version == 2
    assert [name for name, _ in engine.status().quarantined] == ["acme"]


# -- the disk ---------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_what_adds_and_nothing_else(engines):
    """One commit of a write, a forget and a dry run: the write is refused with 507, the others go on; and so do
    later ones when there is room again."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 4)
    engine._ledger._reserve_bytes = 1 << 60
    wrote, forgot = together_without_creating(engine)
    assert isinstance(wrote.exception(), StorageFull)
    assert forgot.result().forgotten == ("f_00001",)
    assert any(finding.code == "storage_full" for finding in engine.doctor(None))
    engine._ledger._reserve_bytes = 0
    assert write(engine, 5, 1).version == 3


def together_without_creating(engine) -> list:
    """A write and a forget in one commit. (`together` would create a tenant to keep the writer busy.)"""
    futures = []

    def both() -> None:
        futures.append(engine.write("acme", texts_of(1, 9), encoding(9, 1), once(fresh())))
        futures.append(engine.forget("acme", ["f_00001"], once(fresh(), endpoint="forget")))

    engine._between_commits(both)
    return futures


def test_a_storage_error_of_the_eraser_ends_the_process(engines):
    """As one of the writer does: later work is refused, whoever opens the files next goes on with the erasure."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    receipt_id = forget(engine, ["f_00001"]).receipt_id
    vault = engine._ledger.vault
    vault._connection.exec_driver_sql("PRAGMA query_only = ON")
    vault._connection.rollback()
    with pytest.raises(LedgerFailed):
        engine.erase_now()
    assert [type(one) for one in engines.poisons] == [LedgerFailed]
    engines.poisons.clear()
    with pytest.raises(LedgerFailed):
        write(engine, 5, 1)
    engine = engines.reopen(engine)
    engine.erase_now()
    assert engine.erasure(receipt_id).receipt is not None
