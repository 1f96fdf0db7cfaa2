"""Scores of a gate: how near queries come to stored facts, on which every threshold can be tried.

As in the product, a query has P keys (the whole text, the asked sentence), and its score for a fact is the best of
their cosines. Dimension legend: Q queries, N stored facts, P keys of one query, D key size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_actor.types import Float32Array

_QUERIES_AT_ONCE = 256  # bounds the matrix of cosines
WRONG = -1.0  # the score of a query whose nearest fact is not the one it asks for


@dataclass(frozen=True, slots=True)
class Nearest:
    """For Q queries the best cosine to any stored fact, (Q,) float32, and that fact's position, (Q,) int64."""

    scores: Float32Array
    positions: NDArray[np.int64]

    def right(self, expected: Sequence[int]) -> Float32Array:
        """The scores, WRONG where the nearest fact is not the expected one: no threshold makes that an acceptance."""
        scores: Float32Array = np.where(self.positions == np.asarray(expected), self.scores, np.float32(WRONG))
        return scores


def unit(keys: NDArray[np.floating]) -> Float32Array:
    """Keys (N, D) as float32 rows of length one: float16 keys are unit to a thousandth only."""
    rows = keys.astype(np.float32)
    scaled: Float32Array = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return scaled


def paired(queries: Sequence[NDArray[np.floating]], stored: NDArray[np.floating]) -> Float32Array:
    """The score (Q,) of each query (P, D) for the one stored fact (row of (Q, D)) it stands beside."""
    if len(queries) != len(stored):
        raise ValueError(f"{len(queries)} queries and {len(stored)} stored keys do not pair")
    rows = unit(stored)
    scores = [float((unit(keys) @ row).max()) for keys, row in zip(queries, rows, strict=True)]
    return np.asarray(scores, np.float32)


def nearest(queries: Sequence[NDArray[np.floating]], stored: NDArray[np.floating]) -> Nearest:
    """The nearest of N stored facts (N, D), N >= 1, to each query (P, D)."""
    rows = unit(stored)
    scores = np.zeros(len(queries), np.float32)
    positions = np.zeros(len(queries), np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = queries[start : start + _QUERIES_AT_ONCE]
        counts = np.array([len(keys) for keys in part])
        cosines = unit(np.concatenate(part)) @ rows.T  # (sum of P, N)
        best = np.maximum.reduceat(cosines, np.cumsum(counts) - counts, axis=0)  # (Q, N)
        positions[start : start + len(part)] = best.argmax(1)
        scores[start : start + len(part)] = best.max(1)
    return Nearest(scores, positions)
