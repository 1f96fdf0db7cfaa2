"""A tenant's memory: reading, freezing, reopening, many threads. What requests change is in test_draft.py."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from memory_actor.draft import Draft
from memory_actor.episodic_memory import merge
from memory_actor.errors import StaleMemory
from memory_actor.tenant import CANDIDATE_SHARDS, TenantMemory, sums
from memory_actor.types import FactText, MemoryConfig, ReadMode
from tests.memory_fixtures import (
    REAL,
    SMALL,
    Bench,
    encoded_facts,
    ids_of,
    integer_sums,
    sign_latents,
    texts_of,
    unit_keys,
)


def filled(count: int, config: MemoryConfig = SMALL, batch: int = 5) -> Bench:
    """A tenant with `count` facts of one row each, written in batches."""
    bench = Bench.new(config)
    keys, latents = unit_keys(1, count, config), sign_latents(2, count, config)
    for start in range(0, count, batch):
        part = slice(start, min(start + batch, count))
        size = part.stop - part.start
        given = encoded_facts(keys[part], latents[part], config=config)
        bench.write(texts_of(size, start), given, ids_of(size, start))
    return bench


def assert_recalls(bench: Bench, tolerance: float = 0.5) -> None:
    """Every live fact is in scope of its own key and comes back whole."""
    for fact_id, fact in bench.stored.items():
        recall = bench.tenant.recall(fact.key[None], ReadMode.SNAP)
        assert recall.in_scope
        assert recall.fact_id == fact_id
        assert recall.score == pytest.approx(1.0, abs=1e-3)
        assert (recall.prompt_tokens, recall.target_tokens) == (fact.prompt_tokens, fact.target_tokens)
        assert recall.readout is not None
        assert np.abs(recall.readout - fact.latents).max() < tolerance


def frozen(bench: Bench) -> list[bool]:
    return [shard.statistics is None for shard in bench.tenant._shards]


# -- the empty memory, scope ------------------------------------------------------------------------------------


def test_an_empty_memory_is_out_of_scope():
    bench = Bench.new()
    recall = bench.tenant.recall(unit_keys(1, 1), ReadMode.SNAP)
    assert (recall.in_scope, recall.score, recall.fact_id, recall.readout) == (False, 0.0, None, None)
    assert bench.tenant.summary(with_hash=False).shards == 0


def test_the_threshold_decides_scope():
    """Just below the threshold a query gets its score and nothing else; from it on, the fact."""
    bench = Bench.new()
    key = np.zeros((1, 8), np.float16)
    key[0, 0] = 1
    bench.write(texts_of(1), encoded_facts(key), ids_of(1))
    for cosine, expected in ((0.69, False), (0.71, True), (-1.0, False)):
        query = np.zeros(8, np.float16)
        query[:2] = cosine, (1 - cosine**2) ** 0.5
        recall = bench.tenant.recall(query[None], ReadMode.SNAP)
        assert recall.in_scope is expected
        assert recall.score == pytest.approx(cosine, abs=1e-3)
        assert (recall.readout is not None) is expected


def test_a_query_asks_for_a_version():
    """min_version above the tenant's is refused with both numbers, up to it is answered."""
    bench = filled(10)
    assert bench.tenant.recall(unit_keys(1, 1), ReadMode.SNAP, min_version=2).version == 2
    with pytest.raises(StaleMemory) as refused:
        bench.tenant.recall(unit_keys(1, 1), ReadMode.SNAP, min_version=3)
    assert refused.value.args == ("acme", 2, 3)


def test_near_lists_facts_in_scope_best_first():
    bench = filled(30)
    fact = bench.stored["f_00007"]
    near = bench.tenant.near(fact.key[None], 5)
    assert near[0].fact_id == "f_00007"
    assert [one.score for one in near] == sorted((one.score for one in near), reverse=True)
    assert all(one.score >= SMALL.scope_threshold for one in near)
    assert len(bench.tenant.near(fact.key[None], 1)) == 1


