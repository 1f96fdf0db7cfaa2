"""One bounded memory of one tenant: the addresses of at most K rows, and M derived from them.

A *warm* shard keeps its own sums (Cov, H) and can be written and solved without help. A *frozen* one has given its
sums to the tenant's total and keeps addresses and M only; when a change makes its M stale, the next read rebuilds
the sums from the ledger's rows, solves, and lets them go again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_actor.episodic_memory import SufficientStatistics, solve
from memory_actor.types import MemoryConfig


class Shard:
    """Rows of the facts that landed here. Not thread-safe: the tenant's lock guards it."""

    def __init__(self, config: MemoryConfig, device: torch.device | str = "cpu") -> None:
        self._config = config
        self._device = torch.device(device)
        #: Addresses (K, K) int8, the first `rows` are live; on the host.
        self._addresses = torch.zeros(config.shard_rows_max, config.address_size, dtype=torch.int8)
        #: Length of each stored address, so that comparing with it needs no second pass over the matrix.
        self._lengths = torch.ones(config.shard_rows_max)
        self._row_facts: list[str] = []
        self._fact_rows: dict[str, list[int]] = {}
        #: Own sums while warm, None once frozen.
        self.statistics: SufficientStatistics | None = SufficientStatistics.zeros(
            config.address_size, config.latent_size
        )
        #: Counts changes; `memory` is valid only for the change it was solved at.
        self.changes = 0
        self._memory: Tensor | None = None
        self._memory_changes = -1

    @property
    def rows(self) -> int:
        return len(self._row_facts)

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return self._config.shard_rows_max - self.rows

    @property
    def fact_ids(self) -> list[str]:
        return list(self._fact_rows)

    @property
    def bytes(self) -> int:
        """What it takes in memory: addresses, own sums, M."""
        tensors = [self._addresses, self._lengths, self._memory]
        if self.statistics is not None and self.statistics.rows:
            tensors += [self.statistics.cov, self.statistics.cross]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def memory(self) -> Tensor | None:
        """M (K, C) float32 if solved since the last change, else None."""
        return self._memory if self._memory_changes == self.changes else None

    def overlap(self, addresses: Tensor) -> Tensor:
        """Largest |cosine| of each of N addresses (N, K) int8 with a row stored here, (N,) float32; 0 when empty."""
        if self.rows == 0:
            return torch.zeros(addresses.shape[0])
        products = _unit(addresses) @ self._addresses[: self.rows].to(torch.float32).T  # (N, rows)
        return products.abs_().div_(self._lengths[: self.rows]).max(dim=1).values

    def add(self, fact_id: str, addresses: Tensor) -> None:
        """Take in one fact's rows, addresses (P, K) int8. The caller adds to `statistics` (in bulk)."""
        self.add_many([fact_id], addresses, [addresses.shape[0]])

    def add_many(self, fact_ids: Sequence[str], addresses: Tensor, rows: Sequence[int]) -> None:
        """Take in N facts, parts consecutive in `addresses` (R, K) int8; fact i owns `rows[i]` of them."""
        count = addresses.shape[0]
        if count > self.room:
            raise ValueError(f"{count} rows do not fit into the {self.room} left")
        start = self.rows
        self._addresses[start : start + count] = addresses
        self._lengths[start : start + count] = addresses.to(torch.float32).norm(dim=1).clamp_min(1.0)
        for fact_id, own in zip(fact_ids, rows, strict=True):
            self._row_facts.extend([fact_id] * own)
            self._fact_rows[fact_id] = list(range(start, start + own))
            start += own
        self.changes += 1

    def remove(self, fact_id: str) -> None:
        """Drop one fact's rows; the last rows take their places. The caller subtracts from `statistics`."""
        for row in sorted(self._fact_rows.pop(fact_id), reverse=True):
            last = len(self._row_facts) - 1
            moved = self._row_facts.pop()
            if row != last:
                self._addresses[row], self._lengths[row] = self._addresses[last], self._lengths[last]
                self._row_facts[row] = moved
                rows = self._fact_rows[moved]
                rows[rows.index(last)] = row
            self._addresses[last] = 0
        self.changes += 1
        self._memory = None  # the old M still knows the fact

    def addresses_of(self, fact_id: str) -> Tensor:
        """The stored addresses (P, K) int8 of a fact, in the order of its parts."""
        return self._addresses[self._fact_rows[fact_id]]

    def freeze(self) -> SufficientStatistics:
        """Give the sums away; from here on the tenant's total holds them. Raises ValueError when frozen already."""
        if self.statistics is None:
            raise ValueError("the shard is frozen already")
        given, self.statistics = self.statistics, None
        return given

    def solve_from(self, statistics: SufficientStatistics) -> Tensor:
        """M (K, C) for these sums. Pure and slow: run it without the lock, then `keep_memory` under it."""
        return solve(statistics, self._config.ridge * self._config.address_scale**2, self._device)

    def keep_memory(self, memory: Tensor, changes: int) -> None:
        """Cache an M that was solved for the state after `changes`; ignored when the shard has moved on."""
        if changes == self.changes:
            self._memory, self._memory_changes = memory, changes


def place(shards: Sequence[Shard], addresses: Tensor, rows: Sequence[int], collinearity_max: float) -> list[int | None]:
    """For each of N facts (parts consecutive in `addresses` (R, K) int8) the shard to hold it, or None for a new one.

    A fact goes to the first shard with room where no stored or just-placed row is nearly collinear with one of its
    own: collinear addresses would share a readout. Pure: nothing is added here.
    """
    owners = np.repeat(np.arange(len(rows)), rows)
    rivals = _rivals(addresses, owners, collinearity_max)
    stored = [_owners_over(shard.overlap(addresses), owners, collinearity_max) for shard in shards]
    room = [shard.room for shard in shards]
    placed: list[int | None] = []
    for fact, count in enumerate(rows):
        choice = None
        for index in range(len(shards)):
            if room[index] < count or fact in stored[index]:
                continue
            if any(placed[rival] == index for rival in rivals.get(fact, ())):
                continue
            choice = index
            room[index] -= count
            break
        placed.append(choice)
    return placed


def independent(addresses: Tensor, rows: Sequence[int], collinearity_max: float) -> list[bool]:
    """Which of N facts `place` would put into one empty shard that has room for all of them."""
    rivals = _rivals(addresses, np.repeat(np.arange(len(rows)), rows), collinearity_max)
    fits: list[bool] = []
    for fact in range(len(rows)):
        fits.append(not any(fits[rival] for rival in rivals.get(fact, ())))
    return fits


def _rivals(addresses: Tensor, owners: NDArray[np.int64], collinearity_max: float) -> dict[int, list[int]]:
    """For each fact the earlier ones that it may not share a shard with; row i of `addresses` belongs to owners[i]."""
    unit = _unit(addresses)
    close = (unit @ unit.T).abs_() > collinearity_max
    first, second = (owners[rows] for rows in close.nonzero().numpy().T)
    rivals: dict[int, list[int]] = {}
    for fact, rival in sorted({(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True) if b < a}):
        rivals.setdefault(fact, []).append(rival)
    return rivals


def _owners_over(cosines: Tensor, owners: NDArray[np.int64], collinearity_max: float) -> set[int]:
    """The facts that own a row whose cosine is over the limit."""
    return set(owners[(cosines > collinearity_max).numpy()].tolist())


def _unit(addresses: Tensor) -> Tensor:
    """Addresses (N, K) int8 as float32 rows of length one."""
    return torch.nn.functional.normalize(addresses.to(torch.float32), dim=1)
