"""Which root key a vault is sealed under: drawn up once, checked at every opening, replaced by a rotation.

Rows of `vault_meta`: `format` (of the tables), `identity` (16 random bytes that name the vault), `root` (the root
key's fingerprint), `check` (the identity, sealed under that root key); each with a checksum.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from memory_actor.errors import LedgerCorrupt, VaultLocked
from memory_actor.ledger_rows import checksum
from memory_actor.sealing import SealBroken, seal, unseal

FORMAT: Final = b"1"
_CHECK: Final = b"larimar vault check"


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A vault's lock, opened. `check` is as stored: every rotation changes it."""

    root_key: bytes = field(repr=False)
    identity: bytes
    check: bytes = field(repr=False)


def fingerprint(root_key: bytes) -> str:
    """16 hex digits that tell root keys apart and say nothing about them (the key has 256 random bits)."""
    return hashlib.sha256(b"larimar root key\0" + root_key).hexdigest()[:16]


def fresh_meta(root_key: bytes, identity: bytes | None = None) -> dict[str, bytes]:
    """The rows of a vault sealed under `root_key`; a new vault when no identity is given."""
    identity = identity or secrets.token_bytes(16)
    return {
        "format": FORMAT,
        "identity": identity,
        "root": fingerprint(root_key).encode(),
        "check": seal(root_key, identity, _CHECK),
    }


def meta_rows(values: Mapping[str, bytes]) -> list[tuple[str, bytes, bytes]]:
    """As stored: name, value, checksum."""
    return [(name, value, checksum((name, value))) for name, value in values.items()]


def unlock(rows: Iterable[Any], root_keys: Sequence[bytes], location: str) -> Unlocked:
    """Find the one of `root_keys` that the vault is sealed under.

    Raises: LedgerCorrupt when the rows are damaged or of another release, VaultLocked when no key fits.
    """
    values = {name: bytes(value) for name, value, stored in rows if checksum((name, bytes(value))) == bytes(stored)}
    if values.get("format", FORMAT) != FORMAT:
        raise LedgerCorrupt(location, "its key tables are of a later release, which this one cannot read")
    if not {"format", "identity", "root", "check"} <= values.keys():
        raise LedgerCorrupt(location, "the row that says which root key it is sealed under is damaged")
    if not root_keys:
        raise VaultLocked(location, "the root key file is missing")
    sealed_under = values["root"].decode("ascii", "replace")
    for root_key in root_keys:
        if not hmac.compare_digest(fingerprint(root_key), sealed_under):
            continue
        try:
            if unseal(root_key, values["check"], _CHECK) == values["identity"]:
                return Unlocked(root_key, values["identity"], values["check"])
        except SealBroken:
            pass  # not this vault's check value, though the fingerprint is right: damage, reported below
        raise LedgerCorrupt(location, "its check value does not open under the root key it names")
    given = ", ".join(fingerprint(one) for one in root_keys)
    raise VaultLocked(location, f"it is sealed under root key {sealed_under}, the root key file holds {given}")
