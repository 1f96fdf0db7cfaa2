"""Sequential editing's samples and figures, against figures worked out by hand."""

from __future__ import annotations

import numpy as np

from jobs.evaluation.memories import Recollection
from jobs.evaluation.sequential import SAMPLE, Stop, sample_of_past, stop_figures
from memory_actor.types import FactText
from workers.token_codec import TokenCodec

FACTS = [FactText(f"The capital of {place} is", city) for place, city in (("France", "Oslo"), ("Peru", "Rome"))]


def recalled(index: int, fact: FactText, codec: TokenCodec) -> Recollection:
    """An exact readout of `fact`."""
    encoded = codec.encode([fact])
    counts = int(encoded.prompt_tokens[0]), int(encoded.target_tokens[0])
    return Recollection(index, 0.9, codec.condition(encoded.latents.astype(np.float32), *counts))


def test_samples_are_of_past_edits_only_and_the_same_each_time() -> None:
    """Few edits are all asked for; of many, a sample without repetition, equal for equal seeds only."""
    assert sorted(sample_of_past(10, seed=0)) == list(range(10))
    many = sample_of_past(2000, seed=0)
    assert len(set(many)) == SAMPLE
    assert max(many) < 2000
    assert many == sample_of_past(2000, seed=0) != sample_of_past(2000, seed=1)


def test_recall_wants_every_token_and_rephrasings_the_right_fact(codec: TokenCodec) -> None:
    """One fact comes back whole, one with another target: recall 1/2. Rephrasings: let in 2/2, the right fact 1/2."""
    wrong = FactText(FACTS[1].prompt, "Lima")
    found = [recalled(0, FACTS[0], codec), recalled(1, wrong, codec)]
    stop = Stop("larimar", 10, [0, 1], found, {0: found[0], 1: found[0]}, said=[True])
    summary = stop_figures(stop, FACTS, codec)
    assert summary["sequential.recall_10"] == 0.5
    assert summary["sequential.generation_10"] == 1.0
    assert summary["sequential.rephrase_in_scope_10"] == 1.0
    assert summary["sequential.rephrase_right_10"] == 0.5


def test_a_row_that_keeps_words_has_no_recall_from_a_readout(codec: TokenCodec) -> None:
    """The nearest stored sentence is text, not a readout; its key names the row."""
    stop = Stop("nearest", 10, [0], [Recollection(0, 0.9, None, ("x",))], {}, said=[False])
    summary = stop_figures(stop, FACTS, codec)
    assert "sequential.nearest.recall_10" not in summary
    assert summary["sequential.nearest.generation_10"] == 0.0