def test_soft_reads_use_the_querys_own_address():
    """At the fact's own key both modes agree; near it, soft reads differ from snap reads, which stay exact."""
    bench = filled(6)
    fact = bench.stored["f_00003"]
    snap, soft = (bench.tenant.recall(fact.key[None], mode).readout for mode in (ReadMode.SNAP, ReadMode.SOFT))
    assert np.array_equal(snap, soft)
    close = fact.key + unit_keys(9, 1)[0] * np.float16(0.1)
    close = (close / np.linalg.norm(close.astype(np.float32))).astype(np.float16)
    snap, soft = (bench.tenant.recall(close[None], mode) for mode in (ReadMode.SNAP, ReadMode.SOFT))
    assert snap.fact_id == soft.fact_id == "f_00003"
    assert np.abs(snap.readout - fact.latents).max() < 1e-2
    assert np.abs(snap.readout - soft.readout).max() > 1e-2


def direction(*parts: float) -> np.ndarray:
    """A unit key (D,) float16 with these first coordinates and one more that makes its length one."""
    key = np.zeros(8)
    key[: len(parts)] = parts
    key[-1] = (1 - np.square(parts).sum()) ** 0.5
    return key.astype(np.float16)


def test_a_query_is_as_near_as_the_nearest_of_its_keys():
    """One fact along the first axis: a query is in scope when one of its keys is, wherever the others point."""
    bench = Bench.new()
    bench.write(texts_of(1), encoded_facts(direction(1.0)[None]), ids_of(1))
    for cosines, expected in (((0.3, 0.9), True), ((0.9, 0.3), True), ((0.3, 0.6), False), ((-1.0, 0.71), True)):
        recall = bench.tenant.recall(np.stack([direction(cosine) for cosine in cosines]), ReadMode.SNAP)
        assert recall.in_scope is expected
        assert recall.score == pytest.approx(max(cosines), abs=1e-3)
        assert (recall.fact_id == "f_00000") is expected


def test_the_best_key_decides_between_facts():
    """The whole text is near one fact, the asked sentence nearer to another: the latter is recalled, whole."""
    bench = Bench.new()
    keys = np.stack([direction(1.0), direction(0.0, 1.0)])
    bench.write(texts_of(2), encoded_facts(keys), ids_of(2))
    recall = bench.tenant.recall(np.stack([direction(0.8), direction(0.1, 0.95)]), ReadMode.SNAP)
    assert recall.fact_id == "f_00001"
    assert np.abs(recall.readout - bench.stored["f_00001"].latents).max() < 0.5
    near = bench.tenant.near(np.stack([direction(0.8), direction(0.1, 0.95)]), 5)
    assert [(one.fact_id, one.key) for one in near] == [("f_00001", 1), ("f_00000", 0)]


def test_soft_reads_use_the_key_that_came_nearest():
    """Bit for bit the read with that key alone, whichever place it has in the query."""
    bench = filled(6)
    own = bench.stored["f_00003"].key.astype(np.float32)
    close, far = ((own + drift * unit_keys(9, 1)[0].astype(np.float32)) for drift in (0.1, 0.6))
    close, far = ((key / np.linalg.norm(key)).astype(np.float16) for key in (close, far))
    expected = bench.tenant.recall(close[None], ReadMode.SOFT)
    assert not np.array_equal(expected.readout, bench.tenant.recall(far[None], ReadMode.SOFT).readout)
    for keys in (np.stack([close, far]), np.stack([far, close])):
        recall = bench.tenant.recall(keys, ReadMode.SOFT)
        assert recall.fact_id == "f_00003"
        assert recall.score == pytest.approx(expected.score, abs=1e-6)  # float32 products of another shape
        assert np.array_equal(recall.readout, expected.readout)


@pytest.mark.parametrize("shape", [(8,), (1, 7), (0, 8), (1, 1, 8)])
def test_keys_of_another_shape_are_refused(shape):
    """Also by an empty memory, and nothing is guessed from them."""
    for bench in (Bench.new(), filled(3)):
        with pytest.raises(ValueError, match="keys must be"):
            bench.tenant.recall(np.zeros(shape, np.float16), ReadMode.SNAP)
        with pytest.raises(ValueError, match="keys must be"):
            bench.tenant.near(np.zeros(shape, np.float16), 3)


# -- shards -----------------------------------------------------------------------------------------------------


def test_no_shard_exceeds_its_capacity_and_all_facts_are_recalled():
    """50 facts over shards of 8 rows: full shards are frozen and keep no sums, the newest is warm; recall is whole."""
    bench = filled(50)
    assert [shard.rows for shard in bench.tenant._shards] == [8] * 6 + [2]
    assert frozen(bench) == [True] * 6 + [False]
    assert bench.tenant.summary(with_hash=False).shards == 7
    assert_recalls(bench)


