"""`python -m tests.measure_postgres`: commits on SQLite and on PostgreSQL, in turns, as a table for docs/postgresql.md.

Default sizes, facts of one part. In turns, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from memory_actor.effects import StoredFact
from memory_actor.ledger import Ledger
from memory_actor.types import MemoryConfig
from tests import ledger_samples, postgres_ledgers
from tests.ledger_samples import created, make_fact, written
from tests.postgres_server import shared_server

CONFIG = MemoryConfig(fingerprint="5eed")
SINGLES, BATCHES, BATCH = 300, 20, 256


def facts_after(seq: int, count: int, draw: np.random.Generator) -> list[StoredFact]:
    """The next `count` facts, as the token codec makes them: latents of +1 and -1."""
    made = []
    for number in range(seq + 1, seq + count + 1):
        addresses = draw.integers(-128, 128, (1, CONFIG.address_size)).astype(np.int8)
        latents = (2 * draw.integers(0, 2, (1, CONFIG.latent_size)) - 1).astype(np.int8)
        made.append(make_fact(number, draw, CONFIG, addresses=addresses, latents=latents, tags=("tag",)))
    return made


def measure(ledgers: dict[str, Ledger]) -> dict[str, dict[str, float]]:
    """Per engine: milliseconds of a commit of one fact, facts per second of commits of BATCH, facts read per second."""
    draw = np.random.default_rng(1)
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seq = 0
    for ledger in ledgers.values():
        ledger.commit([created("acme")], 1.0)
    for version, size in enumerate([1] * SINGLES + [BATCH] * BATCHES, start=1):
        facts = facts_after(seq, size, draw)
        seq += size
        for name in sorted(ledgers, reverse=bool(version % 2)):
            entry = written("acme", version, *facts, key=f"k{version}")
            started = time.perf_counter()
            ledgers[name].commit([entry], 2.0)
            times[name]["single" if size == 1 else "batch"].append(time.perf_counter() - started)
    for name, ledger in ledgers.items():
        after = 0
        started = time.perf_counter()
        while page := ledger.facts("acme", after_seq=after):
            after = page[-1].seq
        times[name]["read"].append((time.perf_counter() - started) / seq)
    return {
        name: {
            "single, median ms": statistics.median(of["single"]) * 1e3,
            "single, best ms": min(of["single"]) * 1e3,
            "batch, median facts/s": BATCH / statistics.median(of["batch"]),
            "batch, best facts/s": BATCH / min(of["batch"]),
            "read facts/s": 1 / of["read"][0],
        }
        for name, of in times.items()
    }


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ledger_samples.open_ledger(Path(folder) / "ledger" / "m.sqlite", CONFIG) as sqlite,
        postgres_ledgers.open_ledger(shared_server().fresh_url(), CONFIG) as postgresql,
    ):
        found = measure({"sqlite": sqlite, "postgresql": postgresql})
    for figure in found["sqlite"]:
        print(f"{figure:24} sqlite {found['sqlite'][figure]:10.2f}   postgresql {found['postgresql'][figure]:10.2f}")


if __name__ == "__main__":
    main()
