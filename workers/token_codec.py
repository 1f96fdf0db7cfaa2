"""The training-free `token` codec: a fact's decoder tokens, each as a fixed ±1 code, side by side in a latent row.

Dimension legend: R rows of all facts, P rows of one fact, L tokens per row, d code size, C = L * d latent size, T
tokens of one fact, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from memory_actor.errors import ModelMissing
from memory_actor.types import Float32Array, Int8Array
from workers.bundle import Bundle, TokenCodecPart
from workers.codec_card import CODEC_CURE
from workers.ports import Condition
from workers.row_codec import RowCodec, row_lengths


class TokenCodec(RowCodec):
    """Facts to latents and back, with nothing but a tokenizer and a seed."""

    def __init__(self, tokenizer_file: Path, part: TokenCodecPart, vocabulary_size: int) -> None:
        super().__init__(
            tokenizer_file, row_tokens=part.row_tokens, rows_max=part.rows_max, latent_size=part.latent_size
        )
        self._part = part
        self._codes = token_codes(part.code_seed, vocabulary_size, part.code_size)
        self._codes_t: Float32Array = np.ascontiguousarray(self._codes.T, dtype=np.float32)  # (d, V)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> TokenCodec:
        """Raises: ModelMissing for a bundle of another codec."""
        manifest = bundle.manifest
        if not isinstance(manifest.codec, TokenCodecPart):
            raise ModelMissing("token codec", f"{bundle.folder}, which has the {manifest.codec.kind} codec", CODEC_CURE)
        return cls(bundle.decoder_folder / "tokenizer.json", manifest.codec, manifest.decoder.vocabulary_size)

    def _latents(self, rows: Sequence[Sequence[int]]) -> Int8Array:
        """Codes ±1, with 0 where a row holds no token."""
        latents = np.zeros((len(rows), self._part.row_tokens, self._part.code_size), np.int8)
        for latent, row in zip(latents, rows, strict=True):
            latent[: len(row)] = self._codes[list(row)]
        return latents.reshape(len(rows), -1)

    def _condition(self, readout: Float32Array, target_start: int, total: int) -> Condition:
        """Each position is a softmax over code similarities, cut to the best tokens: certain when the readout is exact,
        close to the Bayes posterior under Gaussian noise of standard deviation sqrt(temperature).
        """
        part = self._part
        positions = readout.reshape(len(readout), part.row_tokens, part.code_size)
        # A position's squared norm is about d where a token stands and about 0 elsewhere: the lengths that keep most of
        # it win, and a wrong one needs noise as strong as a code.
        energy = np.square(positions).sum(-1).cumsum(1, dtype=np.float64)
        lengths = row_lengths(energy, total)
        used = np.concatenate([positions[row, :length] for row, length in enumerate(lengths)])  # (T, d)
        similarity = used @ self._codes_t  # (T, V)
        best = torch.topk(torch.from_numpy(similarity), part.candidates, dim=1)  # four times as fast as argpartition
        candidates: NDArray[np.int64] = best.indices.numpy()
        score = best.values.numpy() / part.temperature
        weight = np.exp(score - score[:, :1])
        probabilities: Float32Array = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
        return Condition(candidates, probabilities, target_start)


def token_codes(seed: str, count: int, size: int) -> Int8Array:
    """`count` different codes (count, size) of ±1 from SHAKE-256 of `seed`: the same on every platform and version.

    `size` is a multiple of 8. Words of the stream that repeat an earlier one are skipped, so codes are unique.
    """
    if size % 8 or count > 1 << (size - 1):
        raise ValueError(f"cannot draw {count} different codes of {size} bits")
    width = size // 8
    drawn = count
    while True:
        stream = hashlib.shake_256(seed.encode()).digest(drawn * width)  # a longer digest continues a shorter one
        words: NDArray[np.uint8] = np.frombuffer(stream, np.uint8).reshape(drawn, width)
        _, first = np.unique(words, axis=0, return_index=True)
        if len(first) >= count:
            bits = np.unpackbits(words[np.sort(first)[:count]], axis=1)
            return (bits.astype(np.int8) * 2 - 1).astype(np.int8)
        drawn += 2 * (count - len(first))
