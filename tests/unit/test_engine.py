"""The engine over a real SQLite ledger: restart equals live, replies are repeated, tenants come and go."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from memory_actor.engine import random_fact_id
from memory_actor.errors import (
    DeadlineExceeded,
    IdempotencyKeyReused,
    LedgerFailed,
    NotFound,
    StateFolderUnusable,
    TenantExists,
    VerifyConflict,
)
from memory_actor.types import FactText, ReadMode, Retention, Selector
from tests.engine_fixtures import TIMEOUT_S, Engines, create, encoding, forget, fresh, seen, together, write
from tests.memory_fixtures import SMALL, Bench, encoded_facts, once, sign_latents, texts_of, unit_keys


@pytest.fixture
def engines(tmp_path) -> Iterator[Engines]:
    made = Engines.on_copy_of_empty_state(tmp_path / "state")
    yield made
    made.close()


# -- tenants ----------------------------------------------------------------------------------------------------


def test_tenants_are_created_listed_and_deleted(engines):
    engine = engines.open()
    summary = create(engine, "globex", Retention.LATENT)
    assert (summary.name, summary.retention, summary.facts, summary.version) == ("globex", Retention.LATENT, 0, 0)
    assert summary.state_hash == Bench.new().hash == engine.summary("globex").state_hash
    create(engine, "acme")
    assert [one.name for one in engine.summaries()] == ["acme", "globex"]
    with pytest.raises(TenantExists):
        create(engine, "acme")
    write(engine, 0, 3)
    ended = engine.delete_tenant("acme", once(fresh())).result(TIMEOUT_S)
    assert (ended.name, ended.facts, ended.version) == ("acme", 3, 1)
    for call in (
        lambda: engine.summary("acme"),
        lambda: engine.recall("acme", unit_keys(1, 1), ReadMode.SNAP, 0),
        lambda: engine.facts("acme", 0, 10),
        lambda: engine.fact("acme", "f_00001"),
        lambda: engine.verify("acme"),
        lambda: engine.select("acme", Selector(before=1.0), 5),
        lambda: write(engine, 0, 1),
        lambda: forget(engine, ["f_00001"]),
        lambda: engine.delete_tenant("acme", once(fresh())).result(TIMEOUT_S),
    ):
        with pytest.raises(NotFound):
            call()
    engine = engines.reopen(engine)
    assert [one.name for one in engine.summaries()] == ["globex"]


def test_a_tenant_made_again_is_empty(engines):
    """Nothing of the deleted one comes back: not its facts, not its replies, not its version."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 12)
    engine.delete_tenant("acme", once(fresh())).result(TIMEOUT_S)
    create(engine)
    assert engine.summary("acme").state_hash == Bench.new().hash
    assert write(engine, 0, 1).version == 1
    engine = engines.reopen(engine)
    assert engine.summary("acme").facts == 1
    assert engine.verify("acme").identical


def test_tenants_do_not_see_each_other(engines):
    """The same fact in two tenants: each has its own; forgetting one leaves the other."""
    engine = engines.open()
    for name in ("acme", "globex"):
        create(engine, name)
        write(engine, 0, 1, name)
    assert engine.summary("acme").facts == engine.summary("globex").facts == 1
    assert forget(engine, ["f_00002"], "acme").not_found == ("f_00002",)
    forget(engine, ["f_00001"], "acme")
    assert not engine.recall("acme", unit_keys(1, 1), ReadMode.SNAP, 0).in_scope
    assert engine.recall("globex", unit_keys(1, 1), ReadMode.SNAP, 0).fact_id == "f_00002"
    with pytest.raises(NotFound):
        engine.fact("acme", "f_00002")


# -- restart ----------------------------------------------------------------------------------------------------


