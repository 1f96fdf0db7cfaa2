"""What every codec does alike: facts to rows of decoder tokens, and readouts back to positions.

A row is one latent: at most L tokens. What a row's latent is, and how its tokens are told from a readout, is the
codec's own.

Dimension legend: N facts, R rows of all facts, P rows of one fact, L tokens per row, C latent size, T tokens of one
fact, V vocabulary, B candidates kept per position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from memory_actor.errors import TextTooLong
from memory_actor.types import FactText, Float32Array, Int8Array
from workers.ports import Condition, EncodedContent

CLAUSE_ENDS = (".", "!", "?", ";", ",", ":")


class RowCodec(ABC):
    """Implements the Codec port, but for the latents themselves."""

    def __init__(self, tokenizer_file: Path, *, row_tokens: int, rows_max: int, latent_size: int) -> None:
        """`tokenizer_file` is the decoder's tokenizer.json."""
        self._row_tokens, self._rows_max, self._latent_size = row_tokens, rows_max, latent_size
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A fact that contains "<|im_end|>" is about these characters; it must not end the turn it is recalled in.
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab()
        self._clause_ends = frozenset(index for token, index in vocabulary.items() if token.endswith(CLAUSE_ENDS))

    @property
    def tokens_max(self) -> int:
        """Tokens one fact may have, prompt and target together."""
        return self._row_tokens * self._rows_max

    def encode(self, facts: Sequence[FactText]) -> EncodedContent:
        """N facts to latents (R, C) int8.

        Prompt and target are tokenised apart, the target after one space, so that both counts are exact.
        Raises: TextTooLong with both numbers; ValueError for a fact without any token.
        """
        rows: list[list[int]] = []
        counts = np.zeros((3, len(facts)), np.int32)  # rows, prompt tokens, target tokens
        for index, fact in enumerate(facts):
            prompt, target = self.tokens(fact)
            ids = prompt + target
            if not ids:
                raise ValueError(f"fact [{index}] is empty")
            if len(ids) > self.tokens_max:
                raise TextTooLong(f"fact [{index}]", len(ids), self.tokens_max)
            parts = self._split(ids)
            counts[:, index] = len(parts), len(prompt), len(target)
            rows.extend(parts)
        matrix = self._latents(rows) if rows else np.zeros((0, self._latent_size), np.int8)
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

        Raises: ValueError if the readout cannot hold that many tokens.
        """
        if readout.ndim != 2 or readout.shape[1] != self._latent_size:
            raise ValueError(f"readout must have shape (P, {self._latent_size}), got {readout.shape}")
        return self._condition(readout.astype(np.float32), prompt_tokens, prompt_tokens + target_tokens)

    def prompt(self, condition: Condition) -> str:
        """The likeliest text of a recalled fact's prompt: the stored one without outer blanks if the read was exact."""
        return self._text(condition.candidates[: condition.target_start, 0].tolist()).strip()

    @abstractmethod
    def _latents(self, rows: Sequence[Sequence[int]]) -> Int8Array:
        """R rows of 1 to L token ids to latents (R, C)."""

    @abstractmethod
    def _condition(self, readout: Float32Array, target_start: int, total: int) -> Condition:
        """A readout (P, C) of `total` tokens."""

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _split(self, ids: list[int]) -> list[list[int]]:
        """Cut `ids` into rows of at most L tokens, after a sentence or clause end where one lies in a row's later half.

        If that would take more rows than a fact may have, rows are simply filled.
        """
        size = self._row_tokens
        rows: list[list[int]] = []
        rest = ids
        while len(rest) > size:
            ends = [cut for cut in range(size // 2, size + 1) if rest[cut - 1] in self._clause_ends]
            cut = ends[-1] if ends else size
            rows.append(rest[:cut])
            rest = rest[cut:]
        rows.append(rest)
        if len(rows) > self._rows_max:
            rows = [ids[start : start + size] for start in range(0, len(ids), size)]
        return rows


def row_lengths(worth: NDArray[np.floating], total: int) -> list[int]:
    """How many leading positions of each row hold a token, given that all rows together hold `total`.

    worth (P, L): what speaks for row p holding n tokens, at [p, n - 1]. Of all lengths (at least 1 each) that add up to
    `total`, the ones of the greatest sum win, found by dynamic programming; so a wrong length never shifts the later
    rows' count. Raises: ValueError if no lengths fit.
    """
    rows, size = worth.shape
    if not rows <= total <= rows * size:
        raise ValueError(f"{total} tokens cannot stand in {rows} rows of {size}")
    best = np.full((rows + 1, total + 1), -np.inf)  # best[p, t]: greatest sum of p rows that hold t tokens
    best[0, 0] = 0.0
    choice = np.zeros((rows, total + 1), np.int64)
    for row in range(rows):
        for held in range(row + 1, min(total, (row + 1) * size) + 1):
            lengths = np.arange(1, min(size, held) + 1)
            gains = best[row, held - lengths] + worth[row, lengths - 1]
            choice[row, held] = lengths[int(np.argmax(gains))]
            best[row + 1, held] = gains.max()
    result: list[int] = []
    for row in reversed(range(rows)):
        result.append(int(choice[row, total]))
        total -= result[-1]
    return result[::-1]
