"""Asks are told apart by everything that decides their answer, and by nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jobs.evaluation.asks import Ask
from workers.ports import AnswerMode, Condition

CONDITION = Condition(np.array([[5, 9], [7, 2]]), np.array([[0.9, 0.1], [1.0, 0.0]], np.float32), target_start=1)
ASK = Ask("The capital of Italy is", candidates=("Rome", "Paris"), max_tokens=4, condition=CONDITION)


def recalled(candidates, probabilities, target_start=1) -> Ask:
    condition = Condition(np.array(candidates), np.array(probabilities, np.float32), target_start)
    return replace(ASK, condition=condition)


@pytest.mark.parametrize(
    "other",
    [
        replace(ASK, prompt="The capital of Spain is"),
        replace(ASK, mode=AnswerMode.ANSWER),
        replace(ASK, candidates=("Paris", "Rome")),
        replace(ASK, max_tokens=5),
        replace(ASK, condition=None),
        replace(ASK, condition=None, facts=("Rome is old",)),
        replace(ASK, temperature=0.5),
        recalled([[5, 9], [7, 2]], [[0.89, 0.11], [1.0, 0.0]]),
        recalled([[5, 8], [7, 2]], [[0.9, 0.1], [1.0, 0.0]]),
        recalled([[5, 9], [7, 2]], [[0.9, 0.1], [1.0, 0.0]], target_start=2),
    ],
)
def test_what_changes_the_answer_changes_the_digest(other):
    assert other.digest != ASK.digest


def test_recalls_that_differ_in_rounding_are_one_ask():
    """Noise below a thousandth, and whatever stands in the tail that has no weight, does not count."""
    assert recalled([[5, 9], [7, 3]], [[0.9001, 0.0999], [0.9999, 0.0001]]).digest == ASK.digest


def test_a_seed_counts_only_when_something_is_drawn():
    assert replace(ASK, seed=3).digest == ASK.digest
    assert replace(ASK, temperature=1.0, seed=3).digest != replace(ASK, temperature=1.0).digest


def test_contradictory_asks_are_refused():
    with pytest.raises(ValueError, match="not both"):
        replace(ASK, facts=("Rome is old",))
    with pytest.raises(ValueError, match="empty"):
        replace(ASK, candidates=("Rome", " "))
