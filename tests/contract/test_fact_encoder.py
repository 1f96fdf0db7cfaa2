"""Calls that share a pass get their own results and their own errors."""

from __future__ import annotations

import numpy as np
import pytest

from memory_actor.errors import TextTooLong
from memory_actor.types import EncodedFacts, FactText
from workers.fact_encoder import FactEncoder


@pytest.fixture(scope="module")
def fact_encoder(encoder, codec) -> FactEncoder:
    return FactEncoder(encoder, codec)


def test_each_call_gets_its_own_result_or_its_own_error(fact_encoder, encoder):
    """Two sound calls around a text too long for the decoder and one too long for the encoder."""
    sound = [FactText("Where is the key?", "under the pot"), FactText("The archive moved.")]
    results = fact_encoder.encode_facts([sound, [FactText("x " * 400)], [FactText("ab" * 10, "y")], sound[:1]])
    assert [type(result) for result in results] == [EncodedFacts, TextTooLong, EncodedFacts, EncodedFacts]
    first, refused, _, last = results
    assert refused.args[0] == "fact [0]"
    assert first.keys.dtype == np.float16
    assert np.abs(first.keys.astype(np.float32) - encoder.encode([fact.prompt for fact in sound])).max() < 1e-3
    assert np.array_equal(first.latents[:1], last.latents)
    assert first.target_tokens.tolist() == [first.target_tokens[0], 0]
    assert first.target_tokens[0] > 0


def test_a_long_query_names_itself_and_leaves_others_alone(fact_encoder):
    keys, refused, empty = fact_encoder.encode_queries([["a", "b"], ["c", "key " * 300], []])
    assert keys.shape == (2, 384)
    assert refused.args == ("query [1]", 302, 256)
    assert empty.shape == (0, 384)
