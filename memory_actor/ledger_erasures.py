"""Erasures and checkpoints as table rows and back, with checksums: pure, engine-independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgpack

from memory_actor.ledger_rows import require_checksum, require_uid, with_checksum
from memory_actor.types import CheckpointInfo

ErasureKind = Literal["forget", "supersede", "restore", "tenant"]


@dataclass(frozen=True, slots=True)
class ErasureRow:
    """One erasure as stored. `fact_ids` ended and `key_ids` are to be destroyed; both are empty once it is done.

    After a restore in place `key_ids` are more than `fact_ids`: the facts that stay have new keys. `kind` "tenant"
    ends the incarnation `uid` with all its keys.
    """

    position: int
    receipt_id: str
    tenant: str
    uid: str
    kind: ErasureKind
    fact_ids: tuple[str, ...]
    key_ids: tuple[int, ...]
    requested_at: float
    erase_by: float
    state_hash_before: str
    state_hash_after: str
    facts: int
    done_at: float | None = None
    receipt: str | None = None


def pack_erasure(erasure: ErasureRow) -> tuple[Any, ...]:
    """One row of the `erase_task` table."""
    require_uid(erasure.uid)
    return with_checksum(
        (
            erasure.position,
            erasure.receipt_id,
            erasure.tenant,
            erasure.uid,
            erasure.kind,
            msgpack.packb((erasure.fact_ids, erasure.key_ids)),
            float(erasure.requested_at),
            float(erasure.erase_by),
            erasure.state_hash_before,
            erasure.state_hash_after,
            erasure.facts,
            erasure.done_at,
            erasure.receipt,
        )
    )


def unpack_erasure(row: Sequence[Any]) -> ErasureRow:
    """The erasure of a row. Raises RowDamaged."""
    require_checksum(row, f"erasure {row[0]}")
    fact_ids, key_ids = msgpack.unpackb(row[5])
    values = [*row[:5], tuple(fact_ids), tuple(key_ids), *row[6:13]]
    return ErasureRow(*values)


def pack_checkpoint(info: CheckpointInfo) -> tuple[Any, ...]:
    """One row of the `checkpoint` table."""
    require_uid(info.uid)
    return with_checksum(
        (
            info.checkpoint_id,
            info.tenant,
            info.uid,
            info.location,
            info.version,
            info.facts,
            info.bytes,
            info.state_hash,
            info.key_id,
            info.manifest_sha256,
            float(info.created_at),
        )
    )


def unpack_checkpoint(row: Sequence[Any]) -> CheckpointInfo:
    """The checkpoint of a row. Raises RowDamaged."""
    require_checksum(row, f"a registered checkpoint of tenant {row[1]!r}")
    return CheckpointInfo(*row[:11])