def test_a_restart_is_the_live_memory(engines):
    """Hash, versions, counts, listings and every readout are the same after closing and opening, again and again."""
    engine = engines.open()
    create(engine)
    create(engine, "empty")
    write(engine, 0, 20)
    write(engine, 20, 10, tags=("t",))
    forget(engine, [f"f_{i:05d}" for i in (2, 9, 25)])
    write(engine, 5, 3)  # supersedes
    for _ in range(2):
        live = (engine.summary("acme").state_hash, seen(engine, 30), engine.facts("acme", 0, 100))
        epoch = engine.status().epoch
        engine = engines.reopen(engine)
        assert (engine.summary("acme").state_hash, seen(engine, 30), engine.facts("acme", 0, 100)) == live
        status = engine.status()
        assert (status.epoch, status.replayed_facts, status.facts, status.tenants) == (epoch + 1, 27, 27, 2)
    reply = write(engine, 40, 1)
    assert reply.version == 5
    assert engine.fact("acme", reply.fact_ids[0]).seq == 34  # positions are never used twice


def test_a_write_is_durable_when_it_is_acknowledged(engines, tmp_path):
    """A copy of the files taken right after the reply, without closing, holds the fact."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    copied = Engines(shutil.copytree(engines.folder, tmp_path / "copy")).open()
    try:
        assert copied.summary("acme").state_hash == engine.summary("acme").state_hash
    finally:
        copied.close()


def test_two_engines_on_one_file_are_refused(engines):
    engine = engines.open()
    create(engine)
    with pytest.raises(StateFolderUnusable, match="in use by another"):
        engines.open()
    assert write(engine, 0, 1).version == 1


def test_an_engine_that_cannot_start_lets_the_files_go(engines):
    """A start that fails after the ledger was opened leaves no lock behind: the next one in this process succeeds."""
    engines.open().close()
    signing = engines.folder / "keys" / "signing.key"
    signing.rename(signing.with_suffix(".away"))
    with pytest.raises(StateFolderUnusable, match=r"signing\.key"):
        engines.open()
    signing.with_suffix(".away").rename(signing)
    assert engines.open().summaries() == []


# -- idempotency ------------------------------------------------------------------------------------------------


def test_replies_are_repeated_live_and_after_a_restart(engines):
    """Each kind of request, sent again under its key, gets its first reply marked as replayed, and changes nothing."""
    engine = engines.open()
    calls = {
        "create": lambda e: e.create_tenant("acme", Retention.TEXT, once("c")),
        "write": lambda e: e.write("acme", texts_of(5), encoding(0, 5), once("w")),
        "forget": lambda e: e.forget("acme", ["f_00002", "nope"], once("f")),
        "nothing": lambda e: e.forget("acme", ["nope"], once("n")),
        "other": lambda e: e.create_tenant("globex", Retention.LATENT, once("o")),
        "delete": lambda e: e.delete_tenant("globex", once("d")),
    }
    first = {name: call(engine).result(TIMEOUT_S) for name, call in calls.items()}
    state = engine.summary("acme")
    for attempt in range(2):
        for name, call in calls.items():
            again = call(engine).result(TIMEOUT_S)
            assert again == replace(first[name], replayed=True), (name, attempt)
        assert engine.summary("acme") == state
        assert [one.name for one in engine.summaries()] == ["acme"]
        engine = engines.reopen(engine)


def test_a_forget_of_nothing_can_be_retried(engines):
    """Its reply is kept for its tenant; the same key of another tenant is another request. The actor lives on."""
    engine = engines.open()
    for name in ("acme", "globex"):
        create(engine, name)
    receipts = [engine.forget(name, ["nope"], once("k")).result(TIMEOUT_S) for name in ("acme", "globex", "acme")]
    assert [receipt.tenant for receipt in receipts] == ["acme", "globex", "acme"]
    assert [receipt.replayed for receipt in receipts] == [False, False, True]
    assert write(engine, 0, 1).version == 1


def test_a_reused_key_is_refused_and_changes_nothing(engines):
    engine = engines.open()
    create(engine)
    engine.write("acme", texts_of(1), encoding(0, 1), once("k", 1)).result(TIMEOUT_S)
    state = engine.summary("acme")
    for call in (
        lambda: engine.write("acme", texts_of(1), encoding(0, 1), once("k", 2)),
        lambda: engine.forget("acme", ["f_00001"], once("k", 1, endpoint="forget")),
    ):
        with pytest.raises(IdempotencyKeyReused):
            call().result(TIMEOUT_S)
    assert engine.summary("acme") == state


def test_old_replies_are_dropped_at_the_start(engines):
    """After idempotency_hours a key is free again."""
    engine = engines.open()
    create(engine)
    engine.write("acme", texts_of(1), encoding(0, 1), once("k")).result(TIMEOUT_S)
    engines.ticks = itertools.count(1000 + 25 * 3600)
    engine = engines.reopen(engine)
    assert not engine.write("acme", texts_of(1), encoding(0, 1), once("k")).result(TIMEOUT_S).replayed


# -- forgetting -------------------------------------------------------------------------------------------------


def test_a_receipt_holds_both_hashes(engines):
    """Before: the live hash. After: the hash of a tenant that never had the facts, made apart from any engine."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 12)
    before = engine.summary("acme").state_hash
    receipt = forget(engine, ["f_00003", "nope", "f_00003", "f_00011", "other"])
    assert (receipt.forgotten, receipt.not_found) == (("f_00003", "f_00011"), ("nope", "other"))
    assert (receipt.state_hash_before, receipt.version, receipt.facts) == (before, 2, 10)
    never, kept = Bench.new(), [i for i in range(12) if i not in (2, 10)]
    given = encoded_facts(unit_keys(1, 12)[kept], sign_latents(2, 12)[kept])
    never.write([texts_of(12)[i] for i in kept], given, [f"f_{i + 1:05d}" for i in kept])
    assert receipt.state_hash_after == never.hash == engine.summary("acme").state_hash
    assert engine.recall("acme", unit_keys(1, 3)[2:], ReadMode.SNAP, 0).fact_id != "f_00003"


