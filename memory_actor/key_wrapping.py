"""How a key is wrapped by the one above it: sealed, for the one place it may stand in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from memory_actor.sealing import KEY_BYTES, NONCE_BYTES, Cipher, SealBroken

_DRAWN: Final = KEY_BYTES + NONCE_BYTES


class KeyDamaged(SealBroken):
    """A key of one tenant cannot be used: its row was changed, or its tenant's key is not there (any more)."""

    def __init__(self, uid: str, reason: str) -> None:
        super().__init__(uid, reason)
        self.uid, self.reason = uid, reason

    def __str__(self) -> str:
        return f"keys of tenant {self.uid}: {self.reason}"


@dataclass(frozen=True, slots=True)
class DataKey:
    """One data key, unwrapped: 32 bytes, and the number under which the vault returns it."""

    id: int
    key: bytes = field(repr=False)


def wrap_fresh(
    owners: Sequence[tuple[str, int, int, Cipher]], ids: Sequence[int]
) -> tuple[list[list[DataKey]], list[tuple[int, int, bytes]]]:
    """Fresh keys for each (uid, count, number, cipher), and their rows of `data_key`."""
    drawn = os.urandom(len(ids) * _DRAWN)  # one call: each costs a microsecond
    issued: list[list[DataKey]] = []
    rows: list[tuple[int, int, bytes]] = []
    at = 0
    for uid, count, number, cipher in owners:
        prefix = data_prefix(uid)
        keys = []
        for key_id in ids[at : at + count]:
            start = len(rows) * _DRAWN
            key, nonce = drawn[start : start + KEY_BYTES], drawn[start + KEY_BYTES : start + _DRAWN]
            rows.append((key_id, number, cipher.seal(key, prefix + key_id.to_bytes(8, "big"), nonce)))
            keys.append(DataKey(key_id, key))
        at += count
        issued.append(keys)
    return issued, rows


def tenant_context(uid: str) -> bytes:
    return b"larimar tenant key\0" + uid.encode()


def data_prefix(uid: str) -> bytes:
    """Context of a wrapped data key, less its id (8 bytes, big-endian)."""
    return b"larimar data key\0" + uid.encode() + b"\0"


def opened(cipher: Cipher, wrapped: bytes, context: bytes, uid: str) -> bytes:
    try:
        return cipher.unseal(wrapped, context)
    except SealBroken:
        raise KeyDamaged(uid, "a stored key is not what was written") from None
