"""The trained scope encoder and verifier: tensors kept in this package that take the place of some of MiniLM's.

Only what training changed is stored, in half precision (`scope_encoder/`, `scope_verifier/`), beside a card that says
what it was trained on, what it reaches and at which threshold. `larimar train scope` and `larimar train verifier` write
such folders.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from memory_actor.errors import ModelMissing
from workers.conversion import copy_model
from workers.sources import locate_model

SCOPE_ENCODER = "larimar:scope"  # as `bundle.encoder`: the default
FOLDER = Path(__file__).with_name("scope_encoder")
VERIFIER_FOLDER = Path(__file__).with_name("scope_verifier")
CARD_FILE = "card.json"
HEAD_FILE = "head.safetensors"  # of a verifier: what its cross-encoder ends in
FILE_BYTES_MAX = 15_000_000
_CURE = "Reinstall larimar-serve and the model packages it names, or set bundle.encoder to another encoder"


def read_card(folder: Path = FOLDER) -> dict[str, Any]:
    """The card of a folder of trained tensors. Raises: ModelMissing."""
    path = folder / CARD_FILE
    if not path.is_file():
        raise ModelMissing("trained scope encoder or verifier", str(path), _CURE)
    card: dict[str, Any] = json.loads(path.read_bytes())
    return card


def compose_encoder(target: Path, folder: Path = FOLDER) -> None:
    """The new folder `target`: the card's base encoder with the trained tensors in place. The same bytes every time.

    Raises: ModelMissing if the base is absent, is not the one that was trained, or a tensor does not fit it.
    """
    card = read_card(folder)
    copy_model(locate_model(card["base"], "encoder"), target, "encoder")
    path = target / "model.safetensors"
    if hash_files([path]) != card["base_sha256"]:
        raise ModelMissing("base of the trained scope encoder", f"{card['base']} with other weights", _CURE)
    tensors = load_file(path)
    for part in tensor_files(folder):
        for name, tensor in load_file(part).items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise ModelMissing(f"place for the tensor {name}", card["base"], _CURE)
            tensors[name] = tensor.astype(np.float32)
    save_file(tensors, path, metadata={"format": "pt"})


def compose_verifier(target: Path, folder: Path = VERIFIER_FOLDER) -> None:
    """The new folder `target`: as `compose_encoder`, and the head of the cross-encoder. Raises: ModelMissing."""
    compose_encoder(target, folder)
    if not (folder / HEAD_FILE).is_file():
        raise ModelMissing("head of the scope verifier", str(folder / HEAD_FILE), _CURE)
    shutil.copyfile(folder / HEAD_FILE, target / HEAD_FILE)


def write_tensors(tensors: dict[str, np.ndarray[Any, np.dtype[np.float16]]], folder: Path) -> list[Path]:
    """Store trained tensors in the order of their names, in as few files of at most `FILE_BYTES_MAX` as they need."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in tensor_files(folder):
        old.unlink()
    parts: list[dict[str, np.ndarray[Any, np.dtype[np.float16]]]] = [{}]
    size = 0
    for name in sorted(tensors):
        size += tensors[name].nbytes
        if size > FILE_BYTES_MAX - 100_000 and parts[-1]:
            parts.append({})
            size = tensors[name].nbytes
        parts[-1][name] = tensors[name]
    for index, part in enumerate(parts, start=1):
        save_file(part, folder / f"tensors-{index}-of-{len(parts)}.safetensors", metadata={"format": "pt"})
    return tensor_files(folder)


def tensor_files(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("tensors-*.safetensors"))


def hash_files(paths: list[Path]) -> str:
    """SHA-256 (hex) of several files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
