"""Facts and a small memory configuration for tests of the ledger. Everything is drawn from the given generator."""

from __future__ import annotations

import hashlib
import itertools
import string
from pathlib import Path

import numpy as np

from memory_actor.effects import Erasure, FactsForgotten, FactsWritten, StoredFact, TenantCreated
from memory_actor.ledger import Ledger, LedgerEntry
from memory_actor.types import Idempotency, MemoryConfig, Retention
from memory_actor.vault import Vault

CONFIG = MemoryConfig(fingerprint="5eed", key_size=16, address_size=24, latent_size=40)
ROOT_KEY = bytes(range(32))
_INCARNATIONS = itertools.count(1)


def open_ledger(path: Path, config: MemoryConfig = CONFIG, owner: str = "test", now: float = 1.0) -> Ledger:
    """Open or create the ledger file `path`; its vault is `vault-NAME` in the folder `keys` beside that of `path`."""
    vault = Vault.open_sqlite(vault_of(path), [ROOT_KEY])
    try:
        return Ledger.open(path, config, owner, now, vault)
    except BaseException:
        vault.close()
        raise


def vault_of(path: Path) -> Path:
    return path.parent.parent / "keys" / f"vault-{path.name}"


def make_fact(seq: int, draw: np.random.Generator, config: MemoryConfig = CONFIG, **changes: object) -> StoredFact:
    """A fact of 1 to 4 parts whose latents end in zeros, as a codec's do; `changes` replace single fields."""
    parts = int(draw.integers(1, 5))
    latents = draw.integers(-128, 128, (parts, config.latent_size)).astype(np.int8)
    for row in latents:
        row[int(draw.integers(0, config.latent_size + 1)) :] = 0
    letters = list(string.ascii_letters + "äß漢字🙂\0\n'\"")
    fields: dict[str, object] = {
        "fact_id": f"fact-{seq:06d}",
        "seq": seq,
        "key": draw.standard_normal(config.key_size).astype(np.float16),
        "addresses": draw.integers(-128, 128, (parts, config.address_size)).astype(np.int8),
        "latents": latents,
        "prompt_tokens": int(draw.integers(1, 20)),
        "target_tokens": int(draw.integers(0, 5)),
        "prompt_digest": draw.bytes(16),
        "created_at": 1_700_000_000.0 + seq + float(draw.random()),
        "tags": tuple(sorted({f"tag-{int(i)}" for i in draw.integers(0, 4, int(draw.integers(0, 4)))})),
        "supersedes": None if draw.random() < 0.5 else f"fact-{int(draw.integers(0, 99)):06d}",
        "prompt": "".join(draw.choice(letters, 30)),
        "target": None if draw.random() < 0.3 else "".join(draw.choice(letters, 12)),
    }
    return StoredFact(**(fields | changes))  # type: ignore[arg-type]


def plain(fact: StoredFact) -> tuple[object, ...]:
    """Every field of a fact in a form that compares exactly: arrays as dtype, shape and bytes."""
    arrays = ((a.dtype.str, a.shape, a.tobytes()) for a in (fact.key, fact.addresses, fact.latents))
    names = ("fact_id", "seq", "prompt_tokens", "target_tokens", "prompt_digest", "created_at")
    words = ("tags", "supersedes", "prompt", "target")
    return (*arrays, *(getattr(fact, name) for name in names + words))


def created(tenant: str, retention: Retention = Retention.TEXT, now: float = 1.0) -> LedgerEntry:
    """A tenant begins, each time as an incarnation that no other call names."""
    uid = hashlib.md5(f"{tenant} {next(_INCARNATIONS)}".encode(), usedforsecurity=False).hexdigest()
    return LedgerEntry(TenantCreated(tenant, retention, tenant.encode().ljust(32, b"."), now, uid), None, b"")


def written(
    tenant: str, version: int, *facts: StoredFact, forgotten: tuple[str, ...] = (), key: str | None = None
) -> LedgerEntry:
    """A write; with `key` it carries an idempotency key and the reply `b"reply to KEY"`."""
    given = None if key is None else idempotency(key)
    return LedgerEntry(FactsWritten(tenant, version, facts, forgotten), given, b"reply to %s" % (key or "").encode())


def forgotten(tenant: str, version: int, *fact_ids: str, receipt: str | None = None) -> LedgerEntry:
    """A forget; with `receipt` it leaves an erasure of that name, due at 100."""
    erasure = None if receipt is None else Erasure(receipt, 100.0, f"before {receipt}", f"after {receipt}")
    return LedgerEntry(FactsForgotten(tenant, version, fact_ids, erasure), None, b"")


def idempotency(key: str, body: bytes = b"body", endpoint: str = "POST /facts") -> Idempotency:
    return Idempotency(key, body.ljust(32, b"."), endpoint)
