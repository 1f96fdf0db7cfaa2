"""The paper's operations against numpy, and the exact memory against the paper's recursion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memory_actor.episodic_memory import SufficientStatistics, solve
from memory_actor.paper import (
    RecursiveMemory,
    one_shot_write,
    projection_read,
    replace,
    rescale_readout,
    sampled_read,
    sequential_update,
)

K, C = 16, 20


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def small_rows(seed: int, n: int, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    w, z = rng.integers(-9, 10, (n, k)), rng.integers(-1, 2, (n, C))
    return torch.from_numpy(w.astype(np.int8)), torch.from_numpy(z.astype(np.int8))


def gap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((first - second).abs().max() / second.abs().max())


# -- Algorithm 1 ------------------------------------------------------------------------------------------------


def test_write_then_read_projects_on_the_written_encodings():
    """For N <= K, reading any query returns its orthogonal projection on the span of Z: numpy's q Z^+ Z."""
    z, prior, queries = normal(1, 9, C), normal(2, K, C), normal(3, 5, C)
    memory = one_shot_write(z, prior)
    expected = queries.numpy() @ np.linalg.pinv(z.numpy()) @ z.numpy()
    assert np.allclose(projection_read(queries, memory).numpy(), expected, atol=1e-9)
    assert np.allclose(projection_read(z, memory).numpy(), z.numpy(), atol=1e-9)  # what was written comes back
    q, _ = np.linalg.qr(z.numpy().T)  # and an orthonormal basis says the same
    assert np.allclose(projection_read(queries, memory).numpy(), queries.numpy() @ q @ q.T, atol=1e-9)


def test_one_fact_has_a_closed_form():
    """N = 1: W_0 = z M_0^+ is a row, so M = W_0^T z / |W_0|^2, and a read is (q z^T) z / |z|^2."""
    z, prior, query = normal(4, 1, C), normal(5, K, C), normal(6, 1, C)
    w = z.numpy() @ np.linalg.pinv(prior.numpy())
    memory = one_shot_write(z, prior)
    assert np.allclose(memory.numpy(), w.T @ z.numpy() / (w**2).sum(), atol=1e-12)
    expected = (query.numpy() @ z.numpy().T) * z.numpy() / (z.numpy() ** 2).sum()
    assert np.allclose(projection_read(query, memory).numpy(), expected, atol=1e-12)


def test_reading_twice_is_reading_once():
    """A projection is idempotent, within K facts and beyond."""
    for n in (7, 3 * K):
        memory = one_shot_write(normal(7, n, C), normal(8, K, C))
        once = projection_read(normal(9, 4, C), memory)
        assert torch.allclose(projection_read(once, memory), once, atol=1e-9)


