"""A ledger of the first release, opened by this one: the golden file of the tests, which only a checkout has."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from memory_actor.directory import ledger_path
from memory_actor.ledger import Ledger
from memory_actor.storage import open_storage
from memory_actor.types import MemoryConfig

CONFIG = MemoryConfig(fingerprint="5eed", key_size=16, address_size=24, latent_size=40)
_GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "ledger_0001"


def old_state(state_dir: Path) -> None:
    """A state folder as the first release left it. Raises FileNotFoundError without a checkout's tests."""
    target = ledger_path(state_dir, 0)
    target.parent.mkdir(parents=True)
    shutil.copyfile(_GOLDEN.with_suffix(".sqlite"), target)


def migrating(state_dir: Path) -> None:
    """Open it, which migrates it, and close it again."""
    _open(state_dir).close()


def migrated(state_dir: Path) -> bool:
    """Whether every fact of the old ledger is there, word for word and number for number, and nothing else."""
    golden: dict[str, Any] = json.loads(_GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    with _open(state_dir) as ledger:
        if {row.name for row in ledger.tenants()} != golden.keys():
            return False
        return all(_facts(ledger, tenant) == _expected(truth) for tenant, truth in golden.items())


def _open(state_dir: Path) -> Ledger:
    return open_storage(state_dir, 0, None, CONFIG, "campaign", time.time())


def _facts(ledger: Ledger, tenant: str) -> list[tuple[object, ...]]:
    return [
        (
            fact.fact_id,
            fact.seq,
            fact.key.tobytes().hex(),
            fact.addresses.tobytes().hex(),
            fact.latents.tobytes().hex(),
            list(fact.tags),
            fact.supersedes,
            fact.prompt,
            fact.target,
        )
        for fact in ledger.facts(tenant)
    ]


def _expected(truth: dict[str, Any]) -> list[tuple[object, ...]]:
    names = ("fact_id", "seq", "key", "addresses", "latents", "tags", "supersedes", "prompt", "target")
    return [tuple(fact[name] for name in names) for fact in truth["facts"]]
