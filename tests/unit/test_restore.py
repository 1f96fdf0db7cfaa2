"""Checkpoints and restores through the engine: same ids, same hash; gone stays gone; refusals change nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from memory_actor import crash_points
from memory_actor.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointUnreadable,
    IdempotencyKeyReused,
    InvalidLocation,
    NotFound,
    TenantExists,
)
from memory_actor.types import CheckpointGrant, ErasureState, ReadMode, RestoreReply
from tests.engine_fixtures import TIMEOUT_S, Engines, create, forget, fresh, seen, together, write
from tests.memory_fixtures import SMALL, Bench, encoded_facts, integer_sums, once, sign_latents, texts_of, unit_keys


@pytest.fixture
def engines(tmp_path) -> Iterator[Engines]:
    made = Engines.on_copy_of_empty_state(tmp_path / "state", erase_window_s=1e6)
    yield made
    made.close()


def restore(
    engine, name: str, grant: CheckpointGrant | None, version: int | None = None, *, in_place: bool = False, key=None
) -> RestoreReply:
    idempotency = key or once(fresh(), endpoint="restore")
    return engine.restore(name, grant, version, in_place, idempotency).result(TIMEOUT_S)


def hash_of(*numbers: int) -> str:
    """The hash of a tenant that only ever wrote these facts, made apart from any engine."""
    bench, count = Bench.new(), max(numbers, default=0) + 1
    given = encoded_facts(unit_keys(1, count)[list(numbers)], sign_latents(2, count)[list(numbers)])
    if numbers:
        bench.write([texts_of(count)[i] for i in numbers], given, [f"f_{i + 1:05d}" for i in numbers])
    return bench.hash


# -- into a new tenant ------------------------------------------------------------------------------------------


def test_a_new_tenant_is_the_old_one_to_the_bit(engines):
    """Ids, words, sums, hash and readouts; now and after a restart; the source goes on alone."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 20, tags=("t",))
    source = engine.summary("acme")
    grant = engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id)
    reply = restore(engine, "copy", grant)
    assert (reply.facts, reply.version, reply.in_place, reply.replayed) == (20, 1, False, False)
    assert reply.state_hash == source.state_hash == engine.summary("copy").state_hash == hash_of(*range(20))
    assert seen(engine, 20, "copy") == seen(engine, 20)
    listed = engine.facts("copy", 0, 100)
    assert [(one.fact_id, one.prompt, one.tags) for one in listed.facts] == [
        (f"f_{i + 1:05d}", f"prompt {i}", ("t",)) for i in range(20)
    ]
    forget(engine, ["f_00003"])
    engine = engines.reopen(engine)
    assert engine.summary("copy").state_hash == reply.state_hash != engine.summary("acme").state_hash
    cov, cross = integer_sums(engine._ledger.facts("copy"))
    assert (engine.tenant("copy").total().cov.numpy() == cov).all()
    assert (engine.tenant("copy").total().cross.numpy() == cross).all()
    assert engine.verify("copy").identical


def test_a_restored_tenant_recognises_its_prompts(engines):
    """It has the salt of the source: a prompt written again supersedes, and `before` and tags find what they found."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 5)
    restore(engine, "copy", engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id))
    assert write(engine, 2, 1, "copy").superseded == ("f_00003",)


def test_a_restore_to_a_version_holds_what_was_there(engines):
    """Facts written up to it; those superseded or forgotten since do not come back."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)  # version 1: f_1 to f_3
    write(engine, 3, 3)  # version 2: f_4 to f_6
    forget(engine, ["f_00002"])  # version 3
    write(engine, 4, 1)  # version 4: f_7 supersedes f_5
    grant = engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id)
    kept = {1: (0, 2), 2: (0, 2, 3, 5), 3: (0, 2, 3, 5)}
    for version, numbers in kept.items():
        reply = restore(engine, f"at-{version}", grant, version)
        assert (reply.version, reply.state_hash) == (version, hash_of(*numbers))
    assert restore(engine, "at-0", grant, 0).state_hash == Bench.new().hash
    with pytest.raises(CheckpointMismatch, match="version is 4, expected 5 or later"):
        restore(engine, "at-5", grant, 5)
    assert "at-5" not in [one.name for one in engine.summaries()]


