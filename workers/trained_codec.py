"""A trained latent codec as a folder: tensors of the encoder's queries, the slots and their reader, and a card.

`larimar train codec` writes such folders; the one of this package is `latent_smollm2_135m/`. The models themselves are
not in it, only what training made; the card says which models these are and refuses others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memory_actor.errors import ModelMissing
from workers.latent_model import LatentPlan
from workers.slot_reader import AdapterPlan
from workers.trained_scope import hash_files, read_card, tensor_files

LATENT_CODEC = "larimar:latent"  # as `bundle.codec`
FOLDER = Path(__file__).with_name("latent_smollm2_135m")
ENCODER, DECODER = "encoder.", "decoder."  # prefixes of the tensors' names: of `LatentEncoder` and `LatentDecoder`
_CURE = "Train it with 'larimar train codec', or set bundle.codec to token"


def locate_codec(source: str) -> Path:
    """The folder of `larimar:latent` or of a codec trained elsewhere. Raises: ModelMissing."""
    folder = FOLDER if source == LATENT_CODEC else Path(source).expanduser()
    if not (folder / "card.json").is_file() or not tensor_files(folder):
        raise ModelMissing("trained latent codec", str(folder), _CURE)
    return folder


@dataclass(frozen=True, slots=True)
class TrainedCodec:
    """An opened folder. `card` is JSON; the keys read here are `shape`, `adapters`, `latent_scale` and hashes."""

    folder: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TrainedCodec:
        """Raises: ModelMissing if it is absent or its tensors are not those of its card."""
        locate_codec(str(folder))
        card = read_card(folder)
        if hash_files(tensor_files(folder)) != card["tensors_sha256"]:
            raise ModelMissing("intact tensors of the latent codec", str(folder), _CURE)
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
        trained = {
            name.removeprefix(prefix): tensor
            for name, tensor in self._tensors().items()
            if name.startswith(prefix)
        }
        own = dict(module.named_parameters())
        wanted = {name for name, parameter in own.items() if parameter.requires_grad}
        if wanted != trained.keys():
            name = sorted(wanted ^ trained.keys())[0]
            raise ModelMissing(f"tensor {prefix}{name} of the latent codec, or its place,", str(self.folder), _CURE)
        with torch.no_grad():
            for name, tensor in trained.items():
                if own[name].shape != tensor.shape:
                    shapes = f"{tuple(tensor.shape)} for {tuple(own[name].shape)}"
                    raise ModelMissing(f"tensor {prefix}{name} of a shape that fits ({shapes})", str(self.folder), _CURE)
                own[name].copy_(tensor)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor for part in tensor_files(self.folder) for name, tensor in load_file(part).items()}
