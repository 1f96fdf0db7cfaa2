"""How the facts of a checkpoint are laid into shards when a memory is loaded whole. Pure; placement never shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from memory_actor.effects import StoredFact
from memory_actor.shard import independent
from memory_actor.types import MemoryConfig


def pack(facts: Sequence[StoredFact], config: MemoryConfig) -> tuple[list[list[StoredFact]], list[StoredFact]]:
    """Facts in order of writing as (groups that can each have a shard of their own, facts to add one after another).

    The latter are near-copies of another fact of their group, and the last, incomplete group of a memory of several
    shards: that shard keeps sums of its own, as it would after a replay, and sums of its own cost a product.
    """
    groups: list[list[StoredFact]] = []
    rest: list[StoredFact] = []
    for group in _runs(facts, config.shard_rows_max):
        counts = [fact.addresses.shape[0] for fact in group]
        if groups and group[-1] is facts[-1] and sum(counts) < config.shard_rows_max:
            rest.extend(group)
            continue
        addresses = torch.from_numpy(np.concatenate([fact.addresses for fact in group]))
        fits = independent(addresses, counts, config.collinearity_max)
        groups.append([fact for fact, fit in zip(group, fits, strict=True) if fit])
        rest.extend(fact for fact, fit in zip(group, fits, strict=True) if not fit)
    return groups, rest


def _runs(facts: Sequence[StoredFact], rows_max: int) -> Iterator[list[StoredFact]]:
    """Consecutive facts of at most `rows_max` rows together, as many as fit."""
    run: list[StoredFact] = []
    rows = 0
    for fact in facts:
        count = fact.addresses.shape[0]
        if rows + count > rows_max:
            yield run
            run, rows = [], 0
        run.append(fact)
        rows += count
    if run:
        yield run
