"""One gate under test: how it scores queries against stored prompts, and from which score on a query is in scope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jobs.evaluation.gate_scores import Nearest, nearest, paired
from jobs.evaluation.key_encoder import KeyEncoder
from memory_actor.types import FactText, Float32Array


class Scorer(Protocol):
    """Scores on which every threshold can be tried; larger is nearer."""

    def paired(self, queries: Sequence[str], prompts: Sequence[str]) -> Float32Array:
        """The score (Q,) of each query for the one stored prompt it stands beside."""
        ...

    def nearest(self, queries: Sequence[str], prompts: Sequence[str]) -> Nearest:
        """Which of N stored prompts is found for each of Q queries, and its score."""
        ...


@dataclass(frozen=True, slots=True)
class CosineScorer:
    """One stage: the best cosine of a query's keys and a prompt's."""

    encoder: KeyEncoder

    def paired(self, queries: Sequence[str], prompts: Sequence[str]) -> Float32Array:
        return paired(self.encoder.queries(queries), self._keys(prompts))

    def nearest(self, queries: Sequence[str], prompts: Sequence[str]) -> Nearest:
        return nearest(self.encoder.queries(queries), self._keys(prompts))

    def _keys(self, prompts: Sequence[str]) -> Float32Array:
        keys: Float32Array = self.encoder.facts([FactText(prompt) for prompt in prompts]).keys.astype(np.float32)
        return keys


@dataclass(frozen=True, slots=True)
class VerifiedScorer:
    """Two stages, as in the product: the fact found by cosine, at least `cosine_min`, then the verifier's word on it.

    `match` is given N queries, each beside the prompt that was found for it. The score is the match; 0 where the cosine
    is too low, so that no verifier was asked.
    """

    cosine: Scorer
    match: Callable[[Sequence[str], Sequence[str]], Sequence[float]]
    cosine_min: float

    def paired(self, queries: Sequence[str], prompts: Sequence[str]) -> Float32Array:
        return self._matches(queries, prompts, self.cosine.paired(queries, prompts))

    def nearest(self, queries: Sequence[str], prompts: Sequence[str]) -> Nearest:
        found = self.cosine.nearest(queries, prompts)
        beside = [prompts[position] for position in found.positions.tolist()]
        return Nearest(self._matches(queries, beside, found.scores), found.positions)

    def _matches(self, queries: Sequence[str], prompts: Sequence[str], cosines: Float32Array) -> Float32Array:
        scores = np.zeros(len(queries), np.float32)
        near = np.flatnonzero(cosines >= self.cosine_min).tolist()
        scores[near] = self.match([queries[i] for i in near], [prompts[i] for i in near])
        return scores


@dataclass(frozen=True, slots=True)
class Gate:
    """A row of the scope tables; `place` begins its figures' names."""

    row: str
    place: str
    scorer: Scorer
    threshold: float
