"""Facts, tenants, replies and audit entries as table rows and back, with checksums: pure, engine-independent.

Rows are plain tuples in the column order of `ledger_schema`. Unpacking verifies before it returns, so that a changed
byte is a `RowDamaged` and never a changed fact.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

from memory_actor.effects import StoredFact
from memory_actor.types import FactRecord, Idempotency, MemoryConfig, Retention

GENESIS: Final = bytes(32)
"""What the first audit entry is chained to."""

_WORDS = 12  # fact columns before `words_checksum`


class RowDamaged(Exception):
    """A stored row is not what was written; the text names the row and holds none of its content."""


@dataclass(frozen=True, slots=True)
class TenantRow:
    """One tenant as stored. `next_seq` is the position the tenant's next fact will take; the first is 1."""

    name: str
    retention: Retention
    salt: bytes
    created_at: float
    version: int
    next_seq: int


def checksum(values: Sequence[object]) -> bytes:
    """16 bytes that change when any of the values changes its content or its type."""
    return hashlib.blake2b(msgpack.packb(tuple(values), use_bin_type=True), digest_size=16).digest()


# -- facts ------------------------------------------------------------------------------------------------------


def pack_fact(tenant: str, fact: StoredFact, config: MemoryConfig) -> tuple[Any, ...]:
    """One row of the `fact` table. Raises ValueError when the fact's arrays do not have the shapes of `config`."""
    parts = fact.latents.shape[0]
    shapes = (fact.key.shape, fact.addresses.shape, fact.latents.shape)
    expected = ((config.key_size,), (parts, config.address_size), (parts, config.latent_size))
    if shapes != expected or parts < 1:
        raise ValueError(f"fact {fact.seq} of tenant {tenant!r} has shapes {shapes}, expected {expected}")
    if fact.addresses.dtype != np.int8 or fact.latents.dtype != np.int8:
        raise ValueError(f"addresses and latents must be int8, got {fact.addresses.dtype} and {fact.latents.dtype}")
    words = (
        tenant,
        int(fact.seq),
        fact.fact_id,
        parts,
        int(fact.prompt_tokens),
        int(fact.target_tokens),
        fact.prompt_digest,
        float(fact.created_at),
        json.dumps(fact.tags, ensure_ascii=False, separators=(",", ":")) if fact.tags else "[]",
        fact.supersedes,
        fact.prompt,
        fact.target,
    )
    key = fact.key.astype("<f2", copy=False).tobytes()
    addresses = fact.addresses.tobytes()
    latents = _pack_latents(fact.latents.tobytes(), config.latent_size)
    row = (*words, checksum(words), key, addresses, latents)
    return (*row, checksum(row))


def unpack_fact(row: Sequence[Any], config: MemoryConfig) -> StoredFact:
    """The fact of a complete row; its arrays are read-only views of the row's bytes. Raises RowDamaged."""
    if checksum(row[:-1]) != row[-1]:
        raise RowDamaged(f"fact {row[1]} of tenant {row[0]!r} does not match its checksum")
    _, seq, fact_id, parts, prompt_tokens, target_tokens, digest, created_at, tags, supersedes, prompt, target = row[
        :_WORDS
    ]
    key, addresses, latents = row[_WORDS + 1 : -1]
    return StoredFact(
        fact_id=fact_id,
        seq=seq,
        key=np.frombuffer(key, "<f2"),
        addresses=np.frombuffer(addresses, np.int8).reshape(parts, config.address_size),
        latents=np.frombuffer(_unpack_latents(latents, parts, config.latent_size), np.int8).reshape(parts, -1),
        prompt_tokens=prompt_tokens,
        target_tokens=target_tokens,
        prompt_digest=digest,
        created_at=created_at,
        tags=_unpack_tags(tags),
        supersedes=supersedes,
        prompt=prompt,
        target=target,
    )


