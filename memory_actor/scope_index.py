"""Which stored fact, if any, does a query concern? Nearest stored key by cosine, by one exact matrix product.

A query has one key or several, of its parts, and is as near to a fact as the nearest of them.
Keys live in fixed blocks, so that adding one costs the same with ten facts or a million: nothing is ever copied.
Dimension legend: N stored keys, P keys of one query, D key size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 4096
_EQUAL_COSINES = 1e-6  # float32 products of equal keys differ by less, depending on their row


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored key near a query: its fact, the cosine, in [-1, 1], and which of the query's keys came that near."""

    fact_id: str
    score: float
    key: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The best cosine of a search and the pairs (position of a stored key, number of a query's key) that have it.

    Several only where keys are equal: of facts written with `keep_both`, or of one query.
    """

    pairs: list[list[int]]
    score: float


class ScopeIndex:
    """The unit keys of one tenant's live facts. One writer; readers may search while it appends (see `removals`)."""

    def __init__(self, key_size: int, device: torch.device | str = "cpu") -> None:
        self._key_size = key_size
        self._device = torch.device(device)
        self._blocks: list[Tensor] = []  # each (BLOCK_ROWS, D) float32
        self._seqs: list[int] = []
        self._fact_ids: list[str] = []
        self._positions: dict[str, int] = {}
        #: Counts removals, from the moment each begins. A search that ran beside one may have seen a moved row: note
        #: this number under the writer's lock, search without it, and search again under it when the number changed.
        self.removals = 0

    def __len__(self) -> int:
        return len(self._fact_ids)

    @property
    def bytes(self) -> int:
        """What the keys take in memory."""
        return len(self._fact_ids) * self._key_size * 4

    def __contains__(self, fact_id: str) -> bool:
        return fact_id in self._positions

    def add(self, fact_id: str, key: Tensor, seq: int = 0) -> None:
        """Append one key (D,). Among equally near keys the one with the largest `seq`, the newest fact, is found.

        The row is written before the fact id makes it visible to a concurrent search.
        """
        if key.shape != (self._key_size,):
            raise ValueError(f"key must be ({self._key_size},), got {tuple(key.shape)}")
        if fact_id in self._positions:
            raise ValueError(f"fact {fact_id} is in the index already")
        position = len(self._fact_ids)
        # float16 keys are unit to a thousandth only; left so, a longer neighbour would beat a fact's own key.
        self._write(position, _unit(key).unsqueeze(0))
        self._positions[fact_id] = position
        self._seqs.append(seq)
        self._fact_ids.append(fact_id)

    def add_many(self, fact_ids: Sequence[str], keys: Tensor, seqs: Sequence[int]) -> None:
        """Append N keys (N, D) at once: what N calls of `add` do, at a fraction of their cost."""
        if keys.shape != (len(fact_ids), self._key_size) or len(seqs) != len(fact_ids):
            raise ValueError(f"{len(fact_ids)} facts, {len(seqs)} seqs and keys {tuple(keys.shape)} do not fit")
        start = len(self._fact_ids)
        positions = {fact_id: start + i for i, fact_id in enumerate(fact_ids)}
        if len(positions) != len(fact_ids) or any(fact_id in self._positions for fact_id in fact_ids):
            raise ValueError("a fact is in the index already")
        k = keys.to(torch.float32)
        self._write(start, k / k.norm(dim=1, keepdim=True).clamp_min(1e-12))
        self._positions.update(positions)
        self._seqs.extend(seqs)
        self._fact_ids.extend(fact_ids)

    def remove(self, fact_id: str) -> None:
        """Drop one key; the last one takes its place. Raises KeyError for an unknown fact."""
        self.removals += 1
        position = self._positions.pop(fact_id)
        last_id, last_seq = self._fact_ids.pop(), self._seqs.pop()
        last_block, last_row = divmod(len(self._fact_ids), BLOCK_ROWS)
        if last_id != fact_id:
            block, row = divmod(position, BLOCK_ROWS)
            self._blocks[block][row] = self._blocks[last_block][last_row]
            self._fact_ids[position], self._seqs[position] = last_id, last_seq
            self._positions[last_id] = position
        self._blocks[last_block][last_row] = 0.0  # nothing of a removed key stays behind
        if last_row == 0:
            self._blocks.pop()

    def search(self, query: Tensor) -> Found | None:
        """The stored keys nearest to any of a query's keys (P, D), or None when the index is empty.

        Safe beside one writer; after a concurrent removal the positions mean nothing (see `removals`).
        """
        scores = self._scores(query)
        if scores is None:
            return None
        best = scores.max()
        return Found((scores >= best - _EQUAL_COSINES).nonzero().tolist(), float(best))

    def newest(self, found: Found) -> Neighbour:
        """The newest of the facts that `search` found, unless `removals` changed; of the query's keys the first."""
        position, key = max(found.pairs, key=lambda pair: self._seqs[pair[0]])
        return Neighbour(self._fact_ids[position], found.score, key)

    def nearest(self, query: Tensor) -> Neighbour | None:
        """The fact with the highest cosine to any of a query's keys (P, D), or None. Not beside a removal."""
        found = self.search(query)
        return None if found is None else self.newest(found)

    def within(self, query: Tensor, threshold: float, limit: int) -> list[Neighbour]:
        """Up to `limit` facts whose best cosine to a query's keys (P, D) is >= threshold, best first.

        Not beside a removal.
        """
        scores = self._scores(query)
        if scores is None:
            return []
        nearest, keys = scores.max(dim=1)
        best = nearest.topk(min(limit, len(nearest)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Neighbour(self._fact_ids[at], score, int(keys[at])) for score, at in pairs if score >= threshold]

    def _write(self, start: int, rows: Tensor) -> None:
        """Put unit rows (N, D) at positions from `start`, the first free one, on; adds blocks as needed."""
        done = 0
        while done < rows.shape[0]:
            block, row = divmod(start + done, BLOCK_ROWS)
            if block == len(self._blocks):
                # NumPy's zeros take no memory before they are written to: a small tenant pays for its own rows only.
                empty = np.zeros((BLOCK_ROWS, self._key_size), dtype=np.float32)
                self._blocks.append(torch.from_numpy(empty).to(self._device))
            count = min(rows.shape[0] - done, BLOCK_ROWS - row)
            self._blocks[block][row : row + count] = rows[done : done + count].to(self._device)
            done += count

    def _scores(self, query: Tensor) -> Tensor | None:
        """Cosines (N, P) of all keys present at the start to a query's (P, D)."""
        if len(query.shape) != 2 or query.shape[0] == 0 or query.shape[1] != self._key_size:
            raise ValueError(f"a query's keys must be (P, {self._key_size}), P > 0, got {tuple(query.shape)}")
        count = len(self._fact_ids)
        blocks = tuple(self._blocks)  # a concurrent removal may pop the last block from the list, or the only one
        if count == 0 or not blocks:
            return None
        q = torch.stack([_unit(key) for key in query]).T.to(self._device)  # (D, P)
        return torch.cat([block @ q for block in blocks])[:count]


def _unit(vector: Tensor) -> Tensor:
    """`vector` (D,) as float32 of length one; zero stays zero. A third of the cost of torch's `normalize`."""
    v = vector.to(torch.float32)
    return v / max(math.sqrt(float(v @ v)), 1e-12)
