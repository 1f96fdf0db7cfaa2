"""Scores of a gate, against cosines counted by hand."""

import numpy as np
import pytest

from jobs.evaluation.gate_scores import WRONG, nearest, paired, unit

STORED = np.array([[1, 0], [0, 2]], np.float16)  # the second is not unit: its length must not count


def query(*keys):
    return np.array(keys, np.float16)


def test_a_query_scores_with_the_best_of_its_keys():
    """Of the keys (1, 0) and (3, 4), the second comes to the stored (0, 2) with cosine 4/5."""
    scores = paired([query((1, 0)), query((1, 0), (3, 4))], STORED)
    assert scores == pytest.approx([1.0, 0.8], abs=1e-3)


def test_the_nearest_fact_is_that_of_any_key():
    """With two keys a query finds the fact that either of them is nearest to."""
    found = nearest([query((4, 3)), query((0.6, -0.8), (0.1, 1))], STORED)
    assert found.positions.tolist() == [0, 1]
    assert found.scores == pytest.approx([0.8, 1 / np.sqrt(1.01)], abs=1e-3)


def test_a_wrong_nearest_fact_is_no_acceptance_at_any_threshold():
    """A query whose nearest fact is another one scores less than any cosine."""
    found = nearest([query((1, 0)), query((1, 0))], STORED)
    assert found.right([0, 1]).tolist() == [1.0, WRONG]


def test_many_queries_are_scored_as_one():
    """Queries are taken in parts; where a part ends does not show."""
    random = np.random.default_rng(0)
    queries = [random.standard_normal((1 + i % 3, 4)).astype(np.float16) for i in range(600)]
    stored = random.standard_normal((5, 4)).astype(np.float16)
    found = nearest(queries, stored)
    for index in (0, 255, 256, 599):
        cosines = (unit(queries[index]) @ unit(stored).T).max(0)
        assert found.positions[index] == cosines.argmax()
        assert found.scores[index] == pytest.approx(cosines.max())


def test_pairs_must_pair():
    """A query too many is a mistake, not a shorter list."""
    with pytest.raises(ValueError, match="do not pair"):
        paired([query((1, 0))], STORED)