def test_forgetting_a_write_takes_the_hash_back(engines):
    engine = engines.open()
    create(engine)
    write(engine, 0, 9)
    before = engine.summary("acme").state_hash
    written = write(engine, 9, 3)
    assert forget(engine, written.fact_ids).state_hash_after == before


def test_a_dry_run_changes_nothing(engines):
    """It says what a forget would do, both hashes included, and leaves state, version and key unused."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 10)
    state = engine.summary("acme")
    dry = engine.forget("acme", ["f_00004", "nope"], once("k"), dry_run=True).result(TIMEOUT_S)
    assert dry.dry_run
    assert engine.summary("acme") == state
    real = engine.forget("acme", ["f_00004", "nope"], once("k")).result(TIMEOUT_S)
    assert real.receipt_id is not None
    assert real.erase_by == pytest.approx(1060, abs=30)
    assert replace(real, dry_run=True, receipt_id=None, erase_by=None) == dry


# -- one commit, many requests ----------------------------------------------------------------------------------


def test_delete_then_write_in_one_commit_is_not_found(engines):
    engine = engines.open()
    create(engine)
    write(engine, 0, 2)
    deleted, late, forgotten, again = together(
        engine,
        lambda: [
            engine.delete_tenant("acme", once(fresh())),
            engine.write("acme", texts_of(1), encoding(0, 1), once(fresh())),
            engine.forget("acme", ["f_00001"], once(fresh())),
            engine.delete_tenant("acme", once(fresh())),
        ],
    )
    assert deleted.result().facts == 2
    for future in (late, forgotten, again):
        assert isinstance(future.exception(), NotFound)


def test_a_tenants_whole_life_in_one_commit(engines):
    """Create, write, forget, delete, create again, write: each sees what came before it, and so does the ledger."""
    engine = engines.open()
    futures = together(
        engine,
        lambda: [
            engine.create_tenant("acme", Retention.TEXT, once(fresh())),
            engine.create_tenant("acme", Retention.TEXT, once(fresh())),
            engine.write("acme", texts_of(3), encoding(0, 3), once(fresh())),
            engine.forget("acme", ["f_00001"], once(fresh())),
            engine.delete_tenant("acme", once(fresh())),
            engine.create_tenant("acme", Retention.LATENT, once(fresh())),
            engine.write("acme", texts_of(2), encoding(0, 2), once(fresh())),
        ],
    )
    created, twice, written, forgot, deleted, recreated, last = futures
    assert isinstance(twice.exception(), TenantExists)
    assert (created.result().version, written.result().version, forgot.result().facts) == (0, 1, 2)
    assert (deleted.result().facts, deleted.result().version) == (2, 2)
    assert (recreated.result().retention, recreated.result().facts) == (Retention.LATENT, 0)
    assert last.result().version == 1
    live = engine.summary("acme")
    assert (live.facts, live.version, live.retention) == (2, 1, Retention.LATENT)
    engine = engines.reopen(engine)
    assert engine.summary("acme") == live
    assert engine.verify("acme").identical


def test_writes_of_one_commit_supersede_each_other(engines):
    """Three requests with one prompt, committed together: one fact is left, and a restart agrees."""
    engine = engines.open()
    create(engine)
    futures = together(
        engine,
        lambda: [engine.write("acme", texts_of(1), encoding(i, 1), once(fresh())) for i in range(3)],
    )
    replies = [future.result() for future in futures]
    assert [reply.version for reply in replies] == [1, 2, 3]
    assert [reply.superseded for reply in replies] == [(), replies[0].fact_ids, replies[1].fact_ids]
    assert engine.summary("acme").facts == 1
    before = engine.summary("acme")
    assert engines.reopen(engine).summary("acme") == before


def test_a_write_that_waited_too_long_is_not_stored(engines):
    engine = engines.open()
    create(engine)
    state = engine.summary("acme")
    (late,) = together(
        engine,
        # Behind a busy writer it waits longer than not at all.
        lambda: [engine.write("acme", texts_of(1), encoding(0, 1), once(fresh()), timeout_s=0.0)],
    )
    assert isinstance(late.exception(), DeadlineExceeded)
    assert engine.summary("acme") == state


def test_a_failed_commit_ends_the_engine(engines):
    """The caller is told that the outcome is unknown, the process is told to end, later writes are refused."""
    engine = engines.open()
    create(engine)
    engine._ledger._connection.exec_driver_sql("PRAGMA query_only = ON")  # SQLite refuses to write from here on
    engine._ledger._connection.rollback()
    error = engine.write("acme", texts_of(1), encoding(0, 1), once(fresh())).exception(TIMEOUT_S)
    assert isinstance(error, LedgerFailed)
    engine._writer._thread.join(TIMEOUT_S)
    assert len(engines.poisons) == 1
    engines.poisons.clear()
    with pytest.raises(LedgerFailed):
        engine.write("acme", texts_of(1), encoding(0, 1), once(fresh()))
    assert engines.reopen(engine).summary("acme").facts == 0


# -- reading ----------------------------------------------------------------------------------------------------


def test_facts_are_listed_in_pages(engines):
    """Pages of 4 over 10 facts give each once, in order, also when some were forgotten; the last page says so."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 11)
    forget(engine, ["f_00005"])
    listed, after, pages = [], 0, 0
    while True:
        page = engine.facts("acme", after, 4)
        listed += page.facts
        pages += 1
        if page.next_after is None:
            break
        after = page.next_after
    assert [fact.prompt for fact in listed] == [f"prompt {i}" for i in range(11) if i != 4]
    assert pages == 3
    assert engine.facts("acme", 0, 10).next_after is None  # exactly full is the end
    assert engine.facts("acme", 99, 4).facts == ()
    assert engine.fact("acme", "f_00002").target == "target 1"
    with pytest.raises(NotFound):
        engine.fact("acme", "f_00005")


