"""Benchmarks of the memory itself, in process: update, scope and read, growth of the write cost.

Keys are random unit vectors and latents random ±1 codes of 12 tokens: the algebra's cost does not depend on content.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from memory_actor.addressing import Addressing
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.types import EncodedFacts, FactText, Float16Array, Idempotency, MemoryConfig, ReadMode, Retention

Advance = Callable[[int], None]

_TOKENS, _CODE_SIZE = 12, 32


class SyntheticFacts:
    """A seeded source of encoded facts that look like the default bundle's."""

    def __init__(self, config: MemoryConfig, seed: int) -> None:
        self._config = config
        self._random = np.random.default_rng(seed)

    def keys(self, count: int) -> Float16Array:
        """(N, D) float16, unit norm."""
        keys = self._random.standard_normal((count, self._config.key_size), dtype=np.float32)
        unit: Float16Array = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float16)
        return unit

    def encoded(self, count: int) -> EncodedFacts:
        latents = np.zeros((count, self._config.latent_size), dtype=np.int8)
        used = _TOKENS * _CODE_SIZE
        latents[:, :used] = self._random.integers(0, 2, (count, used), dtype=np.int8) * 2 - 1
        ones = np.ones(count, dtype=np.int32)
        return EncodedFacts(self.keys(count), latents, ones, ones * (_TOKENS - 3), ones * 3)


def memory_update_ms(config: MemoryConfig, batch: int = 64, repeats: int = 40) -> float:
    """Milliseconds per fact to add `batch` rows to (Cov, H), median of `repeats`."""
    source = SyntheticFacts(config, seed=1)
    totals = SufficientStatistics.zeros(config.address_size, config.latent_size)
    encoded = source.encoded(batch)
    addresses = Addressing(config).addresses(torch.from_numpy(encoded.keys.astype(np.float32)))
    latents = torch.from_numpy(encoded.latents)
    return median_ms(lambda: totals.write_(addresses, latents), repeats) / batch


def fill(engine: MemoryEngine, tenant: str, source: SyntheticFacts, facts: int, advance: Advance) -> list[Float16Array]:
    """Write `facts` synthetic facts in batches of 250; returns one written key (D,) of each batch."""
    sample = []
    for start in range(0, facts, 250):
        count = min(250, facts - start)
        texts = [FactText(f"{tenant} prompt {start + i}", "target") for i in range(count)]
        encoded = source.encoded(count)
        engine.write(tenant, texts, encoded, _idempotency(f"{tenant}-fill-{start}")).result()
        sample.append(encoded.keys[0])
        advance(count)
    return sample


def scope_read_ms(engine: MemoryEngine, config: MemoryConfig, facts: int, advance: Advance) -> float:
    """Milliseconds of scope search and snap read in a tenant of `facts` facts, median of 200 queries, shards solved."""
    source = SyntheticFacts(config, seed=2)
    engine.create_tenant("scope", Retention.LATENT, _idempotency("scope")).result()
    stored = fill(engine, "scope", source, facts, advance)
    for key in stored:  # solves every shard: a read waits for one solve after a change, which is not measured here
        engine.recall("scope", key[None], ReadMode.SNAP, 0)
    times = [
        _timed(lambda key=key: engine.recall("scope", key[None], ReadMode.SNAP, 0))  # type: ignore[misc]
        for _ in range(5)
        for key in stored
    ]
    return statistics.median(times)


def write_growth_ratio(engine: MemoryEngine, config: MemoryConfig, facts: int, advance: Advance) -> float:
    """Median time of one durable write into a tenant of `facts` facts over that into a tenant of 100, taken in turn."""
    source = SyntheticFacts(config, seed=3)
    for tenant, count in (("small", 100), ("large", facts)):
        engine.create_tenant(tenant, Retention.LATENT, _idempotency(tenant)).result()
        fill(engine, tenant, source, count, advance)
    times: dict[str, list[float]] = {"small": [], "large": []}
    for turn in range(200):
        for tenant, taken in times.items():
            encoded, text = source.encoded(1), FactText(f"{tenant} new {turn}", "target")
            once = _idempotency(f"{tenant}-new-{turn}")
            taken.append(_timed(lambda: engine.write(tenant, [text], encoded, once).result()))  # noqa: B023 - run now
    return statistics.median(times["large"]) / statistics.median(times["small"])


def open_engine(folder: Path, config: MemoryConfig) -> MemoryEngine:
    """An engine on a ledger of its own, for benchmarks only."""

    def fail(error: BaseException) -> None:
        raise error

    return MemoryEngine.open(0, folder, config, EngineSettings(), on_poison=fail)


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of `repeats` calls after three unmeasured ones, in milliseconds."""
    for _ in range(3):
        function()
    return statistics.median(_timed(function) for _ in range(repeats))


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def _idempotency(key: str) -> Idempotency:
    return Idempotency(key=key, request_digest=bytes(32), endpoint="bench")
