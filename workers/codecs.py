"""The codec that a bundle names, and its half in the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.bundle import Bundle, TokenCodecPart
from workers.row_codec import RowCodec
from workers.token_codec import TokenCodec

if TYPE_CHECKING:
    from workers.slot_head import SlotHead


def open_codec(bundle: Bundle, *, device: str = "auto") -> RowCodec:
    """Raises: ModelMissing if a trained codec is damaged."""
    if isinstance(bundle.manifest.codec, TokenCodecPart):
        return TokenCodec.from_bundle(bundle)
    from workers.latent_codec import LatentCodec  # noqa: PLC0415 - the default bundle needs none of it

    return LatentCodec(bundle, device=device)


def open_head(bundle: Bundle, model: Any) -> SlotHead | None:
    """What of the codec stands in front of `model`, the bundle's decoder; None for a codec without slots."""
    if isinstance(bundle.manifest.codec, TokenCodecPart):
        return None
    from workers.slot_head import SlotHead  # noqa: PLC0415 - as above
    from workers.trained_codec import TrainedCodec  # noqa: PLC0415

    return SlotHead(model, TrainedCodec.open(bundle.codec_folder))
