"""What SQLite's errors mean, in our words: messages of the driver may quote stored text."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from memory_actor.errors import LarimarError, LedgerCorrupt, StateFolderBusy, StateFolderUnusable

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR})
_REASONS = {
    sqlite3.SQLITE_BUSY: "another process holds it",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_CONSTRAINT: "a row contradicts another",
    sqlite3.SQLITE_CORRUPT: "its structure is damaged",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database",
    sqlite3.SQLITE_READONLY: "it is read-only",
}


def reason_of(error: BaseException | None) -> str:
    """What the database says, without a word of what is stored."""
    code = getattr(error, "sqlite_errorcode", -1)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{_REASONS[code & 0xFF]} ({name})" if code & 0xFF in _REASONS else name


def is_damage(error: BaseException | None) -> bool:
    """Whether a failed read means that the file is not what was written (rather than that it cannot be reached)."""
    code = getattr(error, "sqlite_errorcode", None)
    return is_undecodable(error) if code is None else code & 0xFF in _DAMAGE


def is_undecodable(error: BaseException | None) -> bool:
    """Whether stored text is not UTF-8: the driver says so itself, without a code of the database."""
    undecodable = isinstance(error, (sqlite3.OperationalError, UnicodeDecodeError))
    return undecodable and getattr(error, "sqlite_errorcode", None) is None


def opening_error(path: Path, error: BaseException | None) -> LarimarError:
    """The error for a failed open: damaged, in use, or not writable."""
    if is_damage(error):
        return LedgerCorrupt(str(path), f"it cannot be read as a ledger: {reason_of(error)}")
    if getattr(error, "sqlite_errorcode", -1) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StateFolderBusy(
            str(path.parent),
            f"{path.name} is in use by another larimar process",
            "Stop that one ('larimar down') or choose another state folder",
        )
    return unusable(path, reason_of(error))


def unusable(path: Path, reason: str) -> StateFolderUnusable:
    """The error for a file that cannot be written to."""
    cure = "Make the folder and the file readable and writable for this user, or choose another state folder"
    return StateFolderUnusable(str(path.parent), f"{path.name} cannot be opened for writing: {reason}", cure)
