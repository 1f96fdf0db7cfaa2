"""The embedded engine: one SQLite file, one connection, one process. Opens, checks, creates and migrates it.

Everything that can refuse is checked over a read-only connection first; the file is not written to before all checks
have passed.
"""

from __future__ import annotations

import json
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

from memory_actor.errors import BundleMismatch, LarimarError, LedgerCorrupt, StateFolderUnusable
from memory_actor.ledger_rows import checksum
from memory_actor.ledger_schema import APPLICATION_ID, HEAD, actor_epoch, meta, metadata
from memory_actor.types import MemoryConfig

if TYPE_CHECKING:
    from alembic.config import Config

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
_IDENTITY = ("fingerprint", "key_size", "address_size", "latent_size", "address_scale", "latent_scale")
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY type, name"


@dataclass(frozen=True, slots=True)
class OpenedLedger:
    """A ledger database that is checked, migrated, locked and fenced: what `Ledger` works on."""

    connection: sa.Connection
    location: str
    salt: bytes
    epoch: int

    def close(self) -> None:
        """Release the connection and with it the lock."""
        self.connection.close()
        self.connection.engine.dispose()


class _Stage(Enum):
    EMPTY = "no tables yet"  # new, or its creation was interrupted
    OLD = "tables of an earlier release"
    CURRENT = "tables of this release"


def open_sqlite(path: Path, config: MemoryConfig, owner: str, now: float) -> OpenedLedger:
    """Open or create the ledger file `path` and take the next epoch for `owner`.

    The salt for hashing idempotency keys is drawn here, once, when the file is created.
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
                opened = _take_over(connection, path, stage, config, owner=owner, now=now)
        except sa.exc.DBAPIError as error:
            raise opening_error(path, error.orig) from error
        undo.pop_all()  # nothing failed: the connection stays
    return opened


def check_sqlite(path: Path, config: MemoryConfig) -> None:
    """Refuse what `open_sqlite` would refuse about an existing ledger file; nothing is changed, locked or created.

    Raises LedgerCorrupt, BundleMismatch, StateFolderUnusable.
    """
    if path.exists():
        _inspect(path.absolute(), config)


def _take_over(
    connection: sa.Connection, path: Path, stage: _Stage, config: MemoryConfig, *, owner: str, now: float
) -> OpenedLedger:
    """Create or migrate what is missing and take the next epoch, all in the caller's transaction."""
    if stage is not _Stage.CURRENT:
        _upgrade(connection)
    if stage is _Stage.EMPTY:
        _put_meta(connection, {"identity": _identity(config), "salt": secrets.token_bytes(32)})
    if stage is not _Stage.CURRENT:
        _put_meta(connection, {"schema": _schema_digest(connection.exec_driver_sql(_SCHEMA))})
    salt = _get_meta(connection.execute(sa.select(meta)), str(path))["salt"]
    epoch = (connection.execute(sa.select(sa.func.max(actor_epoch.c.epoch))).scalar() or 0) + 1
    connection.execute(sa.insert(actor_epoch), {"epoch": epoch, "owner": owner, "started_at": float(now)})
    return OpenedLedger(connection, str(path), salt, epoch)


# -- errors -----------------------------------------------------------------------------------------------------


def reason_of(error: BaseException | None) -> str:
    """What the database says, in our words: messages of the driver may quote stored text."""
    code = getattr(error, "sqlite_errorcode", -1)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{_REASONS[code & 0xFF]} ({name})" if code & 0xFF in _REASONS else name