def test_long_facts_fill_shards_without_being_split():
    """Facts of 1 to 3 parts: no shard above 8 rows, each fact whole in one shard, all parts recalled in order."""
    bench = Bench.new()
    counts = [1 + i % 3 for i in range(30)]
    given = encoded_facts(unit_keys(3, 30), sign_latents(4, sum(counts)), counts)
    bench.write(texts_of(30), given, ids_of(30))
    assert max(shard.rows for shard in bench.tenant._shards) <= 8
    assert bench.tenant.total_rows == sum(counts)
    assert_recalls(bench)


def test_forgetting_from_a_frozen_shard_and_filling_its_hole():
    """A frozen shard loses a fact: sums and recall stay exact; the hole is filled again by a later write."""
    bench = filled(24)
    assert frozen(bench) == [True] * 3
    gone = bench.stored["f_00003"]
    bench.forget(["f_00003"])
    assert [shard.rows for shard in bench.tenant._shards] == [7, 8, 8]
    assert_recalls(bench)
    recall = bench.tenant.recall(gone.key[None], ReadMode.SNAP)
    assert recall.fact_id != "f_00003"
    bench.write([FactText("new")], encoded_facts(unit_keys(77, 1)), ["f_new"])
    assert [shard.rows for shard in bench.tenant._shards] == [8, 8, 8]
    assert frozen(bench) == [True] * 3  # the filled one gave its sums away long ago
    assert_recalls(bench)
    cov, cross = integer_sums(bench.stored.values())
    assert np.array_equal(bench.tenant.total().cov.numpy(), cov)
    assert np.array_equal(bench.tenant.total().cross.numpy(), cross)


def test_an_emptied_shard_is_dropped():
    """Forgetting everything, frozen or warm, leaves the state of a tenant that never was written to."""
    bench = filled(20)
    never = Bench.new().hash
    bench.forget(ids_of(8))
    assert bench.tenant.summary(with_hash=False).shards == 2
    bench.forget(ids_of(12, 8))
    assert bench.tenant.summary(with_hash=False).shards == 0
    assert bench.hash == never
    assert not bench.tenant.by_prompt
    assert len(bench.tenant._index) == 0


def test_near_copies_open_shards_and_are_all_recalled():
    """12 copies of one prompt kept side by side: one shard each, few of them warm; each readout is one copy's own."""
    bench = Bench.new()
    key = np.repeat(unit_keys(5, 1), 12, axis=0)
    bench.write([FactText("same", keep_both=True)] * 12, encoded_facts(key, sign_latents(6, 12)), ids_of(12))
    assert bench.tenant.summary(with_hash=False).shards == 12
    assert frozen(bench).count(False) <= CANDIDATE_SHARDS
    recall = bench.tenant.recall(key[:1], ReadMode.SNAP)
    assert np.abs(recall.readout - bench.stored[recall.fact_id].latents).max() < 0.5
    for fact_id in bench.stored:
        shard = bench.tenant.facts[fact_id].shard
        assert shard.fact_ids == [fact_id]
    assert bench.tenant.by_prompt == {bench.stored["f_00000"].prompt_digest: ids_of(12)}


def test_copies_of_a_prompt_are_listed_oldest_first_whatever_their_shards():
    """A long copy goes to a new shard, a short one behind it fits into the old: `supersedes` still names the newest."""
    bench = filled(6)  # room for two rows
    keys = np.concatenate([unit_keys(40, 1), unit_keys(41, 1)])
    given = encoded_facts(keys, sign_latents(7, 4), [3, 1])
    bench.write([FactText("same"), FactText("same", keep_both=True)], given, ["f_long", "f_short"])
    assert list(bench.tenant.by_prompt.values())[-1] == ["f_long", "f_short"]
    prepared = Draft(bench.tenant).write([FactText("same")], encoded_facts(unit_keys(42, 1)), ["f_last"], 0.0)
    assert prepared.effect.facts[0].supersedes == "f_short"


