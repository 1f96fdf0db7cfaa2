"""The paper's recursive read, against projections worked out by hand and by least squares."""

import numpy as np
import pytest
import torch

from jobs.evaluation.recursive_read import RecursiveReader, Weights

KEYS = torch.eye(4)[:3]  # three orthogonal keys in four dimensions
VALUES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])


def test_one_memory_projects_the_query_on_its_keys():
    """With orthogonal keys the weights are the query's coordinates: 0.6 z_0 + 0.8 z_1, what lies outside is lost."""
    query = torch.tensor([0.6, 0.8, 0.0, 7.0])
    assert RecursiveReader(KEYS, VALUES, Weights.PROJECTION).read(query).tolist() == pytest.approx([0.6, 0.8])


def test_two_levels_blend_the_groups():
    """Groups {k0, k1} and {k2}: level one reads q's parts in each, level two weighs each part 1."""
    query = torch.tensor([0.6, 0.0, 0.8, 0.0])
    readout = RecursiveReader(KEYS, VALUES, Weights.PROJECTION, group=2).read(query)
    assert readout.tolist() == pytest.approx([0.6 + 4.0, 4.0])


def test_a_written_key_is_read_back_exactly_through_three_levels():
    """A query that is a stored key lies in its own group's span at every level."""
    random = np.random.default_rng(0)
    keys = torch.nn.functional.normalize(torch.tensor(random.standard_normal((70, 64)), dtype=torch.float32), dim=1)
    values = torch.tensor(random.standard_normal((70, 8)), dtype=torch.float32)
    for weights in Weights:
        reader = RecursiveReader(keys, values, weights, group=4)
        for index in (0, 37, 69):
            assert torch.allclose(reader.read(keys[index]), values[index], atol=1e-3)


def test_the_first_level_is_a_least_squares_fit():
    """The weights of Algorithm 1 are those of the best fit of the query by the keys."""
    random = np.random.default_rng(1)
    keys, values = random.standard_normal((5, 9)), random.standard_normal((5, 3))
    query = random.standard_normal(9)
    fitted = np.linalg.lstsq(keys.T, query, rcond=None)[0]
    reader = RecursiveReader(*(torch.tensor(x, dtype=torch.float32) for x in (keys, values)), Weights.PROJECTION)
    assert reader.read(torch.tensor(query, dtype=torch.float32)).tolist() == pytest.approx(fitted @ values, abs=1e-4)


def test_the_gaussian_filter_takes_the_nearest_of_all_groups():
    """With alpha 1e-3 the filter is one-hot, and the recursion a tournament that the nearest key wins."""
    query = torch.tensor([0.1, 0.2, 0.9, 0.0])
    readout = RecursiveReader(KEYS, VALUES, Weights.GAUSSIAN, group=2).read(query)
    assert readout.tolist() == pytest.approx([5.0, 5.0])


def test_nothing_written_cannot_be_read():
    """A reader without chunks is refused."""
    with pytest.raises(ValueError, match="at least one"):
        RecursiveReader(torch.zeros(0, 4), torch.zeros(0, 2), Weights.PROJECTION)
