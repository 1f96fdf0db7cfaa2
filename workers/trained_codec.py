"""The tensors of a trained latent codec: of the encoder's queries, the slots, their reader and the speller.

`larimar train codec` writes them; those of this package are in `latent_smollm2_135m/`. The models themselves are not
there, only what training made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from memory_actor.errors import ModelMissing
from workers.block_speller import BlockSpeller
from workers.codec_card import CODEC_CURE, read_codec
from workers.latent_model import LatentPlan
from workers.slot_reader import AdapterPlan
from workers.trained_scope import hash_files, tensor_files

# Prefixes of the tensors' names. The speller is fitted, the others are trained.
ENCODER, SLOTS, READER, SPELLER = "encoder.", "decoder.slots.", "decoder.reader.", "speller."
TRAINED = (ENCODER, "decoder.")


@dataclass(frozen=True, slots=True)
class TrainedCodec:
    """An opened folder."""

    folder: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TrainedCodec:
        """Raises: ModelMissing if it is absent or its tensors are not those of its card."""
        card = read_codec(str(folder))
        if hash_files(tensor_files(folder)) != card["tensors_sha256"]:
            raise ModelMissing("intact tensors of the latent codec", str(folder), CODEC_CURE)
        return cls(folder, card)

    @property
    def shape(self) -> LatentPlan:
        return LatentPlan(**self.card["shape"])

    @property
    def adapters(self) -> AdapterPlan:
        return AdapterPlan(**self.card["adapters"])

    def load_into(self, module: nn.Module, prefix: str) -> None:
        """Put the trained tensors whose names begin with `prefix` in their places. Raises: ModelMissing.

        What they do not name must be what the models bring themselves: no parameter that was trained may be left out.
        """
        trained = {name.removeprefix(prefix): tensor for name, tensor in self.tensors(prefix).items()}
        own = dict(module.named_parameters())
        wanted = {name for name, parameter in own.items() if parameter.requires_grad}
        if wanted != trained.keys():
            name = min(wanted ^ trained.keys())
            raise ModelMissing(
                f"tensor {prefix}{name} of the latent codec, or its place,", str(self.folder), CODEC_CURE
            )
        with torch.no_grad():
            for name, tensor in trained.items():
                if own[name].shape != tensor.shape:
                    shapes = f"{tuple(tensor.shape)} for {tuple(own[name].shape)}"
                    raise ModelMissing(
                        f"tensor {prefix}{name} of a shape that fits ({shapes})", str(self.folder), CODEC_CURE
                    )
                own[name].copy_(tensor)

    def speller(self, table: nn.Embedding) -> BlockSpeller:
        """The fitted speller for the decoder's token embeddings (V, E). Raises: ModelMissing."""
        tensors = self.tensors(ENCODER)
        maps = tensors[f"{ENCODER}spelling.weight"], tensors[f"{ENCODER}project.weight"]
        speller = BlockSpeller(table, *maps, self.shape)
        self.load_into(speller, SPELLER)
        return speller

    def tensors(self, *prefixes: str) -> dict[str, Tensor]:
        """What training made, by name, in half precision; only tensors whose names begin with one of `prefixes`."""
        found: dict[str, Tensor] = {}
        for part in tensor_files(self.folder):
            with safe_open(part, "pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
        return found