def test_latent_retention_lists_no_words(engines):
    engine = engines.open()
    create(engine, retention=Retention.LATENT)
    write(engine, 0, 2, tags=("x",))
    fact = engine.facts("acme", 0, 1).facts[0]
    assert (fact.prompt, fact.target, fact.tags) == (None, None, ("x",))
    engine.close()
    assert b"prompt 0" not in engines.path.read_bytes()


def test_selectors_preview_facts(engines):
    """By key: nearest first with scores; by tags: those with all of them; by time: the older ones; up to the limit."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 4, tags=("a",))
    write(engine, 4, 4, tags=("a", "b"))
    write(engine, 8, 4)
    later = engine.fact("acme", "f_00009").created_at

    def ids(selector: Selector, limit: int = 100) -> list[str]:
        return [fact.fact_id for fact in engine.select("acme", selector, limit)]

    near = engine.select("acme", Selector(keys=unit_keys(1, 6)[5:]), 3)
    assert near[0].fact_id == "f_00006"
    assert near[0].score == pytest.approx(1.0, abs=1e-3)
    assert all(fact.score >= SMALL.scope_threshold for fact in near)
    assert ids(Selector(tags=("a",))) == [f"f_{i:05d}" for i in range(1, 9)]
    assert ids(Selector(tags=("a", "b"))) == [f"f_{i:05d}" for i in range(5, 9)]
    assert ids(Selector(tags=("a", "nope"))) == []
    assert ids(Selector(before=later)) == [f"f_{i:05d}" for i in range(1, 9)]
    assert ids(Selector(tags=("a",)), limit=3) == ["f_00001", "f_00002", "f_00003"]
    forget(engine, ["f_00006"])
    assert "f_00006" not in ids(Selector(keys=unit_keys(1, 6)[5:]))


def test_fact_ids_cannot_be_guessed():
    ids = {random_fact_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == 28 and one.startswith("f_") for one in ids)
    assert len({character for one in ids for character in one[2:]}) == 32


# -- verify -----------------------------------------------------------------------------------------------------


def test_verify_rebuilds_the_same_memory(engines):
    engine = engines.open()
    create(engine)
    assert engine.verify("acme").identical
    write(engine, 0, 20)
    forget(engine, ["f_00007"])
    check = engine.verify("acme")
    assert (check.identical, check.facts, check.version) == (True, 19, 2)
    assert check.state_hash == check.rebuilt_hash == engine.summary("acme").state_hash


@pytest.mark.parametrize("sums", ["cov", "cross"])
def test_verify_sees_a_changed_sum(engines, sums):
    """One unit in one number of the live sums, of a warm shard or of the frozen total, is told."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 11)
    tenant = engine.tenant("acme")
    for statistics in (tenant._frozen, tenant._shards[-1].statistics):
        getattr(statistics, sums)[3, 5] += 1
        check = engine.verify("acme")
        assert not check.identical
        assert check.state_hash != check.rebuilt_hash
        getattr(statistics, sums)[3, 5] -= 1
        assert engine.verify("acme").identical