def test_a_checkpoint_of_another_memory_actor_is_restored(engines, tmp_path):
    """By its grant alone, from a location that both have; the copy's checkpoints and erasures are its own."""
    shared = str(tmp_path / "shared")
    engines.settings = replace(engines.settings, locations={"shared": shared})
    other = Engines.on_copy_of_empty_state(tmp_path / "other", locations={"shared": shared}, erase_window_s=1e6)
    source, target = engines.open(), other.open()
    try:
        create(source)
        write(source, 0, 12)
        grant = source.grant("acme", source.checkpoint("acme", "shared").checkpoint_id)
        assert restore(target, "acme", grant).state_hash == source.summary("acme").state_hash
        source.delete_tenant("acme", once(fresh())).result(TIMEOUT_S)
        source.erase_now()
        assert target.verify("acme").identical
        with pytest.raises(CheckpointDamaged, match="missing"):
            restore(target, "again", grant)
    finally:
        other.close()


# -- in place ---------------------------------------------------------------------------------------------------


def test_in_place_a_tenant_goes_back_and_on(engines):
    """Later facts end; versions and positions go on; the erasure takes the keys of all that was stored before."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 12)
    info = engine.checkpoint("acme", "local")
    write(engine, 12, 5)
    reply = restore(engine, "acme", engine.grant("acme", info.checkpoint_id), in_place=True)
    assert (reply.facts, reply.version, reply.in_place) == (12, 3, True)
    assert reply.state_hash == info.state_hash == engine.summary("acme").state_hash
    assert [one.seq for one in engine.facts("acme", 0, 100).facts] == list(range(18, 30))
    assert write(engine, 12, 1).version == 4
    assert engine.status().pending_erasures == 1
    assert engine.erase_now() == 1
    live = (engine.summary("acme"), seen(engine, 17))
    engine = engines.reopen(engine)
    assert (engine.summary("acme"), seen(engine, 17)) == live
    assert engine.verify("acme").identical


def test_restoring_resurrects_nothing(engines):
    """Forgotten after the checkpoint: left out while its erasure is pending, and not in the checkpoint afterwards."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 6)
    old = engine.checkpoint("acme", "local")
    stale = engine.grant("acme", old.checkpoint_id)
    forget(engine, ["f_00002"])
    write(engine, 4, 1)  # supersedes f_5
    pending = restore(engine, "pending", engine.grant("acme", old.checkpoint_id))
    assert pending.state_hash == hash_of(0, 2, 3, 5)
    # A grant from before the forget knows of nothing: in place, the tenant's own ledger does.
    assert restore(engine, "acme", stale, in_place=True).state_hash == hash_of(0, 2, 3, 5)
    engine.erase_now()
    (rewritten,) = [one for one in engine.checkpoints("acme") if one.version == old.version]
    assert rewritten.checkpoint_id != old.checkpoint_id
    assert restore(engine, "after", engine.grant("acme", rewritten.checkpoint_id)).state_hash == hash_of(0, 2, 3, 5)
    with pytest.raises(NotFound):
        engine.grant("acme", old.checkpoint_id)
    for name, in_place in (("x", False), ("acme", True)):
        with pytest.raises(CheckpointDamaged, match="missing"):
            restore(engine, name, stale, in_place=in_place)


