"""The embedded engine: one SQLite file, one connection, one process. Opens, checks, creates and migrates it.

Everything that can refuse is checked over a read-only connection first; the file is not written to before all checks
have passed.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from memory_actor.crash_points import reached
from memory_actor.errors import LedgerCorrupt, LedgerFailed
from memory_actor.ledger_meta import (
    UNSWEPT,
    check_identity,
    check_vault,
    get_meta,
    identity_of,
    known_revisions,
    put_meta,
    take_epoch,
    upgrade,
)
from memory_actor.ledger_opened import OpenedLedger
from memory_actor.ledger_rows import checksum
from memory_actor.ledger_schema import APPLICATION_ID, HEAD, meta, metadata
from memory_actor.sqlite_errors import is_damage, is_undecodable, opening_error, reason_of, unusable
from memory_actor.types import MemoryConfig

if TYPE_CHECKING:
    from memory_actor.vault import Vault

_NEEDED = ("identity", "salt", "schema")
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY type, name"


@dataclass(frozen=True, kw_only=True)
class SqliteLedger(OpenedLedger):
    """An open ledger file. `driver` is the connection under SQLAlchemy's, for what must not be in a transaction."""

    engine_name = "sqlite"

    path: Path
    driver: sqlite3.Connection

    def lock_epoch(self) -> int:
        """See `OpenedLedger`; the lock is that of the file, held since it was opened."""
        newest: int = self.connection.exec_driver_sql("SELECT max(epoch) FROM actor_epoch").scalar_one()
        return newest

    def truncate_log(self) -> None:
        """Move the write-ahead log into the file, where deleted rows are overwritten, and empty it."""
        try:
            busy, *_ = self.driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise LedgerFailed(self.location, reason_of(error)) from error
        if busy:
            raise LedgerFailed(self.location, "its write-ahead log could not be emptied")

    def free_bytes(self) -> int | None:
        """Free space for this user where ledger and vault are, the smaller of the two."""
        spaces = [os.statvfs(folder) for folder in {self.path.parent, Path(self.vault.location).parent}]
        return min(space.f_bavail * space.f_frsize for space in spaces)

    def is_damage(self, error: BaseException | None) -> bool:
        """See `OpenedLedger`."""
        return is_damage(error)

    def is_undecodable(self, error: BaseException | None) -> bool:
        """See `OpenedLedger`."""
        return is_undecodable(error)

    def reason_of(self, error: BaseException | None) -> str:
        """See `OpenedLedger`."""
        return reason_of(error)


class _Stage(Enum):
    EMPTY = "no tables yet"  # new, or its creation was interrupted
    OLD = "tables of an earlier release"
    CURRENT = "tables of this release"


def open_sqlite(path: Path, config: MemoryConfig, owner: str, now: float, vault: Vault) -> OpenedLedger:
    """Open or create the ledger file `path` and take the next epoch for `owner`.

    The salt for hashing idempotency keys is drawn here, once, when the file is created. A file of an earlier release
    is migrated, its facts sealed with keys from `vault`; after an interruption that begins again.
    Raises StateFolderUnusable (not writable, or another process holds it), LedgerCorrupt, BundleMismatch.
    """
    path = path.absolute()
    _ensure_file(path)
    stage = _inspect(path, config)
    driver = _connect(path, stage)
    with ExitStack() as undo:
        undo.callback(driver.close)
        engine = sa.create_engine(
            "sqlite+pysqlite://", creator=lambda: driver, poolclass=StaticPool, hide_parameters=True
        )
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        try:
            connection = undo.enter_context(engine.connect())
            with connection.begin():
                meta_rows = _make_tables(connection, path, stage, config, vault)
            if UNSWEPT in meta_rows:
                _sweep(connection, driver)
            with connection.begin():
                epoch = take_epoch(connection, owner, now)
        except sa.exc.DBAPIError as error:
            raise opening_error(path, error.orig) from error
        except sqlite3.Error as error:
            raise opening_error(path, error) from error
        except OSError as error:
            raise unusable(path, error.strerror or str(error)) from error
        opened = SqliteLedger(
            connection=connection,
            location=str(path),
            salt=meta_rows["salt"],
            epoch=epoch,
            vault=vault,
            path=path,
            driver=driver,
        )
        undo.pop_all()  # nothing failed: the connection stays
    return opened


def check_sqlite(path: Path, config: MemoryConfig) -> None:
    """Refuse what `open_sqlite` would refuse about an existing ledger file; nothing is changed, locked or created.

    Raises LedgerCorrupt, BundleMismatch, StateFolderUnusable.
    """
    if path.exists():
        _inspect(path.absolute(), config)


