"""The vault as one SQLite file beside its ledger, locked by one process. Opens, checks and creates it; scrubs it.

Everything that can refuse is checked over a read-only connection first, the root key included.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from memory_actor.errors import LedgerCorrupt, LedgerFailed
from memory_actor.ledger_rows import checksum
from memory_actor.sqlite_errors import opening_error, unusable
from memory_actor.vault_lock import fresh_meta, meta_rows, unlock
from memory_actor.vault_schema import APPLICATION_ID, DESTROYED, key_counter, metadata

_SCHEMA: Final = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
)
_META: Final = "SELECT name, value, checksum FROM vault_meta"
DriverError = sqlite3.Error
"""What the driver itself raises, below SQLAlchemy."""

COMPACT_ROWS: Final = 4096
"""Destroyed keys are kept as zeros until there are this many of them, and more than keys alive."""


def open_connection(path: Path, root_keys: Sequence[bytes]) -> sa.Connection:
    """Open or create the vault file and lock it; the connection begins transactions when told to, not by itself.

    Raises StateFolderUnusable (not writable, or another process holds it), LedgerCorrupt, VaultLocked.
    """
    path = path.absolute()
    _ensure_file(path)
    empty = _inspect(path, root_keys)
    driver = _connect(path, empty=empty)
    with ExitStack() as undo:
        undo.callback(driver.close)
        engine = sa.create_engine(
            "sqlite+pysqlite://", creator=lambda: driver, poolclass=StaticPool, hide_parameters=True
        )
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        try:
            connection = undo.enter_context(engine.connect())
            with connection.begin():
                if empty:
                    _create(connection, root_keys[0])
        except sa.exc.DBAPIError as error:
            raise opening_error(path, error.orig) from error
        undo.pop_all()  # nothing failed: the connection stays
    return connection


def inspect_file(path: Path) -> dict[str, Any]:
    """What can be said of a vault file that no process holds: `tenants`, `keys`, `destroyed`. Changes nothing.

    Raises LedgerCorrupt, StateFolderUnusable.
    """
    try:
        with closing(_read_only(path)) as driver:
            _require_ours(driver, path)
            zeros = (DESTROYED, DESTROYED)
            keys, gone = driver.execute("SELECT sum(wrapped <> ?), sum(wrapped = ?) FROM data_key", zeros).fetchone()
            tenants = driver.execute("SELECT count(*) FROM tenant_key WHERE wrapped <> ?", zeros[:1]).fetchone()[0]
            root = driver.execute("SELECT value FROM vault_meta WHERE name = 'root'").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise opening_error(path, error) from error
    return {"root_key": root[0].decode() if root else None, "tenants": tenants, "keys": keys or 0, "zeros": gone or 0}


def _ensure_file(path: Path) -> None:
    """Make the folder (0700) and an empty file (0600) where there is none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise unusable(path, "it is not a file") from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise unusable(path, "permission denied") from None
    except OSError as error:
        raise unusable(path, error.strerror or str(error)) from error


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _read_only(path: Path) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    # Without a write-ahead log the file is complete as it stands; `immutable` then leaves no -shm file behind.
    mode = "ro" if wal.exists() and wal.stat().st_size > 0 else "ro&immutable=1"
    return sqlite3.connect(_uri(path, mode), uri=True, timeout=0)


# -- checks, which change nothing -------------------------------------------------------------------------------


def _inspect(path: Path, root_keys: Sequence[bytes]) -> bool:
    """Whether the vault has still to be created. Raises when it may not be opened."""
    try:
        with closing(_read_only(path)) as driver:
            if not _require_ours(driver, path):
                if not root_keys:
                    unlock(meta_rows(fresh_meta(bytes(32))), root_keys, str(path))  # says that there is no key
                return True
            problem = driver.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if problem != "ok":
                raise LedgerCorrupt(str(path), "its page structure is damaged (PRAGMA integrity_check)")
            unlock(driver.execute(_META).fetchall(), root_keys, str(path))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise opening_error(path, error) from error
    return False


def _require_ours(driver: sqlite3.Connection, path: Path) -> bool:
    """Whether the file holds a vault (True) or nothing yet (False); raises LedgerCorrupt for anything else."""
    application_id = driver.execute("PRAGMA application_id").fetchone()[0]
    schema = driver.execute(_SCHEMA).fetchall()
    pages = driver.execute("PRAGMA page_count").fetchone()[0]
    if pages == 0 and path.stat().st_size > 0:  # SQLite takes what is shorter than a page for an empty database
        raise LedgerCorrupt(str(path), "it was cut short")
    if not schema and (application_id == APPLICATION_ID or pages == 0):
        return False
    if application_id != APPLICATION_ID:
        raise LedgerCorrupt(str(path), f"it is a SQLite database, but not a larimar vault (id {application_id:#x})")
    missing = set(metadata.tables) - {row[1] for row in schema if row[0] == "table"}
    if missing:
        raise LedgerCorrupt(str(path), f"tables are missing: {', '.join(sorted(missing))}")
    stored = driver.execute("SELECT value FROM vault_meta WHERE name = 'schema'").fetchone()
    if stored is None or stored[0] != _schema_digest(schema):
        raise LedgerCorrupt(str(path), "its table definitions were changed")
    return True