def test_an_erasure_between_reading_and_restoring_is_seen(engines):
    """The checkpoint was read, then its fact forgotten and erased, then the restore is carried out: it is refused."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    grant = engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id)
    read = engine._restorer.read

    def then_erased(*args):
        snapshot = read(*args)
        forget(engine, ["f_00001"])
        engine.erase_now()
        return snapshot

    engine._restorer.read = then_erased
    with pytest.raises(CheckpointUnreadable):
        restore(engine, "acme", grant, in_place=True)
    assert engine.summary("acme").state_hash == hash_of(1, 2)


def test_a_forget_of_the_same_commit_is_seen(engines):
    """Forget and restore in place in one commit: the forgotten fact does not come back; a write after it counts."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    grant = engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id)
    texts, encoded = texts_of(1, 7), encoded_facts(unit_keys(1, 8)[7:], sign_latents(2, 8)[7:])
    gone, restored, wrote = together(
        engine,
        lambda: [
            engine.forget("acme", ["f_00002"], once(fresh(), endpoint="forget")),
            engine.restore("acme", grant, None, True, once(fresh(), endpoint="restore")),
            engine.write("acme", texts, encoded, once(fresh())),
        ],
    )
    assert (gone.result().version, restored.result().version, wrote.result().version) == (2, 3, 4)
    assert restored.result().state_hash == hash_of(0, 2)
    assert engine.summary("acme").facts == 3
    before = engine.summary("acme").state_hash
    engine = engines.reopen(engine)
    assert engine.summary("acme").state_hash == before
    assert engine.verify("acme").identical


# -- refusals and retries ---------------------------------------------------------------------------------------


def test_refused_restores_change_nothing(engines):
    engine = engines.open()
    create(engine)
    create(engine, "globex")
    write(engine, 0, 4)
    grant = engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id)
    state = [engine.summary(name) for name in ("acme", "globex")]
    for error, call in (
        (TenantExists, lambda: restore(engine, "globex", grant)),
        (NotFound, lambda: restore(engine, "nobody", grant, in_place=True)),
        (CheckpointMismatch, lambda: restore(engine, "globex", grant, in_place=True)),
        (InvalidLocation, lambda: restore(engine, "x", replace(grant, info=replace(grant.info, location="moon")))),
        (CheckpointMismatch, lambda: restore(engine, "x", replace(grant, info=replace(grant.info, version=9)))),
        (NotFound, lambda: restore(engine, "x", None)),
        (NotFound, lambda: engine.grant("acme", "c_" + "0" * 26)),
        (InvalidLocation, lambda: engine.checkpoint("acme", "moon")),
        (NotFound, lambda: engine.checkpoint("nobody", "local")),
    ):
        with pytest.raises(error):
            call()
    assert [engine.summary(name) for name in ("acme", "globex")] == state
    assert [one.name for one in engine.summaries()] == ["acme", "globex"]


def test_another_bundle_is_refused(engines, tmp_path):
    """A checkpoint of another fingerprint names both."""
    shared = str(tmp_path / "shared")
    engines.settings = replace(engines.settings, locations={"shared": shared})
    engine = engines.open()
    create(engine)
    grant = engine.grant("acme", engine.checkpoint("acme", "shared").checkpoint_id)
    engine._checkpointing._config = replace(SMALL, fingerprint="beef")
    with pytest.raises(CheckpointMismatch, match=r"5a11.*beef"):
        restore(engine, "copy", grant)


def test_a_restore_is_idempotent_by_key(engines):
    """Its retry gets the first reply, marked, even when the checkpoint is gone by then; another body is refused."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 4)
    grant = engine.grant("acme", engine.checkpoint("acme", "local").checkpoint_id)
    first = restore(engine, "copy", grant, key=once("k", endpoint="restore"))
    forget(engine, ["f_00001"])
    engine.erase_now()
    for _ in range(2):
        again = restore(engine, "copy", None, key=once("k", endpoint="restore"))
        assert again == replace(first, replayed=True)
        engine = engines.reopen(engine)
    with pytest.raises(IdempotencyKeyReused):
        restore(engine, "copy", grant, key=once("k", 1, endpoint="restore"))


# -- the checkpoints themselves ---------------------------------------------------------------------------------


def test_the_newest_are_kept(engines):
    """Two per location; the files and the keys of older ones are gone."""
    engine = engines.open()
    create(engine)
    infos = []
    for i in range(4):
        write(engine, i, 1)
        infos.append(engine.checkpoint("acme", "local"))
    assert engine.checkpoints("acme") == infos[2:]
    assert len(list((engines.folder / "checkpoints").rglob("*.manifest.json"))) == 2
    assert engine._ledger.vault.data_keys(infos[0].uid, [infos[0].key_id]) == {}
    assert engine.grant("acme", None).info == infos[3]


def test_a_checkpoint_beside_writes_is_one_version(engines):
    """Taken while a writer goes on: its hash is that of its version, whichever it caught."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 1)
    stop, hashes = threading.Event(), {1: engine.summary("acme").state_hash}

    def writing() -> None:
        number = 1
        while not stop.is_set() and number < 200:
            reply = write(engine, number, 1)
            hashes[reply.version] = hash_of(*range(number + 1))
            number += 1

    thread = threading.Thread(target=writing)
    thread.start()
    try:
        taken = [engine.checkpoint("acme", "local") for _ in range(3)]
    finally:
        stop.set()
        thread.join(TIMEOUT_S)
    assert all(info.state_hash == hashes[info.version] for info in taken)


