"""The default bundle's verifier: what its card says, within a margin, on texts it was never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluation.gate import VerifiedScorer
from jobs.evaluation.matches import Matches
from jobs.scope_evaluation import PRIVATE_BARS, EncodeScorer, errors, measure_private
from memory_actor.types import FactText
from workers.fact_encoder import FactEncoder
from workers.ports import Readback
from workers.scope_verifier import ScopeVerifier
from workers.trained_scope import VERIFIER_FOLDER, read_card

TESTS = Path(__file__).parents[1]
TRIPLES = TESTS / "model_fixtures" / "private_scope_triples.json"
MARGIN = 0.03  # about six of the 208 triples


@pytest.fixture(scope="module")
def verifier(bundle) -> ScopeVerifier:
    return ScopeVerifier.from_bundle(bundle)


@pytest.fixture(scope="module")
def scorer(bundle, encoder, verifier) -> VerifiedScorer:
    return VerifiedScorer(EncodeScorer(encoder.encode), Matches(verifier), bundle.manifest.scope_threshold)


def test_the_default_bundle_has_the_shipped_verifier(bundle):
    """Its weights are the composed ones, both thresholds are its card's."""
    card, part = read_card(VERIFIER_FOLDER), bundle.manifest.verifier
    assert part.weights_sha256 == card["composed_sha256"]
    assert (part.threshold, bundle.manifest.scope_threshold) == (card["threshold"], card["scope_threshold"])
    assert card["scope_encoder_sha256"] == bundle.manifest.encoder.weights_sha256
    assert bundle.second_stage().cosine_alone == read_card()["threshold"] > bundle.manifest.scope_threshold


def test_private_questions_and_near_misses(scorer, bundle):
    """All 208 facts stored together: every kind of error is as rare as the card says, or nearly."""
    found = errors(measure_private(scorer, TRIPLES), bundle.manifest.verifier.threshold, PRIVATE_BARS)
    expected = read_card(VERIFIER_FOLDER)["results"]
    for bar in PRIVATE_BARS:
        stated = 1 - expected[bar.key] if bar.inside else expected[bar.key]
        assert found[bar.key] <= stated + MARGIN, bar.key


def test_the_verifier_earns_its_place(bundle):
    """On validation and on the private test set the two stages err less than the cosine alone, in every measure that
    the cosine misses its target in by more than a point."""
    card = read_card(VERIFIER_FOLDER)
    alone, both = card["cosine_results"], card["results"]
    for bar in PRIVATE_BARS:
        theirs, ours = (1 - one[bar.key] if bar.inside else one[bar.key] for one in (alone, both))
        if theirs > bar.errors_max + 0.01:
            assert ours < theirs, bar.key


def test_counterfact_rephrasings_and_neighbours(scorer, bundle):
    """100 records, each alone in memory; loose floors that a broken verifier or threshold cannot pass."""
    records = json.loads((TESTS / "data" / "counterfact_sample.json").read_bytes())["records"][:100]
    stored, rephrased, neighbours = (
        [record[key] for record in records] for key in ("prompt", "rephrase_prompt", "locality_prompt")
    )
    threshold = bundle.manifest.verifier.threshold
    assert (scorer.paired(rephrased, stored) >= threshold).mean() >= 0.85
    assert (scorer.paired(neighbours, stored) >= threshold).mean() <= 0.03
    assert (scorer.paired(stored, stored) == 1).all()


def test_questions_of_invented_facts(scorer, bundle):
    """The 40 pairs that the default is tested on, all stored together, with a little slack. MEASURED"""
    fixture = json.loads((TESTS / "model_fixtures" / "scope_pairs.json").read_bytes())
    pairs = fixture["pairs"]
    stored = [pair["stored"] for pair in pairs]
    threshold = bundle.manifest.verifier.threshold

    def let_in(texts):
        return int((scorer.nearest(texts, stored).scores >= threshold).sum())

    assert scorer.nearest([pair["in"] for pair in pairs], stored).positions.tolist() == list(range(len(pairs)))
    assert let_in([pair["in"] for pair in pairs]) >= 36
    assert let_in([pair["same_subject"] for pair in pairs]) <= 2
    assert let_in([pair["same_relation"] for pair in pairs]) <= 1
    assert let_in(fixture["unrelated"]) == 0


@pytest.fixture(scope="module")
def fact_encoder(encoder, codec, verifier) -> FactEncoder:
    return FactEncoder(encoder, codec, verifier)


def test_a_readout_is_enough_to_verify(fact_encoder, codec, verifier):
    """What the encoder's process says of a query and a readout is what the verifier says of query and prompt."""
    facts = [FactText("The spare key of the Zurich office is", "under the blue pot"), FactText("Ana's badge is 4471.")]
    queries = ["Where is the spare key of the Zurich office?", "It rained. What is Ana's badge number?"]
    content = codec.encode(facts)
    calls = [
        Readback(query, content.latents[row : row + 1].astype(np.float32), int(prompt), int(target))
        for row, (query, prompt, target) in enumerate(
            zip(queries, content.prompt_tokens, content.target_tokens, strict=True)
        )
    ]
    found = fact_encoder.match(calls)
    assert found == pytest.approx(verifier.match_queries(queries, [fact.prompt for fact in facts]), abs=1e-4)
    crossed = fact_encoder.match(
        [Readback(queries[1], calls[0].readout, calls[0].prompt_tokens, calls[0].target_tokens)]
    )
    assert crossed[0] < 0.1 < min(found)
    assert fact_encoder.match_prompts(queries[0], [facts[0].prompt]) == pytest.approx(found[:1], abs=1e-4)


def test_without_a_verifier_everything_matches(encoder, codec):
    bare = FactEncoder(encoder, codec)
    assert bare.match([Readback("a", np.zeros((1, 768), np.float32), 1, 0)]) == [1.0]
    assert bare.match_prompts("a", ["b", "c"]) == [1.0, 1.0]