def unpack_record(row: Sequence[Any]) -> FactRecord:
    """The listing of a row that has at least the columns up to `words_checksum`. Raises RowDamaged."""
    if checksum(row[:_WORDS]) != row[_WORDS]:
        raise RowDamaged(f"fact {row[1]} of tenant {row[0]!r} does not match its checksum")
    return FactRecord(
        fact_id=row[2],
        seq=row[1],
        created_at=row[7],
        rows=row[3],
        tags=_unpack_tags(row[8]),
        supersedes=row[9],
        prompt=row[10],
        target=row[11],
    )


def _unpack_tags(tags: str) -> tuple[str, ...]:
    return () if tags == "[]" else tuple(json.loads(tags))


def _pack_latents(dense: bytes, size: int) -> bytes:
    """Rows of `size` bytes as their trimmed lengths (uint32, little-endian), then the rows less trailing zeros."""
    rows = [dense[start : start + size].rstrip(b"\0") for start in range(0, len(dense), size)]
    lengths = np.array([len(row) for row in rows], "<u4")
    return lengths.tobytes() + b"".join(rows)


def _unpack_latents(packed: bytes, parts: int, size: int) -> bytes:
    """The inverse of `_pack_latents`: parts * size bytes."""
    if parts == 1:
        return packed[4:].ljust(size, b"\0")
    dense = []
    start = 4 * parts
    for length in np.frombuffer(packed, "<u4", count=parts).tolist():
        dense.append(packed[start : start + length].ljust(size, b"\0"))
        start += length
    return b"".join(dense)


# -- tenants ----------------------------------------------------------------------------------------------------


def pack_tenant(tenant: TenantRow) -> tuple[Any, ...]:
    """One row of the `tenant` table."""
    created_at, version, next_seq = float(tenant.created_at), int(tenant.version), int(tenant.next_seq)
    row = (tenant.name, str(tenant.retention), tenant.salt, created_at, version, next_seq)
    return (*row, checksum(row))


def unpack_tenant(row: Sequence[Any]) -> TenantRow:
    """The tenant of a row. Raises RowDamaged."""
    if checksum(row[:6]) != row[6]:
        raise RowDamaged(f"tenant {row[0]!r} does not match its checksum")
    return TenantRow(row[0], Retention(row[1]), *row[2:6])


# -- idempotency ------------------------------------------------------------------------------------------------


def idempotency_key_hash(salt: bytes, tenant: str, key: str) -> bytes:
    """How a caller's key is stored: keyed, since callers put e-mail addresses and the like in them."""
    return hmac.digest(salt, msgpack.packb(("key", tenant, key)), "sha256")


def request_hash(salt: bytes, request_digest: bytes) -> bytes:
    """How a request's digest is stored: keyed, so that nobody can test guesses of a short request against it."""
    return hmac.digest(salt, msgpack.packb(("request", request_digest)), "sha256")


def pack_reply(salt: bytes, tenant: str, idempotency: Idempotency, reply: bytes, now: float) -> tuple[Any, ...]:
    """One row of the `idempotency` table."""
    key_hash = idempotency_key_hash(salt, tenant, idempotency.key)
    hashed_request = request_hash(salt, idempotency.request_digest)
    row = (tenant, key_hash, idempotency.endpoint, hashed_request, reply, float(now))
    return (*row, checksum(row))


def unpack_reply(row: Sequence[Any]) -> tuple[str, bytes, bytes]:
    """Endpoint, request hash and reply of a row. Raises RowDamaged."""
    if checksum(row[:6]) != row[6]:
        raise RowDamaged(f"a stored reply of tenant {row[0]!r} does not match its checksum")
    return row[2], row[3], row[4]


# -- audit ------------------------------------------------------------------------------------------------------


def chain(previous: bytes, row: Sequence[object]) -> bytes:
    """The hash of an audit entry: SHA-256 over the hash before it and its own columns."""
    return hashlib.sha256(previous + msgpack.packb(tuple(row))).digest()
