"""The manifest of a checkpoint: what it is, which files it has and their hashes. Published last, so all of it is there.

It is JSON with one spelling (sorted keys, no white space), ends in an HMAC-SHA256 under a key derived from the file
key, and is read back only in that spelling: no byte of it can change unseen.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from memory_actor.checkpoint import FORMATS
from memory_actor.checkpoint_io import StoredFile
from memory_actor.errors import CheckpointDamaged, CheckpointMismatch
from memory_actor.types import CheckpointInfo

SUFFIX: Final = ".manifest.json"
BYTES_MAX: Final = 1 << 16
FILE_BYTES_MAX: Final = 1 << 34  # of one sealed file
_MAC_PURPOSE: Final = b"larimar-checkpoint-manifest-1"
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_TEXTS: Final = ("checkpoint_id", "tenant", "uid", "state_hash")
_NUMBERS: Final = ("version", "facts", "key_id")
_KEYS: Final = {"format", *_TEXTS, *_NUMBERS, "created_at", "files", "mac"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint. `files` are the sealed files by name."""

    format: int
    checkpoint_id: str
    tenant: str
    uid: str
    version: int
    facts: int
    state_hash: str
    key_id: int
    created_at: float
    files: Mapping[str, StoredFile]
    mac: str = ""

    def signed(self, file_key: bytes) -> bytes:
        """The manifest's file."""
        return _spelled(self._plain() | {"mac": self._mac(file_key)})

    def check(self, file_key: bytes) -> None:
        """Raise CheckpointDamaged unless this very manifest was made by who holds the file key."""
        if not hmac.compare_digest(self.mac, self._mac(file_key)):
            raise CheckpointDamaged(self.checkpoint_id, "its manifest was changed or belongs to another key")

    def info(self, location: str, content: bytes) -> CheckpointInfo:
        """As registered in the ledger; `content` is the manifest's file."""
        return CheckpointInfo(
            checkpoint_id=self.checkpoint_id,
            tenant=self.tenant,
            uid=self.uid,
            location=location,
            version=self.version,
            facts=self.facts,
            bytes=len(content) + sum(file.size for file in self.files.values()),
            state_hash=self.state_hash,
            key_id=self.key_id,
            manifest_sha256=hashlib.sha256(content).hexdigest(),
            created_at=self.created_at,
        )

    def _plain(self) -> dict[str, Any]:
        files = {name: {"sha256": file.sha256, "bytes": file.size} for name, file in self.files.items()}
        fields = ("format", *_TEXTS, *_NUMBERS, "created_at")
        return {name: getattr(self, name) for name in fields} | {"files": files}

    def _mac(self, file_key: bytes) -> str:
        key = hmac.digest(file_key, _MAC_PURPOSE, "sha256")
        return hmac.new(key, _spelled(self._plain()), "sha256").hexdigest()


def parse(content: bytes, checkpoint: str) -> Manifest:
    """The manifest in a file, not authenticated yet: see `Manifest.check`. `checkpoint` names it in errors.

    Raises CheckpointDamaged; CheckpointMismatch for a format that this release does not know.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        raise CheckpointDamaged(checkpoint, "its manifest is not JSON") from None
    number = entries.get("format") if isinstance(entries, dict) else None
    if not _is_count(number):
        raise CheckpointDamaged(checkpoint, "its manifest names no format")
    if number not in FORMATS:
        raise CheckpointMismatch(checkpoint, "its format", number, " or ".join(map(str, FORMATS)))
    if not _well_formed(entries) or _spelled(entries) != content:
        raise CheckpointDamaged(checkpoint, "its manifest does not have the entries it should")
    files = {name: StoredFile(file["sha256"], file["bytes"]) for name, file in entries.pop("files").items()}
    return Manifest(**entries, files=files)


def _well_formed(entries: dict[str, Any]) -> bool:
    return (
        entries.keys() == _KEYS
        and all(isinstance(entries[name], str) for name in (*_TEXTS, "mac"))
        and all(_is_count(entries[name]) for name in _NUMBERS)
        and isinstance(entries["created_at"], float)
        and math.isfinite(entries["created_at"])
        and isinstance(entries["files"], dict)
        and all(_is_file(file) for file in entries["files"].values())
    )


def _is_file(file: Any) -> bool:
    return (
        isinstance(file, dict)
        and file.keys() == {"sha256", "bytes"}
        and isinstance(file["sha256"], str)
        and _HEX.fullmatch(file["sha256"]) is not None
        and _is_count(file["bytes"])
        and file["bytes"] <= FILE_BYTES_MAX
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _spelled(entries: dict[str, Any]) -> bytes:
    return json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