def needs_vault(path: Path) -> bool:
    """Whether a ledger file was sealed with a vault, which must exist then. False for what is no ledger at all."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(_uri(path, _reading_mode(path)), uri=True, timeout=0)) as driver:
            return driver.execute("SELECT 1 FROM meta WHERE name = 'vault'").fetchone() is not None
    except (sqlite3.Error, UnicodeDecodeError):
        return False  # opening the ledger will say what is wrong with it


def _make_tables(
    connection: sa.Connection, path: Path, stage: _Stage, config: MemoryConfig, vault: Vault
) -> dict[str, bytes]:
    """Create or migrate what is missing in the caller's transaction; returns the meta rows."""
    if stage is not _Stage.CURRENT:
        upgrade(connection, vault, str(path))
        put_meta(connection, {"vault": vault.identity.encode()})
        put_meta(connection, {"schema": _schema_digest(connection.exec_driver_sql(_SCHEMA))})
    if stage is _Stage.EMPTY:
        put_meta(connection, {"identity": identity_of(config), "salt": secrets.token_bytes(32)})
    if stage is _Stage.OLD:
        put_meta(connection, {UNSWEPT: b""})
    meta_rows = get_meta(connection.execute(sa.select(meta)), str(path), (*_NEEDED, "vault"))
    check_vault(meta_rows["vault"], vault, str(path))
    return meta_rows


def _sweep(connection: sa.Connection, driver: sqlite3.Connection) -> None:
    """Rid file and log of what the tables of an earlier release held; then take down the note that it is still due."""
    reached("migrate.mid_copy")
    driver.execute("VACUUM")
    driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with connection.begin():
        connection.execute(sa.delete(meta).where(meta.c.name == UNSWEPT))


# -- checks, which change nothing -------------------------------------------------------------------------------


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


def _inspect(path: Path, config: MemoryConfig) -> _Stage:
    """Check header, tables, page structure, indexes, revision and identity. Reads the whole file, about 5 µs a fact."""
    try:
        with closing(sqlite3.connect(_uri(path, _reading_mode(path)), uri=True, timeout=0)) as driver:
            return _inspect_tables(driver, path, config)
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the driver fails to decode messages that quote damaged text
        raise opening_error(path, error) from error


def _inspect_tables(driver: sqlite3.Connection, path: Path, config: MemoryConfig) -> _Stage:
    application_id = driver.execute("PRAGMA application_id").fetchone()[0]
    schema = driver.execute(_SCHEMA).fetchall()
    if not schema and (application_id == APPLICATION_ID or driver.execute("PRAGMA page_count").fetchone()[0] == 0):
        return _Stage.EMPTY
    if application_id != APPLICATION_ID:
        raise LedgerCorrupt(str(path), f"it is a SQLite database, but not a larimar ledger (id {application_id:#x})")
    missing = {*metadata.tables, "alembic_version"} - {row[1] for row in schema if row[0] == "table"}
    revisions = [] if "alembic_version" in missing else driver.execute("SELECT * FROM alembic_version").fetchall()
    if not revisions:
        raise LedgerCorrupt(str(path), "it does not say which release made its tables")
    stage = _Stage.CURRENT if revisions[0][0] == HEAD else _Stage.OLD
    if stage is _Stage.OLD and revisions[0][0] not in known_revisions():
        raise LedgerCorrupt(str(path), f"its tables have revision {revisions[0][0]!r}, which this release cannot read")
    if stage is _Stage.CURRENT and missing:
        raise LedgerCorrupt(str(path), f"tables are missing: {', '.join(sorted(missing))}")
    problem = driver.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        raise LedgerCorrupt(str(path), "its page structure is damaged (PRAGMA integrity_check)")
    stored = get_meta(driver.execute("SELECT name, value, checksum FROM meta"), str(path), _NEEDED)
    if stored["schema"] != _schema_digest(schema):
        raise LedgerCorrupt(str(path), "its table definitions were changed")
    check_identity(stored["identity"], config, str(path))
    return stage


# -- connection -------------------------------------------------------------------------------------------------


def _reading_mode(path: Path) -> str:
    """How to read without changing anything.

    Without a write-ahead log the file is complete as it stands; `immutable` then leaves no -shm file behind. It also
    takes no lock, which is fine: the real connection takes it before anything is written.
    """
    wal = path.with_name(path.name + "-wal")
    return "ro" if wal.exists() and wal.stat().st_size > 0 else "ro&immutable=1"


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _connect(path: Path, stage: _Stage) -> sqlite3.Connection:
    """The one connection: exclusive, write-ahead log, every commit flushed to the disk before it returns."""
    driver = sqlite3.connect(_uri(path, "rw"), uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        driver.execute("PRAGMA locking_mode=EXCLUSIVE")
        driver.execute("PRAGMA secure_delete=ON")
        driver.execute("PRAGMA temp_store=MEMORY")  # a migration sorts rows that are not sealed yet
        if stage is _Stage.EMPTY:
            # Before the switch to the write-ahead log, so that the header says whose file this is from the start.
            driver.execute(f"PRAGMA application_id={APPLICATION_ID}")
        _require_wal(driver, path)
        driver.execute("PRAGMA synchronous=FULL")
        driver.execute("PRAGMA foreign_keys=ON")
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


def _schema_digest(rows: Iterable[Any]) -> bytes:
    return checksum([list(row) for row in rows])
