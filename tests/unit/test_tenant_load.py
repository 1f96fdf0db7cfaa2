"""A memory loaded from a checkpoint is the memory that was: same hash, same answers, same future as a replayed one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_actor.checkpoint import Snapshot, from_arrow, to_arrow
from memory_actor.checkpoint_packing import pack
from memory_actor.shard import Shard, independent, place
from memory_actor.tenant import TenantMemory
from memory_actor.types import FactText, MemoryConfig, ReadMode
from tests.checkpoint_samples import UID, bench_of, made_fact, snapshot_of
from tests.memory_fixtures import SMALL, Bench, encoded_facts, ids_of, integer_sums, sign_latents, texts_of, unit_keys

#: Keys that facts share: some facts have equal addresses, which may never share a shard.
KEYS = unit_keys(77, 12)


def stored_and_back(bench: Bench) -> Snapshot:
    return from_arrow(to_arrow(snapshot_of(bench), SMALL), SMALL)


def loaded(bench: Bench) -> Bench:
    """Another memory with the same contents, by way of a checkpoint."""
    other = Bench.new()
    other.stored.update(bench.stored)
    other.tenant.load(stored_and_back(bench), {fact_id: fact.seq for fact_id, fact in bench.stored.items()})
    other.tenant.next_seq = bench.tenant.next_seq
    return other


def replayed(bench: Bench) -> Bench:
    """Another memory with the same contents, from the rows of the ledger in their order."""
    other = Bench.new()
    other.stored.update(bench.stored)
    rows = sorted(bench.stored.values(), key=lambda fact: fact.seq)
    for start in range(0, len(rows), 7):
        other.tenant.replay(rows[start : start + 7])
    other.tenant.version, other.tenant.next_seq = bench.tenant.version, bench.tenant.next_seq
    return other


def assert_same(one: Bench, other: Bench) -> None:
    """Equal in everything that a caller could ask, for every key there is."""
    first, second = one.tenant, other.tenant
    assert first.state_hash() == second.state_hash()
    assert first.facts.keys() == second.facts.keys()
    assert first.by_prompt == second.by_prompt
    assert (first.version, first.next_seq, first.total_rows) == (second.version, second.next_seq, second.total_rows)
    for key, mode in itertools.product((*KEYS, *unit_keys(5, 3)), ReadMode):
        mine, theirs = first.recall(key[None], mode), second.recall(key[None], mode)
        assert (mine.in_scope, mine.fact_id) == (theirs.in_scope, theirs.fact_id)
        assert (mine.prompt_tokens, mine.target_tokens) == (theirs.prompt_tokens, theirs.target_tokens)
        assert mine.score == pytest.approx(theirs.score, abs=1e-6)  # float32 dot products of unit vectors
        if mine.in_scope and mode is ReadMode.SNAP:
            expected = one.stored[mine.fact_id].latents
            assert np.abs(mine.readout - expected).max() < 0.5  # rounds to what was written
            assert np.abs(theirs.readout - expected).max() < 0.5


steps = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "forget", "supersede"]), st.integers(0, 10**6)),
    min_size=1,
    max_size=14,
)


def play(bench: Bench, history, start: int = 0) -> None:
    """Writes of one to four facts (equal keys, one to three rows), forgets, supersedes: as the numbers say."""
    for number, (what, seed) in enumerate(history, start=start):
        random = np.random.default_rng(seed)
        live = sorted(bench.stored)
        if what == "forget":
            bench.forget([live[i] for i in random.integers(0, len(live), 3)] if live else ["f_unknown"])
            continue
        chosen = random.choice(len(KEYS), random.integers(1, 5), replace=False)
        rows = [int(count) for count in random.integers(1, 4, len(chosen))]
        encoded = encoded_facts(KEYS[chosen], sign_latents(seed, sum(rows)), rows)
        texts = [FactText(f"prompt of key {key}", "target", keep_both=what == "write") for key in chosen]
        bench.write(texts, encoded, [f"f_{number:03d}_{i}" for i in range(len(chosen))])


@settings(max_examples=40, deadline=None)
@given(history=steps, future=steps)
def test_a_loaded_memory_is_the_memory_that_was_and_stays_so(history, future):
    """Live, loaded from a checkpoint and replayed from rows: the same now, and after the same further changes."""
    live = Bench.new()
    play(live, history)
    others = [loaded(live), replayed(live)]
    for other in others:
        assert_same(live, other)
    play(live, future, start=500)
    for other in others:
        play(other, future, start=500)
        assert_same(live, other)


@settings(max_examples=20, deadline=None)
@given(history=steps, future=steps)
def test_a_checkpoint_of_a_loaded_memory_is_the_same_checkpoint(history, future):
    """Save, load, save: not a byte differs, also after further changes on both sides."""
    live = Bench.new()
    play(live, history)
    other = loaded(live)
    assert to_arrow(snapshot_of(other), SMALL) == to_arrow(snapshot_of(live), SMALL)
    play(live, future, start=500)
    play(other, future, start=500)
    assert to_arrow(snapshot_of(other), SMALL) == to_arrow(snapshot_of(live), SMALL)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9, 16, 17, 23, 40])
def test_sums_are_where_they_belong(count):
    """The total is that of the oracle, whole shards are frozen, and sums of shards add up to it."""
    bench = bench_of(count)
    other = loaded(bench)
    cov, cross = integer_sums(bench.stored.values())
    assert np.array_equal(other.tenant.total().cov.numpy(), cov)
    assert np.array_equal(other.tenant.total().cross.numpy(), cross)
    warm = [shard for shard in other.tenant._shards if shard.statistics is not None]
    for shard in warm:
        own, _ = integer_sums(bench.stored[fact_id] for fact_id in shard.fact_ids)
        assert np.array_equal(shard.statistics.cov.numpy(), own)
    assert all(shard.rows <= SMALL.shard_rows_max for shard in other.tenant._shards)
    assert other.tenant._open == [shard for shard in other.tenant._shards if shard.room]


def test_one_shard_is_loaded_without_a_product(monkeypatch):
    """The sums of the snapshot become those of the shard; not one row is multiplied."""
    bench = bench_of(4)
    snapshot = stored_and_back(bench)
    monkeypatch.setattr("memory_actor.episodic_memory.SufficientStatistics._update_", None)
    memory = Bench.new().tenant
    memory.load(snapshot)
    assert memory.state_hash() == snapshot.state_hash
    assert [shard.statistics is None for shard in memory._shards] == [False]


def test_a_snapshot_is_not_changed_by_what_it_was_loaded_into():
    bench = bench_of(4)
    snapshot = stored_and_back(bench)
    before = to_arrow(snapshot, SMALL)
    other = loaded(bench)
    other.tenant.end()
    other = Bench.new()
    other.tenant.load(snapshot)
    other.write(texts_of(2, 50), encoded_facts(unit_keys(9, 2)), ids_of(2, 50))
    assert to_arrow(snapshot, SMALL) == before


def test_only_an_empty_memory_can_be_loaded():
    bench = bench_of(4)
    with pytest.raises(ValueError, match="not empty"):
        bench.tenant.load(snapshot_of(bench))


def test_positions_are_the_ledgers_where_it_is_asked_and_ranks_otherwise():
    bench = bench_of(5)
    bench.forget(ids_of(2))
    snapshot = stored_and_back(bench)
    memory = Bench.new().tenant
    memory.load(snapshot)
    assert memory.next_seq == 4
    memory = Bench.new().tenant
    memory.load(snapshot, {fact_id: 100 + fact.seq for fact_id, fact in bench.stored.items()})
    assert memory.next_seq == 106


def test_a_fact_forgotten_beside_a_snapshot_is_noticed():
    """The rows are read without the lock: when one is gone by then, there is no snapshot, and the next one is whole."""
    bench = bench_of(5)
    rows_of = bench.tenant.rows_of

    def forgetting(fact_ids):
        if len(bench.stored) == 5:
            bench.forget(ids_of(1))
        return rows_of(fact_ids)

    assert bench.tenant.snapshot(UID, forgetting) is None
    snapshot = bench.tenant.snapshot(UID, forgetting)
    assert snapshot is not None
    assert (len(snapshot.facts), snapshot.version) == (4, bench.tenant.version)
    assert snapshot.state_hash == bench.hash == snapshot.rebuilt_hash(SMALL)


def test_the_size_in_memory_is_about_right():
    """Sums and M dominate; a memory that was ended takes nothing."""
    bench = bench_of(4)
    sums = (32 * 32 + 32 * 24) * 8
    before = bench.tenant.bytes
    assert sums < before < 2 * sums + 4 * 1000
    bench.tenant.recall(bench.stored["f_00000"].key[None], ReadMode.SNAP)
    assert bench.tenant.bytes == before + 32 * 24 * 4
    bench.tenant.end()
    assert bench.tenant.bytes == 0


# -- laying facts into shards -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bulk_placement_is_placement_one_by_one(data):
    """`independent` is what `place` does with one empty shard, and `place` is first fit by cosine, done naively."""
    count = data.draw(st.integers(1, 12))
    rows = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    basis = random.integers(-127, 128, (4, 32)).astype(np.int8)
    addresses = torch.from_numpy(basis[random.integers(0, 4, sum(rows))])
    config = MemoryConfig("aa", address_size=32, latent_size=4)
    shards = [Shard(config), Shard(config)]
    filled = torch.from_numpy(basis[:1])
    shards[0].add("there", filled)
    expected = naively_placed([[basis[0]], []], addresses.numpy(), rows, 32)
    assert place(shards, addresses, rows, 0.95) == expected
    alone = [choice == 0 for choice in place([Shard(config)], addresses, [*rows], 0.95)]
    if sum(rows) <= 32:
        assert independent(addresses, rows, 0.95) == alone


def naively_placed(shards, addresses, rows, rows_max):
    """First shard with room where no row is nearly collinear with one of the fact's, one cosine at a time."""
    placed, start = [], 0
    for count in rows:
        own = addresses[start : start + count].astype(np.float64)
        start += count
        choice = None
        for index, members in enumerate(shards):
            close = any(
                abs(a @ b.astype(np.float64)) / np.linalg.norm(a) / np.linalg.norm(b.astype(np.float64)) > 0.95
                for a in own
                for b in members
            )
            if len(members) + count <= rows_max and not close:
                choice = index
                members.extend(own.astype(np.int8))
                break
        placed.append(choice)
    return placed


def test_packing_keeps_every_fact_once_and_near_copies_apart():
    """Groups hold at most a shard's rows, none collinear; facts of the last, incomplete group come after."""
    facts = [made_fact(number, rows=1 + number % 3) for number in range(30)]
    copies = [replace(facts[0], fact_id=f"f_copy{i}") for i in range(3)]
    facts[1:1] = copies
    groups, rest = pack(facts, SMALL)
    assert sorted(fact.fact_id for fact in itertools.chain(*groups, rest)) == sorted(fact.fact_id for fact in facts)
    assert all(sum(fact.addresses.shape[0] for fact in group) <= 8 for group in groups)
    assert {fact.fact_id for fact in rest} >= {copy.fact_id for copy in copies}
    assert pack([], SMALL) == ([], [])
    assert isinstance(Bench.new().tenant, TenantMemory)
