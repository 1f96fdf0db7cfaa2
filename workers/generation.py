"""Several generations side by side in one key/value cache: admit, step, evict. Pure state: no threads, no text.

Dimension legend: B live rows, T cached tokens (padding included), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache


class DecodingBatch:
    """The live rows of a causal LM, left-padded to a common length.

    A single row runs exactly as the plain model would run it: no padding, no mask, the same kernels, the same bits.
    Rows side by side see the same tokens at the same positions; their logits agree with a lone run's within 1e-3
    (measured on the default decoder: about 1e-4), since other matrix shapes sum in another order.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a transformers causal LM in eval mode."""
        self._model = model
        self._cache: DynamicCache | None = None
        self._padding: list[int] = []  # masked positions at the left of each row

    def __len__(self) -> int:
        return len(self._padding)

    @torch.inference_mode()
    def head(self, ids: Sequence[int]) -> DynamicCache:
        """The keys and values of a prompt's beginning that many prompts share, for `admit` to start from."""
        cache = DynamicCache(config=self._model.config)
        self._model(input_ids=torch.tensor([ids], device=self._model.device), past_key_values=cache, use_cache=True)
        return cache

    @torch.inference_mode()
    def admit(self, inputs: dict[str, torch.Tensor], head: DynamicCache | None = None) -> torch.Tensor:
        """Run a new row's prompt alone and add it as the last row. Returns its next-token logits (V,).

        `inputs` is either `input_ids` (1, n) or `inputs_embeds` (1, n, hidden): the whole prompt, or what follows
        `head`, which stays as it is.
        """
        cache = DynamicCache(config=self._model.config)
        if head is not None:
            for index, layer in enumerate(head.layers):
                cache.update(layer.keys, layer.values, index)
        output = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._join(cache)
        logits: torch.Tensor = output.logits[0, -1].float().cpu()
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Feed one token to each row. Returns next-token logits (B, V) float32 on the CPU."""
        if self._cache is None or len(tokens) != len(self):
            raise ValueError(f"{len(tokens)} tokens for {len(self)} live rows")
        device = self._model.device
        extra: dict[str, torch.Tensor] = {}
        if any(self._padding):
            length = self._cache.get_seq_length()
            padding = torch.tensor(self._padding, device=device).unsqueeze(1)  # (B, 1)
            extra["attention_mask"] = (torch.arange(length + 1, device=device) >= padding).long()  # (B, T + 1)
            extra["position_ids"] = length - padding
        ids = torch.tensor(tokens, device=device).unsqueeze(1)
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **extra)
        logits: torch.Tensor = output.logits[:, -1].float().cpu()
        return logits

    @torch.inference_mode()
    def evict(self, rows: Collection[int]) -> None:
        """Drop rows; the others move up in order, and padding that all of them share is cut off."""
        if not rows or self._cache is None:
            return
        kept = [row for row in range(len(self)) if row not in rows]
        if not kept:
            self._cache, self._padding = None, []
            return
        shared = min(self._padding[row] for row in kept)
        index = torch.tensor(kept, device=self._model.device)
        for layer in self._cache.layers:
            layer.keys = layer.keys.index_select(0, index)[:, :, shared:].contiguous()
            layer.values = layer.values.index_select(0, index)[:, :, shared:].contiguous()
        self._padding = [self._padding[row] - shared for row in kept]

    def _join(self, cache: DynamicCache) -> None:
        if self._cache is None:
            self._cache, self._padding = cache, [0]
            return
        held, new = self._cache.get_seq_length(), cache.get_seq_length()
        length = max(held, new)
        for layer, added in zip(self._cache.layers, cache.layers, strict=True):
            layer.keys = torch.cat([_pad_left(layer.keys, length), _pad_left(added.keys, length)])
            layer.values = torch.cat([_pad_left(layer.values, length), _pad_left(added.values, length)])
        self._padding = [padding + length - held for padding in self._padding] + [length - new]


def _pad_left(states: torch.Tensor, length: int) -> torch.Tensor:
    """`states` (B, heads, T, size) with zeros in front, up to T = length."""
    return pad(states, (0, 0, length - states.shape[2], 0))
