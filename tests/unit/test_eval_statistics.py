"""Intervals against tables and brute force, F1 against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.evaluation.statistics import mean_interval, share, token_f1


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # z^2 / (10 + z^2)
        (0, 20, 0.0, 0.1611),  # this and the next three: Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (1, 29, 0.0061, 0.1718),
        (15, 148, 0.0624, 0.1605),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_a_share_has_wilsons_interval(hits, n, low, high):
    """The published examples, and their mirror images."""
    found = share([True] * hits + [False] * (n - hits))
    assert (found.value, found.n) == (hits / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    mirrored = share([False] * hits + [True] * (n - hits))
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - high, abs=6e-5), pytest.approx(1 - low, abs=6e-5))


@pytest.mark.parametrize("n", [1, 3, 49, 2_000])
def test_a_perfect_share_is_inside_its_interval(n):
    """Rounding does not put 1 above the upper or 0 below the lower end."""
    for found in (share([True] * n), share([False] * n)):
        assert 0.0 <= found.low <= found.value <= found.high <= 1.0
        assert found.high - found.low > 0


def test_a_mean_has_the_bootstraps_interval():
    """With 400 normal values it is close to 1.96 standard errors on each side (10 % for 2,000 resamples)."""
    values = np.random.default_rng(5).normal(3.0, 2.0, 400)
    found = mean_interval(values.tolist())
    assert (found.value, found.n) == (pytest.approx(values.mean()), 400)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value - found.low == pytest.approx(half, rel=0.1)
    assert found.high - found.value == pytest.approx(half, rel=0.1)


def test_the_bootstrap_is_the_seeds():
    """The same values and seed give the same interval; another seed gives another one."""
    values = np.random.default_rng(3).random(50).tolist()
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_values_that_do_not_vary_have_no_interval():
    found = mean_interval([0.3] * 7)
    assert found.low == found.value == found.high == pytest.approx(0.3)


def test_nothing_measured_is_no_share_and_no_mean():
    """Not a silent zero."""
    with pytest.raises(ValueError, match="at least one"):
        share([])
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


@pytest.mark.parametrize(
    ("predicted", "expected", "f1"),
    [
        ([5, 6], [5, 6], 1.0),
        ([6, 5], [5, 6], 1.0),
        ([5, 7], [5, 6], 0.5),
        ([5], [5, 6], 2 / 3),
        ([5, 6, 7, 8], [5, 6], 2 / 3),
        (["1", "9", "9", "8"], ["1", "9", "9", "8"], 1.0),
        ([5, 5, 5, 5], [5], 0.4),  # precision 1/4, recall 1: repeating the answer is not answering
        ([7], [5], 0.0),
        ([], [5], 0.0),
        ([5], [], 0.0),
        ([], [], 1.0),
    ],
)
def test_f1_of_tokens(predicted, expected, f1):
    """2PR / (P + R) by hand: order is nothing, repetition costs, an exact answer is 1."""
    assert token_f1(predicted, expected) == pytest.approx(f1)
