"""What a store must hold after a history: live facts in a dict, sums in int64, one outer product at a time.

The oracle of the campaigns. From the product it takes the address of a key and the serialisation of a hash, nothing
else: no ledger, no engine, no floating-point sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.campaign_store import CONFIG, PlannedFact, addressing, key_of
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.state_hash import state_hash

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LiveFact:
    """One fact as written, and the tenant's version that wrote it."""

    planned: PlannedFact
    version: int


@dataclass
class TenantModel:
    """Live facts by id in the order of writing, their exact sums, and the version, one per change."""

    live: dict[str, LiveFact] = field(default_factory=dict)
    version: int = 0
    gone: set[str] = field(default_factory=set)
    cov: Int64Array = field(default_factory=lambda: np.zeros((CONFIG.address_size,) * 2, np.int64))
    cross: Int64Array = field(default_factory=lambda: np.zeros((CONFIG.address_size, CONFIG.latent_size), np.int64))

    def write(self, facts: Sequence[PlannedFact], fact_ids: Sequence[str]) -> list[str]:
        """Apply a write; returns the ids it supersedes, in order."""
        self.version += 1
        superseded: list[str] = []
        for fact, fact_id in zip(facts, fact_ids, strict=True):
            if not fact.keep_both:
                same = [one for one, kept in self.live.items() if kept.planned.prompt == fact.prompt]
                superseded += same
                self._end(same)
            self.live[fact_id] = LiveFact(fact, self.version)
            self._add(fact, +1)
        return superseded

    def forget(self, fact_ids: Iterable[str]) -> list[str]:
        """Apply a forget; returns those of the ids that were live."""
        found = [fact_id for fact_id in dict.fromkeys(fact_ids) if fact_id in self.live]
        self._end(found)
        self.version += bool(found)
        return found

    def hash(self) -> str:
        """The state hash of exactly these facts."""
        rows = sum(fact.planned.rows for fact in self.live.values())
        cov, cross = (torch.from_numpy(sums.astype(np.float64)) for sums in (self.cov, self.cross))
        return state_hash(CONFIG, SufficientStatistics(cov, cross, rows), self.live)

    def restored(self, version: int) -> TenantModel:
        """A tenant that holds those of the live facts that were written up to `version`."""
        other = TenantModel(version=version)
        for fact_id, fact in self.live.items():
            if fact.version <= version:
                other.live[fact_id] = fact
                other._add(fact.planned, +1)
        return other

    def _end(self, fact_ids: Sequence[str]) -> None:
        for fact_id in fact_ids:
            self._add(self.live.pop(fact_id).planned, -1)
            self.gone.add(fact_id)

    def _add(self, fact: PlannedFact, alpha: int) -> None:
        for address, latent in zip(addresses_of(fact.prompt, fact.rows), fact.latents(), strict=True):
            self.cov += alpha * np.outer(address, address)
            self.cross += alpha * np.outer(address, latent.astype(np.int64))


@lru_cache(maxsize=4096)
def addresses_of(prompt: int, rows: int) -> Int64Array:
    """(rows, K): where the parts of a fact with this prompt go."""
    key = torch.from_numpy(key_of(prompt).astype(np.float32)).unsqueeze(0)
    parts = addressing().parts(addressing().addresses(key)[0], rows)
    addresses: Int64Array = parts.cpu().numpy().astype(np.int64)
    return addresses