def test_verify_gives_up_on_a_memory_that_keeps_changing(engines):
    """A version that moves during every attempt is a conflict to retry, never a wrong verdict."""
    engine = engines.open()
    create(engine)
    numbers = itertools.count()
    rebuilt = engine._rebuilt_hash

    def meanwhile(name):
        write(engine, next(numbers), 1)
        return rebuilt(name)

    engine._rebuilt_hash = meanwhile
    with pytest.raises(VerifyConflict):
        engine.verify("acme")
    engine._rebuilt_hash = rebuilt
    assert engine.verify("acme").identical


def test_listing_beside_creation_and_deletion(engines):
    """Summaries taken while tenants come and go never fail and hold the steady ones."""
    engine = engines.open()
    create(engine, "steady")
    stop, failures = threading.Event(), []

    def churn() -> None:
        try:
            for i in range(25):
                create(engine, f"t{i}")
                engine.delete_tenant(f"t{i}", once(fresh())).result(TIMEOUT_S)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            stop.set()

    thread = threading.Thread(target=churn)
    thread.start()
    while not stop.is_set():
        assert "steady" in [one.name for one in engine.summaries()]
        engine.status()
    thread.join(TIMEOUT_S)
    assert failures == []


def test_unusual_texts_survive(engines):
    """Emoji, right-to-left text, NUL characters and very long prompts are stored, listed and superseded."""
    engine = engines.open()
    create(engine)
    prompts = ["🦜 été", "مرحبا", "a\x00b", "x" * 4000, "it's; DROP TABLE fact;--"]
    texts = [FactText(prompt, prompt) for prompt in prompts]
    first = engine.write("acme", texts, encoding(0, 5), once(fresh())).result(TIMEOUT_S)
    assert [fact.prompt for fact in engine.facts("acme", 0, 10).facts] == prompts
    second = engine.write("acme", texts, encoding(5, 5), once(fresh())).result(TIMEOUT_S)
    assert second.superseded == first.fact_ids
    assert engines.reopen(engine).summary("acme").facts == 5