def _schema_digest(rows: Iterable[Any]) -> bytes:
    return checksum([list(row) for row in rows])


# -- the file ---------------------------------------------------------------------------------------------------


def _connect(path: Path, *, empty: bool) -> sqlite3.Connection:
    """The one connection: exclusive, write-ahead log, every commit flushed to the disk before it returns."""
    driver = sqlite3.connect(_uri(path, "rw"), uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        driver.execute("PRAGMA locking_mode=EXCLUSIVE")
        driver.execute("PRAGMA secure_delete=ON")
        driver.execute("PRAGMA temp_store=MEMORY")  # nothing of a vault in scratch files
        if empty:
            # Before the switch to the write-ahead log, so that the header says whose file this is from the start.
            driver.execute(f"PRAGMA application_id={APPLICATION_ID}")
        _require_wal(driver, path)
        driver.execute("PRAGMA synchronous=FULL")
        driver.execute("PRAGMA trusted_schema=OFF")
        path.chmod(0o600)
    except sqlite3.Error as error:
        driver.close()
        raise opening_error(path, error) from error
    except BaseException:
        driver.close()
        raise
    return driver


def _require_wal(driver: sqlite3.Connection, path: Path) -> None:
    mode = driver.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise unusable(path, f"the file system allows journal mode {mode!r} only")


def _create(connection: sa.Connection, root_key: bytes) -> None:
    """Tables and lock of a new vault, in the caller's transaction."""
    metadata.create_all(connection)
    connection.execute(sa.insert(key_counter), {"last": 0})
    digest = _schema_digest(connection.exec_driver_sql(_SCHEMA).all())
    _put_meta(connection, fresh_meta(root_key) | {"schema": digest})


def driver_of(connection: sa.Connection) -> sqlite3.Connection:
    """The connection below SQLAlchemy's, for what must not run in a transaction."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError(f"not a SQLite connection: {type(driver).__name__}")
    return driver


def scrub(connection: sa.Connection, location: str, zeros: int | None) -> int:
    """Leave nothing of destroyed keys in the file or its write-ahead log, and use the room of many again.

    A destroyed key was overwritten in its own place, in a page that was never rearranged; what remains is its older
    page images in the write-ahead log, which is emptied here.
    Args: zeros: how many destroyed keys still have a row, None when that has to be counted. Returns: that number now.
    Raises: LedgerFailed, sqlite3.Error, sqlalchemy's errors.
    """
    if zeros is None:
        zeros = connection.exec_driver_sql("SELECT count(*) FROM data_key WHERE wrapped = ?", (DESTROYED,)).scalar_one()
        connection.rollback()  # the driver's way to end a transaction that only read
    if zeros >= COMPACT_ROWS:
        rows = connection.exec_driver_sql("SELECT count(*) FROM data_key").scalar_one()
        connection.rollback()
        if zeros * 2 > rows:
            _compact(connection)
            zeros = 0
    busy, _, _ = driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise LedgerFailed(location, "its write-ahead log could not be emptied")
    return zeros


def _compact(connection: sa.Connection) -> None:
    """Copy the living keys to a table of their own and drop the old one, in one transaction.

    Copied in order of id, a key is written to the end of the last page and never moves; the pages of the dropped
    table are overwritten (secure_delete). Deleting single rows would make SQLite merge neighbouring pages, which
    leaves copies of moved, living keys in the gaps, where a later destruction does not find them.
    """
    with connection.begin():
        table = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'data_key'").scalar_one()
        index = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE name = 'data_key_of_tenant'"
        ).scalar_one()
        connection.exec_driver_sql(table.replace("data_key", "data_key_kept", 1))
        connection.exec_driver_sql(
            "INSERT INTO data_key_kept SELECT * FROM data_key WHERE wrapped <> ? ORDER BY id", (DESTROYED,)
        )
        connection.exec_driver_sql("DROP TABLE data_key")
        connection.exec_driver_sql("ALTER TABLE data_key_kept RENAME TO data_key")
        connection.exec_driver_sql(index)
        _put_meta(connection, {"schema": _schema_digest(connection.exec_driver_sql(_SCHEMA).all())})


def _put_meta(connection: sa.Connection, values: Mapping[str, bytes]) -> None:
    connection.exec_driver_sql(
        "INSERT OR REPLACE INTO vault_meta (name, value, checksum) VALUES (?, ?, ?)", meta_rows(values)
    )