def test_a_reread_of_an_unchanged_shard_does_not_solve_again(monkeypatch):
    """M is solved once per shard and change, however often it is read; another shard's change does not matter."""
    bench = filled(20)
    solved = []
    for shard in bench.tenant._shards:
        solve_from = shard.solve_from
        monkeypatch.setattr(shard, "solve_from", lambda s, solve=solve_from: solved.append(1) or solve(s))
    assert_recalls(bench)
    assert_recalls(bench)
    assert len(solved) == 3
    bench.write([FactText("new")], encoded_facts(unit_keys(78, 1)), ["f_new"])  # goes to the warm shard
    assert_recalls(bench)
    assert len(solved) == 4


# -- history independence ---------------------------------------------------------------------------------------


def test_across_shards_1200_written_and_300_forgotten_is_900_never_more():
    """K = 512, C = 768: hash and sums equal those of a tenant that only ever wrote the other 900, recall is whole."""
    keys, latents = unit_keys(11, 1200, REAL), sign_latents(12, 1200, REAL)
    ids, texts = ids_of(1200), texts_of(1200)

    def written(order: np.ndarray, batch: int) -> Bench:
        bench = Bench.new(REAL)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            given = encoded_facts(keys[part], latents[part], config=REAL)
            bench.write([texts[i] for i in part], given, [ids[i] for i in part])
        return bench

    rng = np.random.default_rng(13)
    gone = rng.permutation(1200)[:300]
    lived = written(np.arange(1200), 64)
    before = lived.hash
    for start in range(0, 300, 100):
        lived.forget([ids[i] for i in gone[start : start + 100]])
    never = written(rng.permutation(np.setdiff1d(np.arange(1200), gone)), 50)
    assert lived.hash == never.hash != before
    assert torch.equal(lived.tenant.total().cov, never.tenant.total().cov)
    for i in (*np.setdiff1d(np.arange(1200), gone)[::60], *gone[:5]):
        recall = lived.tenant.recall(keys[i : i + 1], ReadMode.SNAP)
        assert (recall.fact_id == ids[i]) == (i not in gone)
        if i not in gone:
            assert np.abs(recall.readout - latents[i]).max() < 0.5


def test_replay_in_any_order_and_batching_gives_the_same_memory():
    """Facts read back in other batches and orders, on one thread or two, give equal hashes and whole recall."""
    bench = filled(40)
    bench.forget(ids_of(7, 11))
    rng = np.random.default_rng(14)
    facts = list(bench.stored.values())
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            again = Bench.new()
            again.stored.update(bench.stored)
            order = rng.permutation(len(facts))
            for part in np.array_split(order, 6):
                again.tenant.replay([facts[i] for i in part])
            assert again.hash == bench.hash
            assert again.tenant.next_seq == bench.tenant.next_seq
            assert_recalls(again)
    finally:
        torch.set_num_threads(threads)
    bench.tenant.replay([])
    assert len(bench.tenant.facts) == 33


def test_two_tenants_merge_into_one():
    """The sums of two parts of the facts add up to the sums of all of them, to the bit."""
    bench = filled(30)
    facts = list(bench.stored.values())
    merged = merge(sums(SMALL, facts[:13]), sums(SMALL, facts[13:]))
    total = bench.tenant.total()
    assert torch.equal(merged.cov, total.cov)
    assert torch.equal(merged.cross, total.cross)
    assert merged.rows == total.rows == 30
    assert sums(SMALL, []).rows == 0


# -- readers beside the writer ----------------------------------------------------------------------------------


def test_a_superseded_prompt_is_in_scope_at_every_moment():
    """A reader that starts in the midst of a supersede sees the old fact or the new one, never neither."""
    bench = filled(3)
    key = bench.stored["f_00001"].key
    prepared = Draft(bench.tenant).write([FactText("prompt 1")], encoded_facts(key[None]), ["f_new"], 0.0)
    bench.keep(prepared)
    seen: list[str | None] = []
    readers: list[threading.Thread] = []
    add = bench.tenant._add

    def slow_add(facts) -> None:
        """Between removal and addition, a reader gets all the time it needs to run its search."""
        reader = threading.Thread(target=lambda: seen.append(bench.tenant.recall(key[None], ReadMode.SNAP).fact_id))
        reader.start()
        reader.join(timeout=0.2)  # it finishes here only if it does not wait for the change to end
        readers.append(reader)
        add(facts)

    bench.tenant._add = slow_add
    bench.tenant.apply(prepared)
    readers[0].join(timeout=10)
    assert seen == ["f_new"]


