"""The paper's recursive read over many small memories (Das et al. 2024, sec. 5.5), as far as its words define it.

    chunks in order, B to a memory; each memory is read with the query; the readouts are the next level's chunks,
    again B to a memory; until one memory is left, whose readout is decoded.

A chunk has two halves that are written under the same weights: its key k (the encoder's, of its prompt) and its value
z (the codec's latent). A memory of B chunks is read in one of two ways, since the paper does not say which:

    projection  w = q K^+            Algorithm 1: the query's projection on the span of the keys
    gaussian    w of eqs. (7)-(8)    filter over the keys as reference memory, alpha = 1e-3: nearly one-hot

and gives the readouts w K and w Z, the next level's key and value. There is no gate. Dimension legend: N chunks, Q
queries, G memories, B chunks of one memory, D key size, C latent size.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

GROUP = 16  # B: the paper trains on episodes of 16
_ALPHA = 1e-3  # of eq. (7), Fig. 2b
_ZERO = 1e-12


class Weights(StrEnum):
    """How one memory is addressed by a query."""

    PROJECTION = "projection"
    GAUSSIAN = "gaussian"


class RecursiveReader:
    """N chunks, written once into memories of B. keys (N, D) and values (N, C), float32."""

    def __init__(self, keys: Tensor, values: Tensor, weights: Weights, group: int = GROUP) -> None:
        if len(keys) != len(values) or not len(keys):
            raise ValueError(f"need as many keys as values, at least one: got {len(keys)} and {len(values)}")
        self._weights, self._group = weights, group
        self._keys, self._values = _grouped(keys, group), _grouped(values, group)  # (G, B, D), (G, B, C)
        # Level one is read by every query: its inverses are found once.
        self._inverses = torch.linalg.pinv(self._keys) if weights is Weights.PROJECTION else None  # (G, D, B)

    def read(self, query: Tensor) -> Tensor:
        """The last readout (C,) for a query's key (D,)."""
        keys, values = self._level(query, self._keys, self._values, self._inverses)
        while len(keys) > 1:
            keys, values = self._level(query, _grouped(keys, self._group), _grouped(values, self._group))
        return values[0]

    def _level(
        self, query: Tensor, keys: Tensor, values: Tensor, inverses: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The readouts (G, D) and (G, C) of G memories."""
        if self._weights is Weights.PROJECTION:
            weights = query @ (torch.linalg.pinv(keys) if inverses is None else inverses)  # (G, B)
        else:
            weights = _filter(query, keys)
        return torch.einsum("gb,gbd->gd", weights, keys), torch.einsum("gb,gbc->gc", weights, values)


def _filter(query: Tensor, keys: Tensor) -> Tensor:
    """Eqs. (7)-(8): w_k ~ exp(-|q - k|^2 / (2 alpha sigma^2)), sigma the distance to the nearest; weights (G, B).

    A query that equals a key has sigma 0, where the equation is 0/0: its limit, one-hot, is used. Padding (a zero
    row) is no key.
    """
    squared = (keys - query).square().sum(-1)  # (G, B)
    squared = squared.masked_fill(keys.square().sum(-1) < _ZERO, torch.inf)
    nearest = squared.min(dim=1, keepdim=True).values
    return torch.softmax((nearest - squared) / (2 * _ALPHA * nearest.clamp_min(_ZERO)), dim=1)


def _grouped(rows: Tensor, size: int) -> Tensor:
    """Rows (N, X) in order, `size` to a group, the last one filled up with zeros: (G, size, X)."""
    groups = -(-len(rows) // size)
    padded = torch.zeros(groups * size, rows.shape[1], dtype=rows.dtype)
    padded[: len(rows)] = rows
    return padded.reshape(groups, size, rows.shape[1])
