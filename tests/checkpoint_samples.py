"""Snapshots for the tests of checkpoints: made by writing into a memory, hashed by the memory, never by the codec."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from memory_actor.checkpoint import Snapshot
from memory_actor.effects import StoredFact
from memory_actor.types import MemoryConfig
from memory_actor.vault import DataKey
from tests.memory_fixtures import SMALL, Bench, encoded_facts, ids_of, sign_latents, texts_of, unit_keys

UID = "0123456789abcdef" * 2
OLD_KEY = DataKey(7, bytes(range(32)))
NEW_KEY = DataKey(8, bytes(range(32, 64)))


def bench_of(count: int, config: MemoryConfig = SMALL, *, seed: int = 1, batch: int = 5) -> Bench:
    """A tenant with `count` facts of one to three rows each, written in batches."""
    bench = Bench.new(config)
    for start in range(0, count, batch):
        size = min(batch, count - start)
        rows = [1 + (start + i) % 3 for i in range(size)]
        keys = unit_keys(seed + start, size, config)
        latents = sign_latents(seed + start, sum(rows), config)
        bench.write(texts_of(size, start), encoded_facts(keys, latents, rows, config), ids_of(size, start))
    return bench


def versioned(bench: Bench, fact_ids: list[str], version: int) -> None:
    """Note on stored rows which version wrote them, as the ledger does."""
    for fact_id in fact_ids:
        bench.stored[fact_id] = replace(bench.stored[fact_id], version=version)


def snapshot_of(bench: Bench) -> Snapshot:
    snapshot = bench.tenant.snapshot(UID)
    assert snapshot is not None
    return snapshot


def made_fact(number: int, config: MemoryConfig = SMALL, *, rows: int = 1) -> StoredFact:
    """One fact with every field set, from `number` alone."""
    random = np.random.default_rng(number)
    return StoredFact(
        fact_id=f"f_{hashlib.sha256(str(number).encode()).hexdigest()[:26]}",
        seq=number + 1,
        key=unit_keys(number, 1, config)[0],
        addresses=random.integers(-127, 128, (rows, config.address_size)).astype(np.int8),
        latents=random.integers(-128, 128, (rows, config.latent_size)).astype(np.int8),
        prompt_tokens=number % 7,
        target_tokens=number % 5,
        prompt_digest=hashlib.blake2b(str(number).encode(), digest_size=16).digest(),
        created_at=1.5 + number,
        tags=("é", "b")[: number % 3],
        prompt=f"prompt \u2603 {number}",
        target=None if number % 4 == 0 else f"target {number}",
        version=number + 1,
    )


def same_fact(first: StoredFact, second: StoredFact) -> bool:
    """Equal in all that a checkpoint keeps; positions aside."""
    arrays = ("key", "addresses", "latents")
    plain = [replace(one, seq=0, supersedes=None, **dict.fromkeys(arrays)) for one in (first, second)]
    return plain[0] == plain[1] and all(
        getattr(first, name).dtype == getattr(second, name).dtype
        and np.array_equal(getattr(first, name), getattr(second, name))
        for name in arrays
    )
