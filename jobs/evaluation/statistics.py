"""Shares and means with 95 % intervals, and the F1 of a generated answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963985  # two-sided 95 % of the normal distribution
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Share:
    """A mean of `n` values with its 95 % interval, low <= value <= high."""

    value: float
    low: float
    high: float
    n: int


def share(hits: Sequence[bool]) -> Share:
    """The share of hits, at least one trial, with Wilson's score interval: right near 0 and 1, where ours stand."""
    n = len(hits)
    if n == 0:
        raise ValueError("a share needs at least one trial")
    p = sum(map(bool, hits)) / n
    scale = 1 + _Z**2 / n
    centre = (p + _Z**2 / (2 * n)) / scale
    reach = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
    return Share(p, min(p, max(0.0, centre - reach)), max(p, min(1.0, centre + reach)), n)


def mean_interval(values: Sequence[float], seed: int = 0) -> Share:
    """The mean of at least one value, with the percentile interval of a seeded bootstrap over the values."""
    if not len(values):
        raise ValueError("a mean needs at least one value")
    sample = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    # One resample after the other keeps the memory small; 2,000 of 2,000 values take 0.1 s.
    means = [sample[rng.integers(0, len(sample), len(sample))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    mean = float(sample.mean())
    return Share(mean, min(mean, float(low)), max(mean, float(high)), len(sample))


def token_f1(predicted: Iterable[int | str], expected: Iterable[int | str]) -> float:
    """F1 of the tokens in common, order ignored: the measure of GRACE (Hartvigsen et al., 2023, `metrics.F1`).

    GRACE divides by all tokens but counts a common one once. Our decoder's tokens are single digits, and an exact
    "1998" would get 0.75; so a token counts as often as both sides have it. Without repetitions the two are the same.
    0 when either is empty, except that nothing predicted where nothing was expected is 1.
    """
    said, wanted = Counter(predicted), Counter(expected)
    if not said or not wanted:
        return float(not said and not wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())
