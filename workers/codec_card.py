"""Which codec a bundle has, and the card of a trained one; without torch, since the process that only starts reads it.

A trained codec is a folder: tensors and a card, a JSON object that says what it was trained for, how and with which
results. The keys that are read to serve it are `KEYS`; the others are for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memory_actor.errors import ModelMissing
from workers.trained_scope import CARD_FILE, read_card, tensor_files

TOKEN_CODEC = "token"  # noqa: S105 - not a secret: training-free, the default
LATENT_CODEC = "larimar:latent"  # the one of this package
LATENT_FOLDER = Path(__file__).with_name("latent_smollm2_135m")
# The shape of the slots and of their reader, what the memory and the decoder go by, and what it belongs to.
KEYS = (
    "shape", "adapters", "latent_scale", "answer_bias", "end_token",
    "encoder", "encoder_sha256", "decoder", "decoder_tokenizer_sha256", "tensors_sha256",
)  # fmt: skip
CODEC_CURE = "Train it with 'larimar train codec', or set bundle.codec to token"


def locate_codec(source: str) -> Path:
    """The folder of `larimar:latent` or of a codec that was trained elsewhere. Raises: ModelMissing."""
    folder = LATENT_FOLDER if source == LATENT_CODEC else Path(source).expanduser()
    if not (folder / CARD_FILE).is_file() or not tensor_files(folder):
        raise ModelMissing("trained latent codec", str(folder), CODEC_CURE)
    return folder


def read_codec(source: str) -> dict[str, Any]:
    """The card of a trained codec. Raises: ModelMissing if there is none, or not all of it."""
    card = read_card(locate_codec(source))
    if missing := [key for key in KEYS if key not in card]:
        raise ModelMissing(f"{missing[0]} in the card of the latent codec", source, CODEC_CURE)
    return card