def test_sampled_read_is_seeded_and_centred_on_the_plain_read():
    """Equal seeds give equal readouts, sigma 0 gives the projection, and the noise has covariance sigma^2 M^T M."""
    memory, query = one_shot_write(normal(10, 6, C), normal(11, K, C)), normal(12, 1, C)

    def sample(seed: int, sigma: float, count: int = 1) -> torch.Tensor:
        return sampled_read(query.repeat(count, 1), memory, sigma, torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(sample(1, 0.5), sample(1, 0.5))
    assert not torch.equal(sample(1, 0.5), sample(2, 0.5))
    assert torch.equal(torch.get_rng_state(), state)  # global state untouched
    assert torch.allclose(sample(1, 0.0), projection_read(query, memory))
    noise = (sample(3, 0.5, 40_000) - projection_read(query, memory)).numpy()
    expected = 0.25 * memory.numpy().T @ memory.numpy()
    # A sample covariance of n draws is off by at most sqrt(2/n) of the largest variance; five of these.
    assert np.abs(np.cov(noise.T) - expected).max() < 5 * (2 / 40_000) ** 0.5 * expected.max()


# -- the recursion ----------------------------------------------------------------------------------------------


def test_exact_memory_equals_the_papers_recursion():
    """Eqs. (3)-(4) fact by fact or in batches, started at Cov = ridge I, give the M that the sums give.

    The recursion is float64 and ours rounds to float32 at the end: 1e-6 of the largest entry.
    """
    w, z = small_rows(13, 40)
    ridge = 3.0
    for size in (1, 7, 40):
        state = RecursiveMemory.empty(K, C, ridge)
        for start in range(0, 40, size):
            state = sequential_update(state, w[start : start + size].double(), z[start : start + size].double())
        statistics = SufficientStatistics.zeros(K, C)
        statistics.write_(w, z)
        assert gap(solve(statistics, ridge).double(), state.memory) < 1e-6
        assert torch.equal(state.cov - ridge * torch.eye(K), statistics.cov)


def test_the_recursion_forgets_where_leverage_is_below_one():
    """With more facts than slots, writing then forgetting by eq. (4) returns M to 1e-11, as does the exact memory."""
    w, z = small_rows(14, 3 * K)
    base = sequential_update(RecursiveMemory.empty(K, C, 1e-3), w[4:].double(), z[4:].double())
    there = sequential_update(base, w[:4].double(), z[:4].double())
    back = sequential_update(there, w[:4].double(), z[:4].double(), alpha=-1)
    assert gap(back.memory, base.memory) < 1e-11
    assert torch.equal(back.cov, base.cov)


def test_the_recursion_is_singular_at_leverage_one_where_ours_is_exact():
    """Forgetting the only fact: without ridge Cov' is singular and eq. (4) has no answer; our sums return to zero."""
    w, z = small_rows(15, 1)
    cov = w.double().T @ w.double()
    state = RecursiveMemory(torch.linalg.pinv(w.double()) @ z.double(), cov)
    with pytest.raises(torch.linalg.LinAlgError):
        sequential_update(state, w.double(), z.double(), alpha=-1)
    statistics = SufficientStatistics.zeros(K, C)
    statistics.write_(w, z)
    statistics.forget_(w, z)
    assert not statistics.cov.any()
    assert not statistics.cross.any()


def test_the_recursion_drifts_near_leverage_one_where_ours_is_exact():
    """100 facts written and forgotten one by one with a small ridge: the recursion's error is visible, ours is zero."""
    w, z = small_rows(16, 101)
    state = RecursiveMemory.empty(K, C, 1e-7)
    state = sequential_update(state, w[100:].double(), z[100:].double())
    base = state
    statistics = SufficientStatistics.zeros(K, C)
    statistics.write_(w[100:], z[100:])
    for alpha in (1, -1):
        for i in range(100):
            state = sequential_update(state, w[i : i + 1].double(), z[i : i + 1].double(), alpha)
            (statistics.write_ if alpha == 1 else statistics.forget_)(w[i : i + 1], z[i : i + 1])
    assert gap(state.memory, base.memory) > 1e-9
    w64, z64 = w[100:].numpy().astype(np.int64), z[100:].numpy().astype(np.int64)
    assert np.array_equal(statistics.cov.numpy(), w64.T @ w64)
    assert np.array_equal(statistics.cross.numpy(), w64.T @ z64)


def test_replacing_is_forgetting_and_writing():
    """replace(w, old -> new) equals eq. (4) with alpha -1 for old and +1 for new, to 1e-10."""
    w, z = small_rows(17, 2 * K)
    state = sequential_update(RecursiveMemory.empty(K, C, 0.5), w.double(), z.double())
    weights, old, new = w[:3].double(), z[:3].double(), normal(18, 3, C)
    stepwise = sequential_update(sequential_update(state, weights, old, alpha=-1), weights, new)
    replaced = replace(state, weights, old, new)
    assert gap(replaced.memory, stepwise.memory) < 1e-10
    assert torch.equal(replaced.cov, state.cov)


def test_operations_leave_their_arguments_alone():
    w, z = small_rows(19, 5)
    state = RecursiveMemory.empty(K, C, 1.0)
    sequential_update(state, w.double(), z.double())
    replace(state, w.double(), z.double(), -z.double())
    assert torch.equal(state.cov, torch.eye(K, dtype=torch.float64))
    assert not state.memory.any()


def test_rescaling_sets_the_length_and_keeps_the_direction():
    readouts = normal(20, 4, C)
    scaled = rescale_readout(readouts, 3.0)
    assert torch.allclose(scaled.norm(dim=1), torch.full((4,), 3.0, dtype=torch.float64))
    assert torch.allclose(torch.nn.functional.cosine_similarity(scaled, readouts), torch.ones(4, dtype=torch.float64))
    assert torch.equal(rescale_readout(torch.zeros(1, C), 3.0), torch.zeros(1, C))  # a zero stays zero, not NaN


def test_wrong_shapes_are_refused():
    state = RecursiveMemory.empty(K, C, 1.0)
    one = torch.zeros(1, K, dtype=torch.float64)
    with pytest.raises(ValueError, match="alpha must be"):
        sequential_update(state, one, torch.zeros(1, C), alpha=2)
    with pytest.raises(ValueError, match=rf"weights must be \(N, {K}\)"):
        sequential_update(state, torch.zeros(1, K + 1), torch.zeros(1, C))
    with pytest.raises(ValueError, match="encodings must be"):
        sequential_update(state, one, torch.zeros(1, C + 1))
    with pytest.raises(ValueError, match="differ in shape"):
        replace(state, one, torch.zeros(1, C), torch.zeros(2, C))
    with pytest.raises(ValueError, match="queries must be"):
        projection_read(torch.zeros(1, C + 1), torch.zeros(K, C))
