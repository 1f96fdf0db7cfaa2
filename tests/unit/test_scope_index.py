"""The scope index against a dict of keys searched by brute force, alone and beside a writer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_actor import scope_index
from memory_actor.scope_index import Neighbour, ScopeIndex

D = 6


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 4 rows, so that a dozen keys cross block borders both ways."""
    monkeypatch.setattr(scope_index, "BLOCK_ROWS", 4)


def key_of(seed: int) -> torch.Tensor:
    key = np.random.default_rng(seed).standard_normal(D)
    return torch.from_numpy((key / np.linalg.norm(key)).astype(np.float32))


def query_of(*seeds: int) -> torch.Tensor:
    """The keys (P, D) of one query."""
    return torch.stack([key_of(seed) for seed in seeds])


def brute_force(keys: dict[str, torch.Tensor], query: torch.Tensor) -> list[tuple[str, float]]:
    """(fact, best cosine to one of the query's keys) of all facts, best first, in float64."""
    asked = [q / np.linalg.norm(q) for q in query.numpy().astype(np.float64)]
    cosines = {
        fact_id: max(float(k.numpy().astype(np.float64) @ q) / np.linalg.norm(k.numpy()) for q in asked)
        for fact_id, k in keys.items()
    }
    return sorted(cosines.items(), key=lambda pair: -pair[1])


