"""Builders shared by the tests of the memory: small configurations, seeded keys and latents, a tenant with its rows.

Nothing here uses a formula of the product, `integer_sums` included: that one is the oracle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from memory_actor.addressing import Addressing
from memory_actor.draft import Draft
from memory_actor.effects import FactsWritten, StoredFact
from memory_actor.tenant import Prepared, TenantMemory
from memory_actor.types import EncodedFacts, FactText, Idempotency, MemoryConfig, Retention


class SmallShards(MemoryConfig):
    """A memory whose shards are full at 8 rows, a quarter of K: they fill, freeze and reopen within a few writes.

    8 random addresses of 32 numbers are well conditioned, so that exact recall is a certainty and not a likelihood.
    """

    __slots__ = ()

    @property
    def shard_rows_max(self) -> int:
        return 8


SMALL = SmallShards(
    fingerprint="5a11",
    key_size=8,
    address_size=32,
    latent_size=24,
    feature_map_scale=4.0,
    ridge=1e-6,
    rows_per_fact_max=3,
)
REAL = MemoryConfig(fingerprint="4ea1")  # D 384, K 512, C 768

SALT = bytes(32)


def unit_keys(seed: int, count: int, config: MemoryConfig = SMALL) -> np.ndarray:
    """`count` random unit keys (N, D) float16."""
    keys = np.random.default_rng(seed).standard_normal((count, config.key_size))
    return (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float16)


def sign_latents(seed: int, count: int, config: MemoryConfig = SMALL) -> np.ndarray:
    """`count` random latents (R, C) int8 of +1 and -1."""
    signs = np.random.default_rng(seed).integers(0, 2, (count, config.latent_size))
    return (2 * signs - 1).astype(np.int8)


def encoded_facts(
    keys: np.ndarray, latents: np.ndarray | None = None, rows: Sequence[int] | None = None, config: MemoryConfig = SMALL
) -> EncodedFacts:
    """EncodedFacts for these keys; one row each and seeded latents unless given."""
    rows_of = np.asarray([1] * len(keys) if rows is None else rows, np.int32)
    if latents is None:
        latents = sign_latents(len(keys), int(rows_of.sum()), config)
    tokens = np.arange(1, len(keys) + 1, dtype=np.int32)
    return EncodedFacts(keys, latents, rows_of, tokens, tokens + 1)


def texts_of(count: int, start: int = 0, *, keep_both: bool = False) -> list[FactText]:
    """`count` facts with prompts of their own."""
    return [FactText(f"prompt {start + i}", f"target {start + i}", keep_both=keep_both) for i in range(count)]


def ids_of(count: int, start: int = 0) -> list[str]:
    return [f"f_{start + i:05d}" for i in range(count)]


def once(key: str, digest: int = 0, endpoint: str = "write") -> Idempotency:
    """An idempotency key with a request digest of one repeated byte."""
    return Idempotency(key, bytes([digest]) * 32, endpoint)


@dataclass
class Bench:
    """A tenant's memory with the rows a ledger would keep for it."""

    tenant: TenantMemory
    stored: dict[str, StoredFact] = field(default_factory=dict)

    @classmethod
    def new(cls, config: MemoryConfig = SMALL, *, retention: Retention = Retention.TEXT) -> Bench:
        stored: dict[str, StoredFact] = {}

        def rows_of(fact_ids: Sequence[str]) -> Sequence[StoredFact]:
            return [stored[fact_id] for fact_id in fact_ids if fact_id in stored]

        tenant = TenantMemory(
            "acme", retention, SALT, 0.0, addressing=addressing_of(config), config=config, rows_of=rows_of
        )
        return cls(tenant, stored)

    def commit(self, *prepared: Prepared) -> None:
        """What the writer does after planning: make all of it durable, then apply each in order."""
        for one in prepared:
            self.keep(one)
        for one in prepared:
            self.tenant.apply(one)

    def keep(self, prepared: Prepared) -> None:
        """The ledger's half of a commit."""
        effect = prepared.effect
        ended = effect.forgotten if isinstance(effect, FactsWritten) else effect.fact_ids
        for fact_id in ended:
            del self.stored[fact_id]
        if isinstance(effect, FactsWritten):
            self.stored.update({fact.fact_id: fact for fact in effect.facts})

    def write(self, texts: Sequence[FactText], encoded: EncodedFacts, fact_ids: Sequence[str]) -> Prepared:
        prepared = Draft(self.tenant).write(texts, encoded, fact_ids, now=0.0)
        self.commit(prepared)
        return prepared

    def forget(self, fact_ids: Sequence[str]) -> Prepared:
        prepared = Draft(self.tenant).forget(fact_ids)
        self.commit(prepared)
        return prepared

    @property
    def hash(self) -> str:
        return self.tenant.state_hash()


_ADDRESSING: dict[MemoryConfig, Addressing] = {}


def addressing_of(config: MemoryConfig) -> Addressing:
    """One Addressing per configuration: building a real one takes a tenth of a second."""
    if config not in _ADDRESSING:
        _ADDRESSING[config] = Addressing(config)
    return _ADDRESSING[config]


def integer_sums(facts: Iterable[StoredFact], config: MemoryConfig = SMALL) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: (Cov, H) of these facts in int64, one outer product at a time."""
    cov = np.zeros((config.address_size, config.address_size), np.int64)
    cross = np.zeros((config.address_size, config.latent_size), np.int64)
    for fact in facts:
        for w, z in zip(fact.addresses.astype(np.int64), fact.latents.astype(np.int64), strict=True):
            cov += np.outer(w, w)
            cross += np.outer(w, z)
    return cov, cross
