"""The exact memory against numpy: int64 sums, least squares, the paper's recursion. No oracle uses our formulas."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from memory_actor.episodic_memory import (
    EXACT_INTEGER_MAX,
    SufficientStatistics,
    leverage,
    merge,
    read,
    read_many,
    solve,
)

K, C = 24, 10


def rows(seed: int, n: int, k: int = K, c: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    """N random rows over the whole int8 range: W (N, K), Z (N, C)."""
    rng = np.random.default_rng(seed)
    w, z = rng.integers(-127, 128, (n, k)), rng.integers(-128, 128, (n, c))
    return torch.from_numpy(w.astype(np.int8)), torch.from_numpy(z.astype(np.int8))


def written(w: torch.Tensor, z: torch.Tensor) -> SufficientStatistics:
    statistics = SufficientStatistics.zeros(w.shape[1], z.shape[1])
    statistics.write_(w, z)
    return statistics


def same(first: SufficientStatistics, second: SufficientStatistics) -> bool:
    return torch.equal(first.cov, second.cov) and torch.equal(first.cross, second.cross) and first.rows == second.rows


# -- exactness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "k", "c"), [(1, K, C), (2, K, C), (700, 64, 96), (257, 256, 384)])
def test_sums_equal_int64_arithmetic_to_the_bit(n, k, c, threads):
    """float64 BLAS on one or two threads gives exactly what numpy's int64 matrix product gives."""
    w, z = rows(1, n, k, c)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        statistics = written(w, z)
    finally:
        torch.set_num_threads(before)
    w64, z64 = w.numpy().astype(np.int64), z.numpy().astype(np.int64)
    assert np.array_equal(statistics.cov.numpy(), w64.T @ w64)
    assert np.array_equal(statistics.cross.numpy(), w64.T @ z64)
    assert statistics.rows == n


def test_sums_are_exact_at_the_edge_of_the_range():
    """Next to 2^53 a write and its forget still return every number to the bit; float64 rounds beyond."""
    w, z = rows(2, 5)
    statistics = SufficientStatistics.zeros(K, C)
    base = float(EXACT_INTEGER_MAX - 5 * 127 * 128)
    statistics.cov += base
    statistics.cross -= base
    statistics.write_(w, z)
    assert np.array_equal(statistics.cov.numpy().astype(np.int64) - int(base), written(w, z).cov.numpy())
    statistics.forget_(w, z)
    assert (statistics.cov == base).all()
    assert (statistics.cross == -base).all()


def test_any_order_and_any_batching_is_one_memory():
    """Single writes, one batch, random batches of a permutation and writes undone in between end in equal sums."""
    w, z = rows(3, 200)
    whole = written(w, z)
    rng = np.random.default_rng(4)
    for _ in range(5):
        statistics = SufficientStatistics.zeros(K, C)
        order = torch.from_numpy(rng.permutation(200))
        cuts = [0, *sorted(rng.integers(0, 200, 12).tolist()), 200]
        for start, end in pairwise(cuts):
            part = order[start:end]
            statistics.write_(w[part], z[part])
            statistics.forget_(w[part[::2]], z[part[::2]])
            statistics.write_(w[part[::2]], z[part[::2]])
        assert same(statistics, whole)
    singles = SufficientStatistics.zeros(K, C)
    for i in range(200):
        singles.write_(w[i : i + 1], z[i : i + 1])
    assert same(singles, whole)


def test_forget_leaves_what_was_never_written():
    """Forgetting any subset gives the sums of the rest alone; forgetting all gives zeros."""
    w, z = rows(5, 40)
    statistics = written(w, z)
    gone = torch.tensor([3, 39, 0, 17])
    rest = torch.tensor([i for i in range(40) if i not in gone.tolist()])
    statistics.forget_(w[gone], z[gone])
    assert same(statistics, written(w[rest], z[rest]))
    statistics.forget_(w[rest], z[rest])
    assert same(statistics, SufficientStatistics.zeros(K, C))


def test_merge_of_parts_equals_the_whole():
    """Merging memories of disjoint parts is the memory of everything, in either order, and can be taken back."""
    w, z = rows(6, 50)
    first, second = written(w[:20], z[:20]), written(w[20:], z[20:])
    assert same(merge(first, second), written(w, z))
    assert same(merge(second, first), written(w, z))
    assert same(first, written(w[:20], z[:20]))  # untouched
    whole = written(w, z)
    whole.merge_(second, alpha=-1)
    assert same(whole, first)
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge_(SufficientStatistics.zeros(K, C + 1))


