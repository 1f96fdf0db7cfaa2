"""Tenants, replies and audit entries as table rows and back, with checksums: pure, engine-independent.

Rows are plain tuples in the column order of `ledger_schema`. Unpacking verifies before it returns, so that a changed
byte is a `RowDamaged` and never a changed value. Facts are in `ledger_facts`, erasures and checkpoints in
`ledger_erasures`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from memory_actor.errors import TenantQuarantined
from memory_actor.types import Idempotency, Retention

GENESIS: Final = bytes(32)
"""What the first audit entry is chained to."""

_UID = re.compile(r"[0-9a-f]{32}")


class RowDamaged(Exception):
    """A stored row is not what was written; the text names the row and holds none of its content."""


class TenantDamaged(TenantQuarantined):
    """Stored rows of one tenant are damaged: changed, undecodable, lost, or without their key. Others can be read.

    Fields `tenant` and `reason`, which holds no content.
    """


@dataclass(frozen=True, slots=True)
class TenantRow:
    """One tenant as stored. `next_seq` is the position the tenant's next fact will take; the first is 1.

    `uid` (32 hex digits) names the tenant's incarnation; `facts` are the live ones.
    """

    name: str
    retention: Retention
    salt: bytes
    created_at: float
    version: int
    next_seq: int
    uid: str
    facts: int


def checksum(values: Sequence[object]) -> bytes:
    """16 bytes that change when any of the values changes its content or its type. Raises RowDamaged for odd types."""
    try:
        packed = msgpack.packb(tuple(values), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise RowDamaged("a row holds a value that no row was written with") from error
    return hashlib.blake2b(packed, digest_size=16).digest()


def with_checksum(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A complete row: `values` and their checksum."""
    return (*values, checksum(values))


def require_checksum(row: Sequence[Any], what: str) -> None:
    """Raises RowDamaged, naming `what`, unless the last value is the checksum of those before it."""
    if checksum(row[:-1]) != row[-1]:
        raise RowDamaged(f"{what} does not match its checksum")


# -- tenants ----------------------------------------------------------------------------------------------------


def pack_tenant(tenant: TenantRow) -> tuple[Any, ...]:
    """One row of the `tenant` table. Raises ValueError for a `uid` that is not 32 hex digits."""
    require_uid(tenant.uid)
    row = (tenant.name, str(tenant.retention), tenant.salt, float(tenant.created_at))
    return with_checksum((*row, int(tenant.version), int(tenant.next_seq), tenant.uid, int(tenant.facts)))


def unpack_tenant(row: Sequence[Any]) -> TenantRow:
    """The tenant of a row. Raises TenantDamaged."""
    try:
        require_checksum(row, "its row")
        return TenantRow(row[0], Retention(row[1]), *row[2:8])
    except RowDamaged as damage:
        raise TenantDamaged(str(row[0]), str(damage)) from damage


def require_uid(uid: str) -> None:
    """Raises ValueError unless `uid` can name an incarnation."""
    if not _UID.fullmatch(uid):
        raise ValueError(f"an incarnation is 32 hex digits, not {uid!r}")


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
    return with_checksum((tenant, key_hash, idempotency.endpoint, hashed_request, reply, float(now)))


def unpack_reply(row: Sequence[Any]) -> tuple[str, bytes, bytes]:
    """Endpoint, request hash and reply of a row. Raises RowDamaged."""
    require_checksum(row, "a stored reply")
    return row[2], row[3], row[4]


# -- audit ------------------------------------------------------------------------------------------------------


def chain(previous: bytes, row: Sequence[object]) -> bytes:
    """The hash of an audit entry: SHA-256 over the hash before it and its own columns."""
    return hashlib.sha256(previous + msgpack.packb(tuple(row))).digest()
