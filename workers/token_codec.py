"""The training-free `token` codec: a fact's decoder tokens, each as a fixed ±1 code, side by side in a latent row.

Dimension legend: N facts, R rows of all facts, P rows of one fact, L tokens per row, d code size, C = L * d latent
size, T tokens of one fact, V vocabulary, B candidates kept per position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from memory_actor.errors import TextTooLong
from memory_actor.types import FactText, Float32Array, Int8Array
from workers.bundle import Bundle, CodecPart
from workers.ports import Condition, EncodedContent

CLAUSE_ENDS = (".", "!", "?", ";", ",", ":")


class TokenCodec:
    """Facts to latents and back, with nothing but a tokenizer and a seed."""

    def __init__(self, tokenizer_file: Path, part: CodecPart, vocabulary_size: int) -> None:
        self._part = part
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A fact that contains "<|im_end|>" is about these characters; it must not end the turn it is recalled in.
        self._tokenizer.encode_special_tokens = True
        self._codes = token_codes(part.code_seed, vocabulary_size, part.code_size)
        self._codes_t: Float32Array = np.ascontiguousarray(self._codes.T, dtype=np.float32)  # (d, V)
        vocabulary = self._tokenizer.get_vocab()
        self._clause_ends = frozenset(index for token, index in vocabulary.items() if token.endswith(CLAUSE_ENDS))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> TokenCodec:
        manifest = bundle.manifest
        return cls(bundle.decoder_folder / "tokenizer.json", manifest.codec, manifest.decoder.vocabulary_size)

    @property
    def tokens_max(self) -> int:
        """Tokens one fact may have, prompt and target together."""
        return self._part.row_tokens * self._part.rows_max

    def encode(self, facts: Sequence[FactText]) -> EncodedContent:
        """N facts to latents (R, C) int8 of codes ±1, with 0 where a row holds no token.

        Prompt and target are tokenised apart, the target after one space, so that both counts are exact.
        Raises: TextTooLong with both numbers; ValueError for a fact without any token.
        """
        latents: list[Int8Array] = []
        counts = np.zeros((3, len(facts)), np.int32)  # rows, prompt tokens, target tokens
        for index, fact in enumerate(facts):
            prompt, target = self.tokens(fact)
            ids = prompt + target
            if not ids:
                raise ValueError(f"fact [{index}] is empty")
            if len(ids) > self.tokens_max:
                raise TextTooLong(f"fact [{index}]", len(ids), self.tokens_max)
            rows = self._split(ids)
            counts[:, index] = len(rows), len(prompt), len(target)
            latents.extend(self._latent(row) for row in rows)
        matrix = np.stack(latents) if latents else np.zeros((0, self._part.latent_size), np.int8)
        return EncodedContent(matrix, rows=counts[0], prompt_tokens=counts[1], target_tokens=counts[2])

    def tokens(self, fact: FactText) -> tuple[list[int], list[int]]:
        """The decoder token ids of a fact's prompt and of its target (empty without one), outer blanks removed."""
        prompt: list[int] = self._tokenizer.encode(fact.prompt.strip(), add_special_tokens=False).ids
        if fact.target is None:
            return prompt, []
        target: list[int] = self._tokenizer.encode(" " + fact.target.strip(), add_special_tokens=False).ids
        return prompt, target

    def condition(self, readout: Float32Array, prompt_tokens: int, target_tokens: int) -> Condition:
        """Readout (P, C) float32 to probabilities over the fact's T = prompt_tokens + target_tokens positions.

        Each position is a softmax over code similarities, cut to the best B tokens: certain when the readout is
        exact, close to the Bayes posterior under Gaussian noise of standard deviation sqrt(temperature).
        Raises: ValueError if the readout cannot hold that many tokens.
        """
        part = self._part
        rows = readout.shape[0]
        if readout.ndim != 2 or readout.shape[1] != part.latent_size:
            raise ValueError(f"readout must have shape (P, {part.latent_size}), got {readout.shape}")
        positions = readout.reshape(rows, part.row_tokens, part.code_size).astype(np.float32)
        lengths = row_lengths(np.square(positions).sum(-1), prompt_tokens + target_tokens)
        used = np.concatenate([positions[row, :length] for row, length in enumerate(lengths)])  # (T, d)
        similarity = used @ self._codes_t  # (T, V)
        best = torch.topk(torch.from_numpy(similarity), part.candidates, dim=1)  # four times as fast as argpartition
        candidates: NDArray[np.int64] = best.indices.numpy()
        score = best.values.numpy() / part.temperature
        weight = np.exp(score - score[:, :1])
        probabilities: Float32Array = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
        return Condition(candidates, probabilities, target_start=prompt_tokens)

    def prompt(self, condition: Condition) -> str:
        """The likeliest text of a recalled fact's prompt: the stored one without outer blanks if the read was exact."""
        best: list[int] = condition.candidates[: condition.target_start, 0].tolist()
        text: str = self._tokenizer.decode(best, skip_special_tokens=False)
        return text.strip()

    def _split(self, ids: list[int]) -> list[list[int]]:
        """Cut `ids` into rows of at most L tokens, after a sentence or clause end where one lies in a row's later half.

        If that would take more rows than a fact may have, rows are simply filled.
        """
        size = self._part.row_tokens
        rows: list[list[int]] = []
        rest = ids
        while len(rest) > size:
            ends = [cut for cut in range(size // 2, size + 1) if rest[cut - 1] in self._clause_ends]
            cut = ends[-1] if ends else size
            rows.append(rest[:cut])
            rest = rest[cut:]
        rows.append(rest)
        if len(rows) > self._part.rows_max:
            rows = [ids[start : start + size] for start in range(0, len(ids), size)]
        return rows

    def _latent(self, row: list[int]) -> Int8Array:
        latent = np.zeros((self._part.row_tokens, self._part.code_size), np.int8)
        latent[: len(row)] = self._codes[row]
        return latent.reshape(-1)


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


def row_lengths(energy: Float32Array, total: int) -> list[int]:
    """How many leading positions of each row hold a token, given that all rows together hold `total`.

    energy (P, L) is the squared norm of each position: about d where a token stands, about 0 elsewhere. Of all
    lengths (at least 1 each) that add up to `total`, the ones that keep most energy win, found by dynamic
    programming; a wrong length therefore needs noise as strong as a code, and never shifts the later rows' count.
    Raises: ValueError if no lengths fit.
    """
    rows, size = energy.shape
    if not rows <= total <= rows * size:
        raise ValueError(f"{total} tokens cannot stand in {rows} rows of {size}")
    kept = np.cumsum(energy, axis=1, dtype=np.float64)  # kept[p, n-1]: energy of the first n positions of row p
    best = np.full((rows + 1, total + 1), -np.inf)  # best[p, t]: most energy of p rows that hold t tokens
    best[0, 0] = 0.0
    choice = np.zeros((rows, total + 1), np.int64)
    for row in range(rows):
        for held in range(row + 1, min(total, (row + 1) * size) + 1):
            lengths = np.arange(1, min(size, held) + 1)
            gains = best[row, held - lengths] + kept[row, lengths - 1]
            choice[row, held] = lengths[int(np.argmax(gains))]
            best[row + 1, held] = gains.max()
    result: list[int] = []
    for row in reversed(range(rows)):
        result.append(int(choice[row, total]))
        total -= result[-1]
    return result[::-1]
