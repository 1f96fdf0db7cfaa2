"""Many continuations of one beginning, side by side in one row of keys and values. Pure state: no text.

Dimension legend: n tokens fed, T tokens cached, V vocabulary.

Padding a batch would pay for the longest prompt in every row and keep the shared beginning once per row. Here all
tokens stand in one row, and a mask says which of them see each other: nothing is padded, the beginning is there once,
and a prompt's candidates and its generation grow on the same prompt without copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

TRUNK = -1  # the branch that all others grow on


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens to feed to one branch.

    embeddings (n, hidden); start: position of the first of them in its text, the trunk included; stem: the branch
    that `branch` grows on, `TRUNK` for none but the trunk. The logits of its `kept` last tokens are wanted.
    """

    embeddings: torch.Tensor
    start: int
    branch: int
    stem: int = TRUNK
    kept: int = 1


class Branches:
    """Branches see the trunk, their stem and themselves, in order. Grown by `feed`; logits as if each were run alone,
    within rounding (other shapes sum in another order), for models whose attention is not limited to a window.
    """

    def __init__(self, model: Any, trunk: DynamicCache | None = None) -> None:
        """`model` is a transformers causal LM with sdpa attention in eval mode; `trunk`, from `grow_trunk`, stays."""
        self._model = model
        self._cache = DynamicCache()
        if trunk is not None:
            for index, layer in enumerate(trunk.layers):
                self._cache.update(layer.keys, layer.values, index)
        self._branch = torch.full((self._cache.get_seq_length(),), TRUNK, device=model.device)  # (T,)

    def plant(self, head: DynamicCache, lengths: Sequence[tuple[int, int]]) -> None:
        """Begin branches with keys and values (1, heads, n, size) of `head`: of each branch so many, in this order."""
        for index, layer in enumerate(head.layers):
            self._cache.update(layer.keys, layer.values, index)
        numbers = [number for number, length in lengths for _ in range(length)]
        self._branch = torch.cat([self._branch, torch.tensor(numbers, device=self._model.device)])

    @torch.inference_mode()
    def feed(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """Run the pieces in one pass. Returns for each its wanted logits (kept, V), float32 on the CPU.

        A stem comes before the branches that grow on it, in this feed or an earlier one.
        """
        lengths = torch.tensor([len(piece.embeddings) for piece in pieces])
        branch, stem = (
            torch.tensor(numbers).repeat_interleave(lengths).to(self._model.device).unsqueeze(1)
            for numbers in ([piece.branch for piece in pieces], [piece.stem for piece in pieces])
        )  # (n, 1)
        fed = len(self._branch)
        self._branch = torch.cat([self._branch, branch.squeeze(1)])
        order = torch.arange(len(self._branch), device=self._model.device)
        seen = (self._branch == TRUNK) | (self._branch == branch) | (self._branch == stem)  # (n, T)
        seen &= order <= order[fed:].unsqueeze(1)
        ranges = [torch.arange(piece.start, piece.start + len(piece.embeddings)) for piece in pieces]
        ends = lengths.cumsum(0).tolist()
        kept = [torch.arange(end - piece.kept, end) for piece, end in zip(pieces, ends, strict=True)]
        output = self._model(
            inputs_embeds=torch.cat([piece.embeddings for piece in pieces]).unsqueeze(0),
            attention_mask=seen[None, None],
            position_ids=torch.cat(ranges).to(self._model.device).unsqueeze(0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.cat(kept).to(self._model.device),
        )
        logits: torch.Tensor = output.logits[0].float().cpu()
        return list(logits.split_with_sizes([piece.kept for piece in pieces]))


@torch.inference_mode()
def grow_trunk(model: Any, embeddings: torch.Tensor) -> DynamicCache:
    """Keys and values of a beginning (n, hidden) that many texts share."""
    cache = DynamicCache()
    model(inputs_embeds=embeddings.unsqueeze(0), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache
