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
    keys, refused, empty = fact_encoder.encode_queries([["a", "b"], ["It rained. Why?", "key " * 300], []])
    assert [one.shape for one in keys] == [(1, 384), (1, 384)]
    assert refused.args == ("query [1]", 302, 256)
    assert empty == []


def test_a_query_of_several_sentences_has_a_second_key(fact_encoder, encoder):
    """The whole text's key and then the asked sentence's, next to queries of one sentence and to other calls."""
    front, question = "It has six petals.", "What is the mother tongue of Danielle Darrieux?"
    first, second = fact_encoder.encode_queries([[question, f"{front} {question}"], ["a", f"{question}\nThank you"]])
    assert [keys.shape for keys in (*first, *second)] == [(1, 384), (2, 384), (1, 384), (2, 384)]
    assert all(keys.dtype == np.float16 for keys in (*first, *second))
    texts = [question, f"{front} {question}", question, "a", f"{question}\nThank you", question]
    expected = encoder.encode(texts)
    # Padding moves a key by less than 1e-5 (see SentenceEncoder), float16 by less than 5e-4.
    assert np.abs(np.concatenate([*first, *second]).astype(np.float32) - expected).max() < 1e-3


def test_a_query_of_one_sentence_has_the_key_of_its_text_to_the_bit(fact_encoder, encoder):
    for text in ("Where was J. R. R. Tolkien born?", "The mother tongue of Danielle Darrieux is"):
        [[keys]] = fact_encoder.encode_queries([[text]])
        assert np.array_equal(keys, encoder.encode([text]).astype(np.float16))


FRONTS = (
    "It has six petals.",
    "The 1984 championship was held in Turin before sixty thousand people, and the home team lost it by two goals.",
    "My flight was late again. I have not slept.",
)
ASKED = (
    ("Where is the spare key of the Zurich office?", "Where do I find the spare key of the Zurich office?"),
    ("The mother tongue of Danielle Darrieux is", "What is the mother tongue of Danielle Darrieux?"),
    ("What is Ana's badge number?", "Which badge number does Ana have?"),
)


def test_an_unrelated_sentence_in_front_does_not_hide_a_fact(fact_encoder, bundle):
    """As near as the question alone, and nearer than the whole text: it is the asked sentence that finds the fact."""
    for stored, question in ASKED:
        [fact] = fact_encoder.encode_facts([[FactText(stored, "x")]])
        [[alone]] = fact_encoder.encode_queries([[question]])
        own = float(_cosines(alone, fact.keys).max())
        assert own >= bundle.manifest.scope_threshold
        for front in FRONTS:
            for text in (f"{front} {question}", f"{front}\n{question}", f"{question} {front}"):
                [[keys]] = fact_encoder.encode_queries([[text]])
                whole, asked = _cosines(keys, fact.keys)
                assert asked >= own - 1e-3  # float16 keys, another padding
                assert whole < asked


def _cosines(queries, stored):
    """(P,) cosines of a query's keys to one stored key."""
    first, second = queries.astype(np.float32), stored.astype(np.float32)
    return (first @ second.T)[:, 0] / np.linalg.norm(first, axis=1) / np.linalg.norm(second)
