"""Benchmarks of what is durable, in process: commits of the ledger, waking, checkpoints, restores.

The ledger is measured alone, facts made beforehand: sealing, two transactions with their fsyncs, nothing else.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from jobs.bench_memory import SyntheticFacts
from memory_actor.addressing import Addressing
from memory_actor.effects import FactsWritten, StoredFact, TenantCreated
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.ledger import Ledger, LedgerEntry
from memory_actor.storage import open_storage
from memory_actor.types import FactText, Idempotency, MemoryConfig, Retention

WAKE_FACTS = 512
_TENANT = "bench"
_SINGLES = 300
_BATCH = 256
_BATCHES = 16
_ROUNDS = 30

T = TypeVar("T")


def commit_p50_ms(state_dir: Path, config: MemoryConfig) -> float:
    """Milliseconds of one durable commit of one fact, keys and idempotency reply included; median of 300."""
    with _ledger(state_dir, config) as ledger:
        entries = _Entries(config, seed=11)
        ledger.commit([entries.begin()], time.time())
        times = []
        for _ in range(_SINGLES):
            entry = entries.write(1)
            started = time.perf_counter()
            ledger.commit([entry], time.time())
            times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def commit_batch_facts_per_s(state_dir: Path, config: MemoryConfig) -> float:
    """Facts per second in durable commits of 256; median of 16 commits after a warm one."""
    with _ledger(state_dir, config) as ledger:
        entries = _Entries(config, seed=12)
        ledger.commit([entries.begin()], time.time())
        rates = []
        for _ in range(_BATCHES + 1):
            entry = entries.write(_BATCH)
            started = time.perf_counter()
            ledger.commit([entry], time.time())
            rates.append(_BATCH / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def tenant_figures(state_dir: Path, config: MemoryConfig) -> dict[str, float]:
    """A tenant of 512 facts: milliseconds until it has woken, megabytes per second into and facts per second out of
    a checkpoint. Each the median of 30, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = _engine(state_dir, config)
    try:
        _fill(engine, config)
        wakes, puts, restores = [], [], []
        for turn in range(_ROUNDS):
            seconds, info = _timed(lambda: engine.checkpoint(_TENANT, "local"))
            puts.append(info.bytes / 1e6 / seconds)
            grant = engine.grant(_TENANT, info.checkpoint_id)
            name = f"restored-{turn}"
            once = _idempotency(name)
            seconds, reply = _timed(lambda: engine.restore(name, grant, None, False, once).result())  # noqa: B023 - run now
            restores.append(reply.facts / seconds)
            engine.delete_tenant(name, _idempotency(f"delete-{name}")).result()
            engine.sleep(_TENANT)
            seconds, _ = _timed(lambda: engine.wake(_TENANT))
            wakes.append(seconds * 1e3)
    finally:
        engine.close()
        torch.set_num_threads(threads)
    return {
        "wake_p50_ms": statistics.median(wakes),
        "checkpoint_mb_per_s": statistics.median(puts),
        "restore_facts_per_s": statistics.median(restores),
    }


class _Entries:
    """Ready-made entries of one tenant, in order."""

    def __init__(self, config: MemoryConfig, seed: int) -> None:
        self._config, self._source = config, SyntheticFacts(config, seed)
        self._addressing = Addressing(config)
        self._seqs = itertools.count(1)
        self._versions = itertools.count(1)

    def begin(self) -> LedgerEntry:
        return LedgerEntry(TenantCreated(_TENANT, Retention.TEXT, bytes(32), 0.0, "b" * 32), None, b"")

    def write(self, count: int) -> LedgerEntry:
        version = next(self._versions)
        facts = tuple(self._facts(count, version))
        return LedgerEntry(FactsWritten(_TENANT, version, facts), _idempotency(f"write-{version}"), bytes(100))

    def _facts(self, count: int, version: int) -> Iterator[StoredFact]:
        encoded = self._source.encoded(count)
        addresses = self._addressing.addresses(torch.from_numpy(encoded.keys.astype(np.float32))).numpy()
        for i in range(count):
            seq = next(self._seqs)
            yield StoredFact(
                fact_id=f"f_{seq:026d}",
                seq=seq,
                key=encoded.keys[i],
                addresses=addresses[i : i + 1],
                latents=encoded.latents[i : i + 1],
                prompt_tokens=9,
                target_tokens=3,
                prompt_digest=seq.to_bytes(16, "big"),
                created_at=time.time(),
                prompt=f"prompt number {seq} of the benchmark",
                target="its target",
                version=version,
            )


def _fill(engine: MemoryEngine, config: MemoryConfig) -> None:
    engine.create_tenant(_TENANT, Retention.TEXT, _idempotency("create")).result()
    texts = [FactText(f"prompt {number}", "target") for number in range(WAKE_FACTS)]
    encoded = SyntheticFacts(config, seed=13).encoded(WAKE_FACTS)
    engine.write(_TENANT, texts, encoded, _idempotency("fill")).result()


def _ledger(state_dir: Path, config: MemoryConfig) -> Ledger:
    return open_storage(state_dir, 0, None, config, "bench", time.time())


def _engine(state_dir: Path, config: MemoryConfig) -> MemoryEngine:
    def fail(error: BaseException) -> None:
        raise error

    return MemoryEngine.open(0, state_dir, config, EngineSettings(), on_poison=fail)


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def _idempotency(key: str) -> Idempotency:
    return Idempotency(key=key, request_digest=bytes(32), endpoint="bench")