class Killed(BaseException):
    """Ends the process at a crash point, as far as the engine can tell."""


def erase_and_checkpoint(engine) -> None:
    """Passes the crash points of an erasure and then those of a checkpoint."""
    engine.erase_now()
    engine.checkpoint("acme", "local")


@pytest.mark.parametrize(
    "point", ["erase.after_key", "erase.after_checkpoints", "erase.mid_file_delete", "erase.before_done", "mark.before"]
)
def test_an_erasure_that_breaks_off_is_finished_by_the_next_process(engines, point):
    """Killed at each point of rewriting a checkpoint (here: an exception and a new engine): in the end one receipt, one
    checkpoint per old one, none with the fact, no file that nobody owns, and the tenant as it was."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 5)
    engine.checkpoint("acme", "local")
    receipt_id = forget(engine, ["f_00002"]).receipt_id
    state = engine.summary("acme").state_hash

    def kill(name: str) -> None:
        if name == point:
            raise Killed

    crash_points.install(kill)
    try:
        with pytest.raises(Killed):
            erase_and_checkpoint(engine)
    finally:
        crash_points.install(None)
    engine = engines.reopen(engine)
    write(engine, 9, 1)
    forget(engine, ["f_00006"])  # so that there is something to do in any case
    engine.erase_now()
    status = engine.erasure(receipt_id)
    assert status.state is ErasureState.DONE
    infos = engine.checkpoints("acme")
    for info in infos:
        assert restore(engine, f"copy-{info.checkpoint_id}"[:20], engine.grant("acme", info.checkpoint_id)).facts == 4
    names = {path.name.split(".")[0] for path in (engines.folder / "checkpoints" / infos[0].uid).iterdir()}
    assert names == {info.checkpoint_id for info in infos}
    assert engine.summary("acme").state_hash == state == hash_of(0, 2, 3, 4)
    assert engine.doctor(None) == []


def test_a_damaged_checkpoint_that_may_hold_a_forgotten_fact_is_deleted_and_told(engines):
    """Nobody can take the fact out of it. The tenant is as it was, and the status says what became of it."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 4)
    info = engine.checkpoint("acme", "local")
    (engines.folder / "checkpoints" / info.uid / info.checkpoint_id / "sums.arrow.sealed").write_bytes(b"rotten")
    forget(engine, ["f_00002"])
    assert engine.erase_now() == 1
    assert engine.checkpoints("acme") == []
    assert engine._ledger.vault.data_keys(info.uid, [info.key_id]) == {}
    (warning,) = engine.status().warnings
    assert info.checkpoint_id in warning
    assert "deleted" in warning
    assert engine.verify("acme").identical


def test_forgotten_bytes_are_gone_from_every_file(engines):
    """The sealed key of a forgotten fact is destroyed: no stored ciphertext of it opens, the row is gone, words were
    never readable; a query that only it could answer finds nothing."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    engine.sleep("acme")
    forget(engine, ["f_00002"])
    engine.erase_now()
    engine.close()
    stored = b"".join(path.read_bytes() for path in engines.folder.rglob("*") if path.is_file())
    for needle in (b"prompt 1", b"target 1", b"prompt 0"):  # an id may stay: in the reply to a repeated request
        assert needle not in stored, needle
    engine = engines.open()
    assert engine.recall("acme", unit_keys(1, 2)[1:], ReadMode.SNAP, 0).fact_id != "f_00002"
