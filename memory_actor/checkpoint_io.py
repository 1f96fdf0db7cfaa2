"""What every kind of checkpoint storage returns and raises."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias


class Oversized(Exception):
    """A file is larger than what is asked for; nothing of it was read."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What was written: SHA-256 (hex) and length in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes | Iterable[bytes]) -> StoredFile:
        digest, size = hashlib.sha256(), 0
        for chunk in [content] if isinstance(content, bytes) else content:
            digest.update(chunk)
            size += len(chunk)
        return cls(digest.hexdigest(), size)


# For the signatures of classes that have a method `list`.
Paths: TypeAlias = list[str]
Files: TypeAlias = list[StoredFile]
