"""Makes tests/golden/checkpoint-<format>: a small checkpoint as this release writes it, and what must be read from it.

Run once for a new format, `python -m tests.golden.make_checkpoint`, and commit the folder. It refuses to replace one:
golden files are never made again. Everything in them is invented; the key in `expected.json` opens nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from memory_actor.checkpoint import FORMAT, Snapshot, to_arrow
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpoints import write_checkpoint
from memory_actor.effects import StoredFact
from memory_actor.state_hash import state_hash
from memory_actor.tenant import sums
from memory_actor.types import MemoryConfig, Retention
from memory_actor.vault import DataKey

CONFIG = MemoryConfig(fingerprint="901d", key_size=6, address_size=8, latent_size=10, rows_per_fact_max=3)
HERE = Path(__file__).parent


def fact(number: int) -> StoredFact:
    random = np.random.default_rng(number)
    rows = 1 + number % 3
    return StoredFact(
        fact_id=f"f_{hashlib.sha256(bytes([number])).hexdigest()[:26]}",
        seq=10 * number + 3,
        key=random.standard_normal(6).astype(np.float16),
        addresses=random.integers(-127, 128, (rows, 8)).astype(np.int8),
        latents=random.integers(-128, 128, (rows, 10)).astype(np.int8),
        prompt_tokens=number,
        target_tokens=number + 1,
        prompt_digest=hashlib.blake2b(bytes([number]), digest_size=16).digest(),
        created_at=1_700_000_000.25 + number,
        tags=("golden", "größe")[: number % 3],
        prompt=f"The golden prompt number {number} is",
        target=None if number == 2 else f"target \u2603 {number}",
        version=number + 1,
    )


def main() -> None:
    folder = HERE / f"checkpoint-{FORMAT}"
    if (folder / "expected.json").exists():
        raise SystemExit(f"{folder} exists; golden files are never made again")
    facts = tuple(sorted((fact(number) for number in range(5)), key=lambda one: one.fact_id))
    total = sums(CONFIG, facts)
    snapshot = Snapshot(
        tenant="golden",
        uid="c0ffee00" * 4,
        retention=Retention.TEXT,
        salt=bytes(range(32)),
        created_at=1_600_000_000.5,
        version=9,
        state_hash=state_hash(CONFIG, total, (one.fact_id for one in facts)),
        sums=total,
        facts=facts,
    )
    key = DataKey(3, hashlib.sha256(b"golden").digest())
    info = write_checkpoint(CheckpointStore("golden", folder / "store"), snapshot, key, CONFIG, 1_700_000_100.0)
    (folder / "plain").mkdir()
    for name, content in to_arrow(snapshot, CONFIG).items():
        (folder / "plain" / name).write_bytes(content)
    expected = {
        "config": asdict(CONFIG),
        "file_key": key.key.hex(),
        "info": asdict(info),
        "retention": str(snapshot.retention),
        "salt": snapshot.salt.hex(),
        "created_at": snapshot.created_at,
        "cov": total.cov.long().tolist(),
        "cross": total.cross.long().tolist(),
        "facts": [described(one, rank) for rank, one in ranked(facts)],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def ranked(facts: tuple[StoredFact, ...]) -> list[tuple[int, StoredFact]]:
    return list(enumerate(sorted(facts, key=lambda one: one.seq), start=1))


def described(one: StoredFact, rank: int) -> dict[str, object]:
    """A fact in plain JSON."""
    arrays = {name: getattr(one, name).tolist() for name in ("key", "addresses", "latents")}
    plain = {name: getattr(one, name) for name in ("fact_id", "prompt_tokens", "target_tokens", "created_at")}
    words = {"tags": list(one.tags), "prompt": one.prompt, "target": one.target, "version": one.version}
    return {**plain, **words, **arrays, "prompt_digest": one.prompt_digest.hex(), "rank": rank}


if __name__ == "__main__":
    main()
