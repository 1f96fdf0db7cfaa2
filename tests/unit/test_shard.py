"""One shard: rows kept and moved rightly, never more than its capacity, caches valid for one change only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_actor.episodic_memory import SufficientStatistics, read
from memory_actor.shard import Shard, place
from tests.memory_fixtures import SMALL, sign_latents

CAPACITY = SMALL.shard_rows_max  # 8


def addresses_of(seed: int, count: int) -> torch.Tensor:
    rows = np.random.default_rng(seed).integers(-127, 128, (count, SMALL.address_size))
    return torch.from_numpy(rows.astype(np.int8))


def filled(count: int, start: int = 0) -> Shard:
    shard = Shard(SMALL)
    for i in range(start, start + count):
        shard.add(f"f{i}", addresses_of(i, 1))
    return shard


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 100)), min_size=1, max_size=40))
def test_any_sequence_of_adds_and_removals_keeps_each_facts_rows(steps):
    """Facts of 1 to 3 rows come and go; each keeps its own addresses in the order of its parts, and rows fit."""
    shard, model = Shard(SMALL), {}
    for number, (remove, count, seed) in enumerate(steps):
        changes = shard.changes
        if remove and model:
            fact_id = sorted(model)[seed % len(model)]
            shard.remove(fact_id)
            del model[fact_id]
        elif count <= shard.room:
            shard.add(f"f{number}", addresses_of(number, count))
            model[f"f{number}"] = addresses_of(number, count)
        else:
            with pytest.raises(ValueError, match="do not fit"):
                shard.add(f"f{number}", addresses_of(number, count))
            continue
        assert shard.changes == changes + 1
        assert shard.rows == sum(len(rows) for rows in model.values()) == CAPACITY - shard.room
        assert sorted(shard.fact_ids) == sorted(model)
        for fact_id, rows in model.items():
            assert torch.equal(shard.addresses_of(fact_id), rows)
        assert not shard._addresses[shard.rows :].any()  # nothing of a removed fact stays behind


def test_a_solved_memory_is_valid_for_the_state_it_was_solved_at():
    """M is forgotten on any change, and one that was solved for an older state is not kept."""
    shard = filled(3)
    memory = torch.ones(SMALL.address_size, SMALL.latent_size)
    shard.keep_memory(memory, shard.changes)
    assert shard.memory is memory
    stale = shard.changes
    shard.add("new", addresses_of(9, 1))
    assert shard.memory is None
    shard.keep_memory(memory, stale)
    assert shard.memory is None
    shard.keep_memory(memory, shard.changes)
    shard.remove("f1")
    assert shard.memory is None
    assert shard._memory is None  # the old M still knows the fact


def test_a_warm_shard_solves_from_its_own_sums():
    """M of the shard's sums returns each fact's latent from its stored address."""
    shard, w, z = Shard(SMALL), addresses_of(1, CAPACITY), torch.from_numpy(sign_latents(1, CAPACITY))
    for i in range(CAPACITY):
        shard.add(f"f{i}", w[i : i + 1])
    assert shard.statistics is not None
    shard.statistics.write_(w, z)
    memory = shard.solve_from(shard.statistics)
    for i in range(CAPACITY):
        assert (read(memory, shard.addresses_of(f"f{i}")) - z[i]).abs().max() < 1e-2


def test_freezing_gives_the_sums_away_once():
    shard, w, z = Shard(SMALL), addresses_of(2, 3), torch.from_numpy(sign_latents(2, 3))
    assert isinstance(shard.statistics, SufficientStatistics)
    shard.statistics.write_(w, z)
    given_away = shard.freeze()
    assert shard.statistics is None
    assert given_away.rows == 3
    with pytest.raises(ValueError, match="frozen already"):
        shard.freeze()


def test_overlap_is_the_largest_cosine():
    """numpy's cosines agree; an empty shard overlaps with nothing; a sign flip counts as collinear."""
    shard, given_rows = filled(4), addresses_of(50, 6)
    stored = np.vstack([addresses_of(i, 1).numpy() for i in range(4)]).astype(np.float64)
    w = given_rows.numpy().astype(np.float64)
    cosine = np.abs(w @ stored.T) / np.linalg.norm(w, axis=1)[:, None] / np.linalg.norm(stored, axis=1)
    assert np.allclose(shard.overlap(given_rows).numpy(), cosine.max(1), atol=1e-6)
    assert not Shard(SMALL).overlap(given_rows).any()
    assert shard.overlap(-addresses_of(2, 1))[0] == pytest.approx(1.0, abs=1e-6)


# -- placement --------------------------------------------------------------------------------------------------


def test_facts_go_to_the_first_shard_with_room():
    """Six facts over shards with 2, 0 and 3 rows free: in order, the last one finds no place."""
    shards = [filled(6), filled(8, 10), filled(5, 20)]
    assert place(shards, addresses_of(99, 6), [1] * 6, 0.95) == [0, 0, 2, 2, 2, None]


def test_the_parts_of_a_fact_stay_together():
    """A fact of three rows does not start in a shard with two rows free, a smaller one behind it still does."""
    shards = [filled(6), filled(4, 20)]
    assert place(shards, addresses_of(98, 5), [3, 2], 0.95) == [1, 0]


def test_near_copies_do_not_share_a_shard():
    """A stored near-copy, one placed by the same call, and a negated one: each sends the fact on."""
    shards = [filled(2), Shard(SMALL)]
    copy = addresses_of(1, 1)
    given_rows = torch.cat([copy, -copy, copy, addresses_of(60, 1)])
    assert place(shards, given_rows, [1] * 4, 0.95) == [1, None, None, 0]


def test_placing_changes_nothing():
    shard = filled(3)
    place([shard], addresses_of(97, 2), [1, 1], 0.95)
    assert (shard.rows, shard.changes) == (3, 3)
    assert place([], addresses_of(97, 2), [1, 1], 0.95) == [None, None]