def test_rows_of_the_wrong_type_or_shape_are_refused():
    """Anything but int8 matrices of the memory's sizes is refused and changes nothing."""
    w, z = rows(7, 3)
    statistics = SufficientStatistics.zeros(K, C)
    for bad_w, bad_z in (
        (w.float(), z),
        (w, z.to(torch.int16)),
        (w[:, :-1], z),
        (w, z[:, :-1]),
        (w[:2], z),
        (w[0], z),
        (w, z[0]),
    ):
        with pytest.raises(ValueError, match="must be int8"):
            statistics.write_(bad_w, bad_z)
    assert same(statistics, SufficientStatistics.zeros(K, C))


# -- the solve --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, K, 3 * K])
@pytest.mark.parametrize("ridge", [1e-3, 161.29, 1e6])
def test_memory_is_the_ridge_least_squares_fit(n, ridge):
    """M minimises |W M - Z|^2 + ridge |M|^2: numpy.linalg.lstsq on the rows with sqrt(ridge) I appended agrees.

    lstsq works on W itself, without squaring its condition; 1e-6 of the largest entry covers the float32 result.
    """
    w, z = rows(8, n)
    augmented = np.vstack([w.numpy().astype(np.float64), np.sqrt(ridge) * np.eye(K)])
    targets = np.vstack([z.numpy().astype(np.float64), np.zeros((K, C))])
    expected = np.linalg.lstsq(augmented, targets, rcond=None)[0]
    memory = solve(written(w, z), ridge)
    assert memory.dtype == torch.float32
    assert np.abs(memory.numpy() - expected).max() < 1e-6 * np.abs(expected).max() + 1e-9


def test_with_a_vanishing_ridge_memory_is_the_plain_least_squares_fit():
    """For N >= K facts and ridge -> 0 the memory is numpy.linalg.lstsq of (W, Z)."""
    w, z = rows(9, 4 * K)
    expected = np.linalg.lstsq(w.numpy().astype(np.float64), z.numpy().astype(np.float64), rcond=None)[0]
    memory = solve(written(w, z), 1e-9).numpy()
    assert np.abs(memory - expected).max() < 1e-6 * np.abs(expected).max()


def test_up_to_k_facts_are_read_back_whole():
    """N <= K independent facts come back from their own addresses to 1e-3 of a unit."""
    w, z = rows(10, K // 2)
    readouts = read(solve(written(w, z), 1e-3), w)
    assert (readouts - z).abs().max() < 1e-3
    assert torch.equal(read(solve(written(w, z), 1e-3), w, latent_scale=2), readouts / 2)


def test_solving_does_not_change_the_sums():
    w, z = rows(11, 30)
    statistics = written(w, z)
    solve(statistics, 5.0)
    leverage(statistics, w, 5.0)
    assert same(statistics, written(w, z))


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge must be positive"):
        solve(SufficientStatistics.zeros(K, C), ridge)


def test_an_empty_memory_reads_zeros():
    w, _ = rows(12, 4)
    assert torch.equal(read(solve(SufficientStatistics.zeros(K, C), 1.0), w), torch.zeros(4, C))


def test_reading_many_memories_equals_reading_each():
    """One bmm over three tenants' memories gives each tenant's own readout."""
    memories = torch.stack([solve(written(*rows(seed, 10)), 1.0) for seed in (1, 2, 3)])
    w, _ = rows(13, 3)
    together = read_many(memories, w, latent_scale=3)
    for one, memory, address in zip(together, memories, w, strict=True):
        assert torch.allclose(one, read(memory, address[None], 3)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="need"):
        read_many(memories, w[:2])
    with pytest.raises(ValueError, match="addresses must be"):
        read(memories[0], w[:, 1:])


def test_leverage_is_the_share_of_an_address_that_was_written():
    """numpy's w (Cov + r I)^-1 Cov w^T / |w|^2 agrees; near 1 for what was written, 0 for what is orthogonal to it."""
    w, z = rows(14, 6)
    statistics, ridge = written(w, z), 20.0
    other, _ = rows(15, 6)
    basis = np.linalg.svd(w.numpy().astype(np.float64))[2][6:]  # orthogonal to all six
    orthogonal = torch.from_numpy(np.round(basis * 127)).to(torch.int8)
    for given in (w, other, orthogonal):
        w64 = given.numpy().astype(np.float64)
        cov = statistics.cov.numpy()
        expected = np.diag(w64 @ np.linalg.inv(cov + ridge * np.eye(K)) @ cov @ w64.T) / (w64**2).sum(1)
        assert np.allclose(leverage(statistics, given, ridge).numpy(), expected, atol=1e-8)
    assert leverage(statistics, w, ridge).min() > 0.999
    assert leverage(statistics, orthogonal, ridge).max() < 1e-3