def is_damage(error: BaseException | None) -> bool:
    """Whether a failed read means that the file is not what was written (rather than that it cannot be reached)."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by the driver itself, for text that is not UTF-8
        return isinstance(error, (sqlite3.OperationalError, UnicodeDecodeError))
    return code & 0xFF in _DAMAGE


def opening_error(path: Path, error: BaseException | None) -> LarimarError:
    """The error for a failed open: damaged, in use, or not writable."""
    if is_damage(error):
        return LedgerCorrupt(str(path), f"it cannot be read as a ledger: {reason_of(error)}")
    if getattr(error, "sqlite_errorcode", -1) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StateFolderUnusable(
            str(path.parent),
            f"{path.name} is in use by another larimar process",
            "Stop that one ('larimar down') or choose another state folder",
        )
    return _unusable(path, reason_of(error))


def _unusable(path: Path, reason: str) -> StateFolderUnusable:
    cure = "Make the folder and the file readable and writable for this user, or choose another state folder"
    return StateFolderUnusable(str(path.parent), f"{path.name} cannot be opened for writing: {reason}", cure)


# -- checks, which change nothing -------------------------------------------------------------------------------


def _ensure_file(path: Path) -> None:
    """Make the folder (0700) and an empty file (0600) where there is none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise _unusable(path, "it is not a file") from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise _unusable(path, "permission denied") from None
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def _inspect(path: Path, config: MemoryConfig) -> _Stage:
    """Check header, tables, page structure, indexes, revision and identity. Reads the whole file, about 5 µs a fact."""
    wal = path.with_name(path.name + "-wal")
    # Without a write-ahead log the file is complete as it stands; `immutable` then leaves no -shm file behind. It
    # also takes no lock, which is fine: the real connection takes it before anything is written.
    mode = "ro" if wal.exists() and wal.stat().st_size > 0 else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(_uri(path, mode), uri=True, timeout=0)) as driver:
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
    if stage is _Stage.OLD and revisions[0][0] not in _known_revisions():
        raise LedgerCorrupt(str(path), f"its tables have revision {revisions[0][0]!r}, which this release cannot read")
    if stage is _Stage.CURRENT and missing:
        raise LedgerCorrupt(str(path), f"tables are missing: {', '.join(sorted(missing))}")
    problem = driver.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        raise LedgerCorrupt(str(path), "its page structure is damaged (PRAGMA integrity_check)")
    stored = _get_meta(driver.execute("SELECT name, value, checksum FROM meta"), str(path))
    if stored["schema"] != _schema_digest(schema):
        raise LedgerCorrupt(str(path), "its table definitions were changed")
    if stored["identity"] != _identity(config):
        raise BundleMismatch(str(path), _describe(stored["identity"]), _describe(_identity(config)))
    return stage


# -- connection -------------------------------------------------------------------------------------------------


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"


def _connect(path: Path, stage: _Stage) -> sqlite3.Connection:
    """The one connection: exclusive, write-ahead log, every commit flushed to the disk before it returns."""
    driver = sqlite3.connect(_uri(path, "rw"), uri=True, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        driver.execute("PRAGMA locking_mode=EXCLUSIVE")
        driver.execute("PRAGMA secure_delete=ON")
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
        raise _unusable(path, f"the file system allows journal mode {mode!r} only")


# -- migrations (Alembic costs 0.3 s to import, so only when there is something to migrate) -------------------------


def _alembic_config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above

    return {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - see above

    config = _alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


# -- meta -------------------------------------------------------------------------------------------------------


def _identity(config: MemoryConfig) -> bytes:
    return json.dumps({name: getattr(config, name) for name in _IDENTITY}).encode()


def _describe(identity: bytes) -> str:
    values = json.loads(identity)
    sizes = f"D {values['key_size']}, K {values['address_size']}, C {values['latent_size']}"
    return f"{values['fingerprint']} ({sizes}, scales {values['address_scale']} and {values['latent_scale']})"


def _schema_digest(rows: Iterable[Any]) -> bytes:
    return checksum([list(row) for row in rows])


def _put_meta(connection: sa.Connection, values: dict[str, bytes]) -> None:
    connection.execute(sa.delete(meta).where(meta.c.name.in_(values)))
    rows = [{"name": name, "value": value, "checksum": checksum((name, value))} for name, value in values.items()]
    connection.execute(sa.insert(meta), rows)


def _get_meta(rows: Iterable[Any], location: str) -> dict[str, bytes]:
    """All meta rows by name. Raises LedgerCorrupt when one is missing or changed."""
    values = {name: value for name, value, stored in rows if checksum((name, value)) == stored}
    if not {"identity", "salt", "schema"} <= values.keys():
        raise LedgerCorrupt(location, "its identity is damaged")
    return values
