"""What an experiment asks the decoder, and what it gets back. Plain values that cross process borders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.ports import AnswerMode, Condition

FACTS_MANY = 8  # from here on asks with the same facts are run together, these facts once
PROBABILITY_STEPS = 1000  # probabilities are told apart to three decimals


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One question to the decoder: score `candidates` as its continuations, generate `max_tokens` more, or both.

    `condition` is a recalled fact, put before the decoder exactly as the product does: template, soft prefix, answer
    bias. `facts` are put in the template's place of the fact as plain text, without bias. At most one of the two.
    A candidate is tokenised as the target of a fact. `max_tokens` 0 generates nothing; generation is greedy unless
    `temperature` is above 0, then it is drawn with `top_p` and `seed`.
    Raises: ValueError for both a condition and facts, or an empty candidate.
    """

    prompt: str
    mode: AnswerMode = AnswerMode.COMPLETE
    candidates: tuple[str, ...] = ()
    max_tokens: int = 0
    condition: Condition | None = None
    facts: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.condition is not None and self.facts:
            raise ValueError("an ask has a condition or facts, not both")
        if not all(candidate.strip() for candidate in self.candidates):
            raise ValueError("a candidate is empty")

    @property
    def kind(self) -> tuple[AnswerMode, str, tuple[str, ...]]:
        """Asks of one kind begin alike and are run side by side: same template, the same long list of facts.

        Few facts are no reason to be run alone: their beginning is short.
        """
        seen = "condition" if self.condition is not None else "facts" if self.facts else "nothing"
        return self.mode, seen, self.facts if len(self.facts) >= FACTS_MANY else ()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides the answer. Recalls that differ in less than 1/1000 are equal."""
        content = {
            "prompt": self.prompt,
            "mode": self.mode,
            "candidates": self.candidates,
            "max_tokens": self.max_tokens,
            "condition": None if self.condition is None else _rounded(self.condition),
            "facts": self.facts,
            "sampling": (self.temperature, self.top_p, self.seed) if self.temperature else None,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the decoder said.

    nll: for each candidate the mean negative log likelihood of its tokens, in nats, under the distribution that the
    product decodes from at temperature 1: answer bias included. text, tokens: what was generated.
    """

    nll: tuple[float, ...]
    text: str
    tokens: tuple[int, ...]


def _rounded(condition: Condition) -> dict[str, Any]:
    """A condition as JSON values: for each position its tokens and their thousandths, those of 0 left out."""
    steps = np.rint(condition.probabilities * PROBABILITY_STEPS).astype(np.int64)
    rows = zip(condition.candidates.tolist(), steps.tolist(), strict=True)
    positions = [[pair for pair in zip(tokens, counts, strict=True) if pair[1]] for tokens, counts in rows]
    rounded = {"positions": positions, "target_start": condition.target_start}
    if condition.readout is None:
        return rounded
    readout = np.rint(condition.readout * PROBABILITY_STEPS).astype(np.int32)
    return rounded | {"readout": hashlib.sha256(readout.tobytes()).hexdigest()}
