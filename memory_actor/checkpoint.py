"""What one checkpoint says: a tenant's contents at one version, and the plain Arrow files they are kept in. Pure.

Equal contents give equal bytes: facts are sorted by id, sums are integers of the smallest width that holds them, and
nothing tells of what was there before. Sealing, files and the manifest are in `checkpoints.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from memory_actor.effects import StoredFact
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.state_hash import state_hash
from memory_actor.types import MemoryConfig, Retention

FORMAT: Final = 1
"""The format that is written."""
FORMATS: Final = (1,)
"""All formats that are read: every one that was ever written."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A tenant's contents at `version`: what a checkpoint holds, and what a memory can be loaded from.

    `sums` is the total over all facts. `facts` are sorted by fact id; only the order of their `seq` means something
    (files keep ranks, 1 to N). They carry no `supersedes`: what a fact took the place of is gone.
    """

    tenant: str
    uid: str
    retention: Retention
    salt: bytes = field(repr=False)
    created_at: float
    version: int
    state_hash: str
    sums: SufficientStatistics = field(repr=False)
    facts: tuple[StoredFact, ...] = field(repr=False)

    def without(self, fact_ids: Collection[str], config: MemoryConfig) -> Snapshot:
        """As if these facts had never been written, under the same version. Ids it does not hold are no error."""
        gone = set(fact_ids)
        return self._only([fact for fact in self.facts if fact.fact_id not in gone], self.version, config)

    def up_to(self, version: int, config: MemoryConfig) -> Snapshot:
        """Those of its facts that were there at `version`, labelled so. What ended since does not come back."""
        return self._only([fact for fact in self.facts if fact.version <= version], version, config)

    def rebuilt_hash(self, config: MemoryConfig) -> str:
        """The state hash of sums made from nothing but the facts: equals `state_hash`, or something is damaged."""
        return state_hash(config, _sums_of(self.facts, config), (fact.fact_id for fact in self.facts))

    def _only(self, kept: list[StoredFact], version: int, config: MemoryConfig) -> Snapshot:
        if len(kept) == len(self.facts):
            return self if version == self.version else replace(self, version=version)
        if 2 * len(kept) < len(self.facts):
            total = _sums_of(kept, config)
        else:  # both ways are exact; this one is less work
            kept_ids = {fact.fact_id for fact in kept}
            total = self.sums.copy()
            total.forget_(*_rows([fact for fact in self.facts if fact.fact_id not in kept_ids]))
        digest = state_hash(config, total, (fact.fact_id for fact in kept))
        return replace(self, version=version, state_hash=digest, sums=total, facts=tuple(kept))


def to_arrow(snapshot: Snapshot, config: MemoryConfig) -> dict[str, bytes]:
    """The plain files by name. Raises ValueError when the snapshot is not one of this configuration."""
    return {name: b"".join(chunks) for name, chunks in arrow_chunks(snapshot, config).items()}


def arrow_chunks(snapshot: Snapshot, config: MemoryConfig) -> dict[str, Iterator[bytes]]:
    """`to_arrow` piece by piece: beside the snapshot, only a few thousand facts at a time are in memory."""
    from memory_actor import checkpoint_arrow  # noqa: PLC0415 - Arrow takes a fifth of a second to import

    return checkpoint_arrow.chunks(snapshot, config)


def from_arrow(
    files: Mapping[str, bytes | bytearray | memoryview],
    config: MemoryConfig,
    *,
    verify: bool = True,
    checkpoint: str = "(unnamed)",
) -> Snapshot:
    """The snapshot in these plain files; its arrays are read-only views of them.

    Every schema, count and shape must be as written and every number finite; with `verify` the state hash is computed
    anew. `checkpoint` names it in errors. Raises CheckpointDamaged; CheckpointMismatch for another bundle or a format
    that this release does not know.
    """
    from memory_actor import checkpoint_arrow  # noqa: PLC0415 - see above

    return checkpoint_arrow.read(files, config, verify=verify, checkpoint=checkpoint)


def _sums_of(facts: Iterable[StoredFact], config: MemoryConfig) -> SufficientStatistics:
    total = SufficientStatistics.zeros(config.address_size, config.latent_size)
    facts = list(facts)
    for start in range(0, len(facts), _FACTS_AT_ONCE):
        total.write_(*_rows(facts[start : start + _FACTS_AT_ONCE]))
    return total


def _rows(facts: list[StoredFact]) -> tuple[Tensor, Tensor]:
    """The rows of at least one fact on top of each other: addresses (R, K) and latents (R, C) int8."""
    return (
        torch.from_numpy(np.concatenate([fact.addresses for fact in facts])),
        torch.from_numpy(np.concatenate([fact.latents for fact in facts])),
    )


_FACTS_AT_ONCE = 2048  # bounds the float64 copies that a product makes
