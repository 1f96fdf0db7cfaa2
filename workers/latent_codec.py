"""The trained `latent` codec in service: a row of tokens as one latent, tokens told from a readout's blocks.

Dimension legend: R rows of all facts, P rows of one fact, m slots = tokens per row at most, C latent size, E hidden
size of the decoder, T tokens of one fact, V vocabulary, B candidates kept per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from memory_actor.errors import ModelMissing
from memory_actor.types import Float32Array, Int8Array
from workers.bundle import Bundle, LatentCodecPart
from workers.codec_card import CODEC_CURE
from workers.latent_model import LatentEncoder
from workers.ports import Condition
from workers.row_codec import RowCodec, row_lengths
from workers.runtime import quiet_transformers, resolve_device, threads_for
from workers.token_table import load_table
from workers.trained_codec import ENCODER, TrainedCodec

_PASS_ROWS = 64  # rows encoded side by side


class LatentCodec(RowCodec):
    """Facts to latents by the trained encoder, readouts to the tokens that their blocks are nearest to.

    The readout itself goes along in the condition: in front of the decoder stand the slots, not their spelling.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto") -> None:
        """Raises: ModelMissing if the bundle's codec is damaged or another one."""
        part = bundle.manifest.codec
        if not isinstance(part, LatentCodecPart):
            raise ModelMissing("latent codec", f"{bundle.folder}, which has the {part.kind} codec", CODEC_CURE)
        super().__init__(
            bundle.decoder_folder / "tokenizer.json",
            row_tokens=part.row_tokens,
            rows_max=part.rows_max,
            latent_size=part.latent_size,
        )
        self._bundle, self._part = bundle, part
        self._scale = bundle.manifest.memory.latent_scale
        self._device = resolve_device(device)
        self._trained = TrainedCodec.open(bundle.codec_folder)
        self._end = int(self._trained.card["end_token"])
        # Only blocks are kept of the table, 6 MB and not 110: a process that only decodes needs no more.
        self._speller = self._trained.speller(load_table(bundle.decoder_folder)).eval().to(self._device)

    @cached_property
    def _encoder(self) -> tuple[Tokenizer, LatentEncoder]:
        """Loaded when the first fact comes: a process that only decodes never has it."""
        from transformers import AutoModel  # noqa: PLC0415 - slow import

        quiet_transformers()
        folder = self._bundle.encoder_folder
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        backbone: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # its output is not used
        encoder = LatentEncoder(backbone, load_table(self._bundle.decoder_folder).to(self._device), self._trained.shape)
        self._trained.load_into(encoder, ENCODER)
        return tokenizer, encoder.eval().to(self._device)

    @torch.inference_mode()
    def _latents(self, rows: Sequence[Sequence[int]]) -> Int8Array:
        """Integers: a latent of variance 1 times the memory's scale, as in training."""
        tokenizer, encoder = self._encoder
        read = [one.ids for one in tokenizer.encode_batch_fast([self._text(row) for row in rows])]
        limit = self._bundle.manifest.encoder.tokens_max
        latents = np.empty((len(rows), self._part.latent_size), np.int8)
        order = sorted(range(len(rows)), key=lambda index: len(read[index]))
        for start in range(0, len(order), _PASS_ROWS):
            chosen = order[start : start + _PASS_ROWS]
            # A row of few decoder tokens may be more to the encoder than it can read; what it misses is still spelled.
            tokens, mask = self._padded([read[index][:limit] for index in chosen])
            spelled = torch.full((len(chosen), self._part.row_tokens), self._end)
            for place, index in enumerate(chosen):
                spelled[place, : len(rows[index])] = torch.tensor(rows[index])
            with threads_for(tokens.numel()):
                found, _ = encoder(tokens, mask, spelled.to(self._device))
            latents[chosen] = (found * self._scale).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
        return latents

    @torch.inference_mode()
    def _condition(self, readout: Float32Array, target_start: int, total: int) -> Condition:
        spelled = self._speller(torch.from_numpy(readout).to(self._device))  # (P, m, V)
        one_row = len(spelled) == 1 and total <= spelled.shape[1]  # nothing to find out then
        lengths = [total] if one_row else row_lengths(self._worth(spelled), total)
        used = torch.cat([row[:length] for row, length in zip(spelled, lengths, strict=True)])  # (T, V)
        best = torch.topk(used, self._part.candidates, dim=1)
        candidates: NDArray[np.int64] = best.indices.cpu().numpy()
        probabilities: Float32Array = best.values.softmax(-1).cpu().numpy()
        return Condition(candidates, probabilities, target_start, readout)

    def _worth(self, spelled: Tensor) -> NDArray[np.floating]:
        """Log likelihood that a row ends after n tokens, [p, n - 1]: no end before, and one there unless it is full."""
        ends = spelled.log_softmax(-1)[..., self._end].double()  # (P, m)
        goes_on = torch.log1p(-ends.exp().clamp(max=1 - 1e-9)).cumsum(1)
        worth: NDArray[np.floating] = (goes_on + torch.nn.functional.pad(ends[:, 1:], (0, 1))).cpu().numpy()
        return worth

    def _padded(self, read: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Encoder ids and mask (R, T)."""
        tokens = torch.zeros((len(read), max(map(len, read))), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(read):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        return tokens.to(self._device), mask.to(self._device)