def test_a_forget_that_is_committed_but_not_applied_is_waited_for():
    """The ledger has lost a row that a frozen shard's solve needs: the read looks again until the change is applied."""
    bench = filled(16)
    target, gone = bench.stored["f_00000"], bench.stored["f_00001"]
    prepared = Draft(bench.tenant).forget(["f_00001"])
    bench.keep(prepared)
    asked = []
    rows_of = bench.tenant.rows_of

    def counting(fact_ids):
        asked.append(len(fact_ids))
        if len(asked) == 1500:  # more often than Python recurses
            bench.tenant.apply(prepared)
        return rows_of(fact_ids)

    bench.tenant.rows_of = counting
    recall = bench.tenant.recall(target.key[None], ReadMode.SNAP)
    assert recall.fact_id == "f_00000"
    assert np.abs(recall.readout - target.latents).max() < 0.5
    assert bench.tenant.recall(gone.key[None], ReadMode.SNAP).fact_id != "f_00001"


def test_a_deleted_tenant_answers_as_an_empty_one():
    """A reader that holds a tenant while it is deleted finishes, although the ledger has no row of it any more."""
    bench = filled(16)
    key = bench.stored["f_00000"].key
    rows_of = bench.tenant.rows_of

    def deleting(fact_ids):
        bench.stored.clear()
        bench.tenant.end()
        return rows_of(fact_ids)

    bench.tenant.rows_of = deleting
    assert not bench.tenant.recall(key[None], ReadMode.SNAP).in_scope
    assert bench.hash == Bench.new().hash


def test_readers_beside_a_writer_see_what_was_true_at_some_moment():
    """Two readers ask 300 times each while facts come and go: the fixed facts always answer for their own key, a fact
    that comes and goes answers whole or not at all, and nothing raises."""
    bench = filled(12)
    fixed = [bench.stored[fact_id] for fact_id in ids_of(12)]
    moving = unit_keys(21, 6)
    latents = sign_latents(22, 6)
    never_in_scope = replace(SMALL, scope_threshold=0.999)
    bench.tenant.config = never_in_scope  # only a key of its own is in scope
    stop = threading.Event()
    failures: list[str] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(300):
                if rng.integers(2):
                    fact = fixed[rng.integers(12)]
                    recall = bench.tenant.recall(fact.key[None], ReadMode.SNAP)
                    if recall.fact_id != fact.fact_id or np.abs(recall.readout - fact.latents).max() > 0.5:
                        failures.append(f"fixed fact {fact.fact_id} gave {recall.fact_id}")
                else:
                    i = int(rng.integers(6))
                    recall = bench.tenant.recall(moving[i : i + 1], ReadMode.SNAP)
                    if recall.in_scope and (
                        not recall.fact_id.startswith(f"m{i}.") or np.abs(recall.readout - latents[i]).max() > 0.5
                    ):
                        failures.append(f"moving fact {i} gave {recall.fact_id}")
        except BaseException as error:
            failures.append(repr(error))
            raise

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            i = number % 6
            live = [fact_id for fact_id in bench.stored if fact_id.startswith(f"m{i}.")]
            if live:
                bench.forget(live)
            else:
                given = encoded_facts(moving[i : i + 1], latents[i : i + 1])
                bench.write([FactText(f"moving {i}")], given, [f"m{i}.{number}"])

    readers = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    writer = threading.Thread(target=write)
    for thread in (*readers, writer):
        thread.start()
    for reader in readers:
        reader.join(timeout=60)
    stop.set()
    writer.join(timeout=60)
    assert failures == []
    assert not any(thread.is_alive() for thread in (*readers, writer))
    cov, _ = integer_sums(bench.stored.values())
    assert np.array_equal(bench.tenant.total().cov.numpy(), cov)


def test_a_tenant_has_no_clock_and_no_randomness():
    """Two tenants given the same effects are equal in everything that is read back, versions included."""
    first, second = filled(20), filled(20)
    assert first.hash == second.hash
    assert isinstance(first.tenant, TenantMemory)
    query = unit_keys(1, 20)[13]
    one, other = (bench.tenant.recall(query[None], ReadMode.SNAP) for bench in (first, second))
    assert np.array_equal(one.readout, other.readout)
    assert (one.version, one.score, one.fact_id) == (other.version, other.score, other.fact_id)