def test_an_empty_index_has_no_nearest():
    index = ScopeIndex(D)
    assert index.nearest(query_of(0)) is None
    assert index.search(query_of(0)) is None
    assert index.within(query_of(0), -1.0, 10) == []
    assert len(index) == 0


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=40))
def test_any_sequence_of_adds_and_removals_answers_as_brute_force(steps):
    """After every step, nearest and within agree with a dict, and what is not live leaves no number behind."""
    index, keys = ScopeIndex(D), {}
    for number, (remove, seed) in enumerate(steps):
        if remove and keys:
            fact_id = sorted(keys)[seed % len(keys)]
            index.remove(fact_id)
            del keys[fact_id]
        else:
            index.add(f"f{number}", key_of(seed))
            keys[f"f{number}"] = key_of(seed)
        assert len(index) == len(keys)
        assert all(fact_id in index for fact_id in keys)
        query = query_of(*range(seed + 1, seed + 2 + number % 3))  # one to three keys
        expected = brute_force(keys, query)
        found = index.nearest(query)
        assert (found is None) == (not keys)
        if found is not None:
            assert found.score == pytest.approx(expected[0][1], abs=1e-6)  # float32 dot of unit vectors
            assert found.score == pytest.approx(dict(expected)[found.fact_id], abs=1e-6)
            alone = brute_force(keys, query[found.key : found.key + 1])
            assert found.score == pytest.approx(dict(alone)[found.fact_id], abs=1e-6)
        near = index.within(query, 0.3, limit=5)
        assert [one.score for one in near] == pytest.approx([s for _, s in expected if s >= 0.3][:5], abs=1e-6)
        rows = torch.cat(index._blocks) if index._blocks else torch.zeros(0, D)
        assert int((rows.norm(dim=1) > 0).sum()) == len(keys)
        assert len(index._blocks) == -(-len(keys) // 4)


def test_a_facts_own_key_is_its_nearest_however_keys_were_rounded():
    """A neighbour whose rounded key is a little longer than one does not beat the fact's own key."""
    own = torch.nn.functional.normalize(torch.tensor([1.0, 0.0, 0, 0, 0, 0]), dim=0)
    near = torch.nn.functional.normalize(torch.tensor([1.0, 0.03, 0, 0, 0, 0]), dim=0)
    index = ScopeIndex(D)
    index.add("longer", near * 1.005)
    index.add("own", own * 0.995)
    found = index.nearest((own * 0.995)[None])
    assert found is not None
    assert found.fact_id == "own"
    assert found.score == pytest.approx(1.0, abs=1e-6)


def test_misuse_is_refused():
    """A known fact, a key of the wrong size, an unknown fact."""
    index = ScopeIndex(D)
    index.add("a", key_of(1))
    with pytest.raises(ValueError, match="in the index already"):
        index.add("a", key_of(2))
    with pytest.raises(ValueError, match="key must be"):
        index.add("b", torch.zeros(D + 1))
    for shape in ((D,), (1, D - 1), (0, D), (1, 1, D)):
        with pytest.raises(ValueError, match="keys must be"):
            index.nearest(torch.zeros(shape))
        with pytest.raises(ValueError, match="keys must be"):
            ScopeIndex(D).within(torch.zeros(shape), 0.5, 3)
    with pytest.raises(KeyError):
        index.remove("b")
    assert index.nearest(query_of(1)) == Neighbour("a", pytest.approx(1.0, abs=1e-6))


class Racing:
    """A query during whose search something happens: just after the number of keys was looked up."""

    def __init__(self, query: torch.Tensor, meanwhile):
        self._query, self._meanwhile = query, meanwhile
        self.shape = query.shape

    def __iter__(self):
        self._meanwhile()
        return iter(self._query)


def test_a_search_survives_the_removal_of_the_only_key():
    """The last block goes while a search is under way: no error, and `removals` tells that the answer is void."""
    index = ScopeIndex(D)
    index.add("only", key_of(1))
    before = index.removals
    index.search(Racing(query_of(1), lambda: index.remove("only")))
    assert index.removals != before
    assert index.search(query_of(1)) is None


class Vanishing(list):
    """A list of blocks that loses its last one between the look at its length and the look at its items."""

    def __iter__(self):
        return iter(self[:-1])


def test_a_search_survives_blocks_that_go_before_it_sees_them():
    """Keys were counted, then their only block was popped: the search finds nothing and does not raise."""
    index = ScopeIndex(D)
    index.add("only", key_of(1))
    index._blocks = Vanishing(index._blocks)
    assert index.search(query_of(1)) is None


def test_a_search_survives_appends():
    """Keys appended during a search, into new blocks too, do not change its answer."""
    index = ScopeIndex(D)
    for i in range(4):
        index.add(f"f{i}", key_of(i))

    def append() -> None:
        for i in range(10, 20):
            index.add(f"f{i}", key_of(3))

    before = index.removals
    found = index.search(Racing(query_of(3), append))
    assert found is not None
    assert index.newest(found).fact_id == "f3"
    assert index.removals == before
    assert len(index) == 14


def test_of_equal_keys_the_newest_fact_is_found():
    """Facts with one key, in any order and after removals: the one written last answers."""
    index = ScopeIndex(D)
    for seq in (3, 9, 5, 7):
        index.add(f"f{seq}", key_of(1), seq)
        index.add(f"other{seq}", key_of(10 + seq), 100 + seq)

    assert index.nearest(query_of(1)).fact_id == "f9"
    index.remove("f9")
    index.remove("other7")
    assert index.nearest(query_of(1)).fact_id == "f7"


def test_of_equal_keys_the_newest_fact_is_found_by_whichever_key_of_the_query():
    """Equal cosines, the facts' by different keys of the query: the newest fact, and the key that found it."""
    index = ScopeIndex(D)
    index.add("old", key_of(1), 1)
    index.add("new", key_of(2), 2)
    assert index.nearest(query_of(1, 2)) == Neighbour("new", pytest.approx(1.0, abs=1e-6), 1)
    assert index.nearest(query_of(2, 1)) == Neighbour("new", pytest.approx(1.0, abs=1e-6), 0)
    assert index.nearest(query_of(1, 1)) == Neighbour("old", pytest.approx(1.0, abs=1e-6), 0)


def test_near_facts_are_listed_once_by_their_best_key():
    index = ScopeIndex(D)
    for number in range(3):
        index.add(f"f{number}", key_of(number))
    near = index.within(query_of(1, 2, 1), 0.99, limit=5)
    assert sorted((one.fact_id, one.key) for one in near) == [("f1", 0), ("f2", 1)]


def test_one_key_scores_as_a_product_with_a_vector_does_to_the_bit():
    """A query of one key is not touched by the possibility of several."""
    index, rows = ScopeIndex(384), []
    for number in range(10):
        key = torch.from_numpy(np.random.default_rng(number).standard_normal(384).astype(np.float32))
        index.add(f"f{number}", key)
        rows.append(key / max(float(key @ key) ** 0.5, 1e-12))
    for number in range(10, 30):
        key = torch.from_numpy(np.random.default_rng(number).standard_normal(384).astype(np.float32))
        unit = key / max(float(key @ key) ** 0.5, 1e-12)
        assert index.nearest(key[None]).score == max(
            float(score) for start in range(0, 12, 4) for score in block_of(rows, start) @ unit
        )


def block_of(rows: list[torch.Tensor], start: int) -> torch.Tensor:
    """Four rows as one matrix, zeros where there are none."""
    return torch.stack([rows[i] if i < len(rows) else torch.zeros(384) for i in range(start, start + 4)])


@pytest.mark.parametrize("before", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 11])
def test_many_at_once_are_as_many_one_by_one(before, count):
    """Also across block borders, with equal keys among them: same answers, same order of the newest."""
    bulk, single = ScopeIndex(D), ScopeIndex(D)
    for index in (bulk, single):
        for i in range(before):
            index.add(f"old{i}", key_of(i), i)
    seqs = [100 - i for i in range(count)]
    keys = [key_of(50 + i // 2) * (1 + i / 100) for i in range(count)]
    for i in range(count):
        single.add(f"new{i}", keys[i], seqs[i])
    bulk.add_many([f"new{i}" for i in range(count)], torch.stack(keys) if keys else torch.zeros(0, D), seqs)
    assert len(bulk) == len(single) == before + count
    assert bulk.bytes == (before + count) * D * 4
    for i in range(60):
        first, second = bulk.nearest(query_of(i)), single.nearest(query_of(i))
        assert (first is None) == (second is None)
        if first is not None:
            assert first.fact_id == second.fact_id
            assert first.score == pytest.approx(second.score, abs=1e-6)  # float32 norms, summed in another order
    for i in range(0, count, 2):
        bulk.remove(f"new{i}")
    assert len(bulk) == before + count // 2


def test_many_that_do_not_fit_change_nothing():
    index = ScopeIndex(D)
    index.add("a", key_of(1))
    for ids, keys, seqs in (
        (["b", "b"], torch.stack([key_of(1), key_of(2)]), [1, 2]),
        (["b", "a"], torch.stack([key_of(1), key_of(2)]), [1, 2]),
        (["b"], torch.stack([key_of(1), key_of(2)]), [1]),
        (["b"], key_of(1).unsqueeze(0), [1, 2]),
        (["b"], torch.zeros(1, D + 1), [1]),
    ):
        with pytest.raises(ValueError):
            index.add_many(ids, keys, seqs)
        assert len(index) == 1
        assert index.nearest(query_of(1)).fact_id == "a"
