"""One gate under test: which encoder's keys it compares, and from which cosine on a query is in scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.evaluation.gate_scores import unit
from jobs.evaluation.key_encoder import KeyEncoder
from memory_actor.types import FactText, Float16Array, Float32Array


@dataclass(frozen=True, slots=True)
class Gate:
    """A row of the scope tables; `place` begins its figures' names."""

    row: str
    place: str
    encoder: KeyEncoder
    threshold: float

    def stored(self, prompts: Sequence[str]) -> Float32Array:
        """The keys (N, D) under which facts of these prompts are stored, unit norm."""
        return unit(self.encoder.facts([FactText(prompt) for prompt in prompts]).keys)

    def asked(self, queries: Sequence[str]) -> list[Float16Array]:
        """The keys (P, D) of each query."""
        return self.encoder.queries(queries)
