"""Cold tenants: every verb works on them, they wake once and to the bit, they leave in turns, no read is stale."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from memory_actor.errors import NotFound, Unavailable
from memory_actor.types import ReadMode, Residency, Selector
from tests.engine_fixtures import TIMEOUT_S, Engines, create, encoding, forget, fresh, seen, together, write
from tests.memory_fixtures import once, texts_of, unit_keys


@pytest.fixture
def engines(tmp_path) -> Iterator[Engines]:
    made = Engines.on_copy_of_empty_state(tmp_path / "state", erase_window_s=1e6)
    yield made
    made.close()


def asleep(engines: Engines, facts: int = 12):
    engine = engines.open()
    create(engine)
    write(engine, 0, facts, tags=("t",))
    assert engine.sleep("acme").residency is Residency.COLD
    return engine


def until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + TIMEOUT_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)


def residency(engine, name: str = "acme") -> Residency:
    return next(one.residency for one in engine.summaries() if one.name == name)


VERBS: dict[str, Callable] = {
    "recall": lambda e: e.recall("acme", unit_keys(1, 3)[2:], ReadMode.SNAP, 1).fact_id,
    "write": lambda e: write(e, 50, 1).version,
    "supersede": lambda e: write(e, 3, 1).superseded,
    "forget": lambda e: forget(e, ["f_00002", "nope"]).forgotten,
    "dry run": lambda e: forget(e, ["f_00002"], dry_run=True).state_hash_after,
    "verify": lambda e: (e.verify("acme").identical, e.verify("acme").facts),
    "summary": lambda e: (e.summary("acme").state_hash, e.summary("acme").facts),
    "list": lambda e: e.facts("acme", 0, 50),
    "fact": lambda e: e.fact("acme", "f_00004"),
    "by key": lambda e: [one.fact_id for one in e.select("acme", Selector(keys=unit_keys(1, 6)[5:]), 2)],
    "by tag": lambda e: [one.fact_id for one in e.select("acme", Selector(tags=("t",)), 50)],
    "checkpoint": lambda e: e.checkpoint("acme", "local").state_hash,
    "delete": lambda e: e.delete_tenant("acme", once(fresh())).result(TIMEOUT_S).facts,
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_for_a_cold_tenant_as_for_a_hot_one(engines, tmp_path, verb):
    engine = asleep(engines)
    engine.close()
    hot = Engines(shutil.copytree(engines.folder, tmp_path / "hot"), erase_window_s=1e6)
    hot.numbers = engines.numbers = iter(range(100, 200))
    awake = hot.open()
    awake.wake("acme")
    expected = VERBS[verb](awake)
    hot.close()
    engines.numbers = iter(range(100, 200))
    engine = engines.open()
    assert residency(engine) is Residency.COLD
    assert VERBS[verb](engine) == expected


def test_a_start_loads_nothing(engines):
    engine = asleep(engines)
    before = engine.summary("acme").state_hash
    engine = engines.reopen(engine)
    status = engine.status()
    assert (status.tenants, status.facts, status.hot_tenants, status.replayed_facts) == (1, 12, 0, 0)
    assert engine.summary("acme").state_hash == before  # known from the checkpoint
    assert engine.status().hot_tenants == 0
    assert seen(engine, 12)
    status = engine.status()
    assert (status.hot_tenants, status.replayed_facts) == (1, 12)


def test_waking_reads_the_checkpoint_and_the_tail(engines):
    """What was written, superseded and forgotten since, without a checkpoint in between: the same to the bit."""
    engine = asleep(engines, 20)
    forget(engine, ["f_00003", "f_00019"])
    write(engine, 5, 2)  # supersedes
    write(engine, 30, 4)
    live = (engine.summary("acme").state_hash, seen(engine, 34))
    engine._let_go("acme")
    ledger, opened = engine._ledger, []
    facts = ledger.facts
    ledger.facts = lambda *args, **more: opened.append(args) or facts(*args, **more)
    assert (engine.summary("acme").state_hash, seen(engine, 34)) == live
    assert opened == []  # only the tail was read, by id
    ledger.facts = facts
    assert engine.verify("acme").identical


def test_a_sleep_that_follows_only_reads_writes_no_checkpoint(engines):
    engine = asleep(engines)
    infos = engine.checkpoints("acme")
    seen(engine, 3)
    engine.sleep("acme")
    engine.sleep("acme")
    assert engine.checkpoints("acme") == infos


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(engines, harm):
    """The tenant wakes from the ledger to the same state; the status warns; the next sleep writes a sound one."""
    engine = asleep(engines)
    live = engine.summary("acme").state_hash
    (info,) = engine.checkpoints("acme")
    file = engines.folder / "checkpoints" / info.uid / info.checkpoint_id / "facts.arrow.sealed"
    if harm == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert engine.wake("acme").residency is Residency.HOT
    assert engine.summary("acme").state_hash == live
    (warning,) = engine.status().warnings
    assert info.checkpoint_id in warning
    (finding,) = engine.doctor("acme")
    assert (finding.code, finding.severity, finding.tenant) == ("checkpoint_damaged", "warning", "acme")
    engine.sleep("acme")
    newest = engine.checkpoints("acme")[-1]
    assert newest.checkpoint_id != info.checkpoint_id
    assert engine._checkpointing.open(engine.grant("acme", newest.checkpoint_id)).state_hash == live


def test_many_readers_and_a_writer_wake_it_once(engines):
    engine = asleep(engines, 20)
    loads, load = [], engine._catalog._load
    engine._catalog._load = lambda name: loads.append(name) or load(name)
    with ThreadPoolExecutor(9) as pool:
        reads = [pool.submit(engine.recall, "acme", key[None], ReadMode.SNAP, 1) for key in unit_keys(1, 8)]
        wrote = pool.submit(write, engine, 30, 1)
        assert [one.result(TIMEOUT_S).fact_id for one in reads] == [f"f_{i + 1:05d}" for i in range(8)]
        assert wrote.result(TIMEOUT_S).version == 2
    assert loads == ["acme"]


def test_it_does_not_leave_under_a_change_of_the_same_commit(engines):
    """A write and the order to leave in one commit: the write is applied and the tenant stays, whichever came first."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 3)
    left = []

    def submit():
        first = engine.write("acme", texts_of(1, 5), encoding(5, 1), once(fresh()))
        thread = threading.Thread(target=lambda: left.append(engine._let_go("acme")))
        thread.start()
        until(lambda: engine._writer._queue.qsize() >= 2)
        second = engine.write("acme", texts_of(1, 6), encoding(6, 1), once(fresh()))
        return [first, second]

    first, second = together(engine, submit)
    assert (first.result().version, second.result().version) == (2, 3)
    until(lambda: bool(left))
    assert residency(engine) is Residency.HOT
    assert engine.verify("acme").identical


