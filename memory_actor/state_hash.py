"""One SHA-256 for what a tenant's memory is: equal for equal contents, whatever the history that led there.

Taken over the sum of the tenant's shards and the sorted ids of its live facts, so neither the shard a fact landed
in nor anything that was forgotten can show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.types import MemoryConfig

FORMAT = "larimar-state-1"


def state_hash(config: MemoryConfig, statistics: SufficientStatistics, fact_ids: Iterable[str]) -> str:
    """Hex SHA-256 of (format, bundle, shapes, sorted fact ids, Cov upper triangle, H), sums as little-endian int64.

    statistics: cov (K, K), cross (K, C). Raises ValueError when a sum is not an exact integer.
    """
    digest = hashlib.sha256()
    header = (FORMAT, config.fingerprint, config.address_size, config.latent_size, config.feature_map)
    digest.update("|".join(map(str, header)).encode())
    ids = sorted(fact_ids)
    digest.update(f"|{len(ids)}|{statistics.rows}|".encode())
    digest.update("\n".join(ids).encode())
    upper = statistics.cov[torch.triu(torch.ones_like(statistics.cov, dtype=torch.bool))]
    for sums in (upper, statistics.cross):
        integers = sums.to(torch.int64)
        if not torch.equal(integers.to(torch.float64), sums):
            raise ValueError("sums are not integers: the memory was changed by something other than write and forget")
        digest.update(integers.numpy().astype("<i8", copy=False).tobytes())
    return digest.hexdigest()