def test_a_reader_that_holds_a_memory_that_left_asks_again(engines):
    """It never answers from what is not the tenant's memory any more: neither empty nor stale."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 12)
    memory = engine.tenant("acme")
    recall, calls = memory.recall, []

    def interrupted(*args):
        calls.append(args)
        engine._let_go("acme")
        return recall(*args)

    memory.recall = interrupted
    assert engine.recall("acme", unit_keys(1, 3)[2:], ReadMode.SNAP, 0).fact_id == "f_00003"
    assert len(calls) == 1


def test_the_least_recently_used_leave_when_memory_is_short(engines):
    """With room for about two of four tenants the last used ones stay, and all of them answer as before."""
    engine = engines.open()
    names = ["a", "b", "c", "d"]
    for name in names:
        create(engine, name)
        write(engine, 0, 9, name)
    expected = {name: seen(engine, 9, name) for name in names}
    size = engine.tenant("a").bytes
    over, engine._catalog.over_budget = engine._catalog.over_budget, lambda _: over(int(2.6 * size))
    for name in ("b", "a", "c", "d"):
        engine.wake(name)
    engine._evictor.look()
    until(lambda: engine.status().hot_tenants == 2)
    assert {name for name in names if residency(engine, name) is Residency.HOT} == {"c", "d"}
    assert {name: seen(engine, 9, name) for name in names} == expected
    assert all(engine.verify(name).identical for name in names)


def test_a_tenant_leaves_although_its_checkpoint_cannot_be_written(engines):
    """The ledger has all of it: memory is freed, and it wakes from there. Asked for by name, it is an error instead."""
    engine = engines.open()
    create(engine)
    write(engine, 0, 9)
    live = engine.summary("acme").state_hash
    (engines.folder / "checkpoints").write_text("not a folder")
    engine._put_to_sleep("acme")
    assert residency(engine) is Residency.COLD
    assert engine.summary("acme").state_hash == live
    with pytest.raises(Exception, match="checkpoint location 'local'"):
        engine.sleep("acme")
    assert residency(engine) is Residency.HOT


def test_unknown_tenants_neither_sleep_nor_wake(engines):
    engine = engines.open()
    for call in (engine.sleep, engine.wake, engine.checkpoints):
        with pytest.raises(NotFound):
            call("nobody")
    engine.rouse("nobody")
    assert engine.is_ready("nobody")


def test_a_suspended_engine_refuses_everything_and_goes_on_again(engines):
    """What the watchdog does while a newer process may be serving."""
    engine = asleep(engines)
    engine.suspend("its raylet is gone")
    for call in (
        lambda: seen(engine, 1),
        engine.summaries,
        lambda: engine.facts("acme", 0, 1),
        lambda: engine.wake("acme"),
        lambda: write(engine, 0, 1),
        lambda: engine.checkpoint("acme", "local"),
        engine.erase_now,
    ):
        with pytest.raises(Unavailable, match="its raylet is gone"):
            call()
    engine.suspend(None)
    assert write(engine, 20, 1).version == 2
