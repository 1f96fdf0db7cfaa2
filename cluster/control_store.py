"""The control database: a small SQLite file that gateway replicas and the command line have open side by side."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import sqlalchemy as sa

from memory_actor.errors import StateFolderUnusable, Unavailable

APPLICATION_ID: Final = 0x4C4D4354
"""'LMCT' in the file's header."""

FORMAT: Final = 1
"""`PRAGMA user_version`. A later format is refused, never guessed at."""

_BUSY_S = 10.0  # writers wait this long for each other; each holds the lock for one small transaction
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR})
_DAMAGE_CURE = (
    "Restore a copy of it, or move it away: then a new admin key is made and tenants need new keys; facts are not "
    "affected"
)
_ACCESS_CURE = "Make folder and file readable and writable for this user, or choose another state folder"


class ControlStore:
    """Transactions on the tables of `metadata` in one file. Open as often as you like; safe between threads."""

    def __init__(self, path: Path, metadata: sa.MetaData) -> None:
        """Open the file, creating it (0600) with its tables where there is none. Raises StateFolderUnusable."""
        self._path = path.absolute()
        try:
            if not self._path.exists():
                self._create(metadata)
            self._path.chmod(0o600)
            with closing(self._connect()) as driver:
                self._check(driver, set(metadata.tables))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._refusal(error) from error
        except OSError as error:
            raise self._unusable(error.strerror or str(error), _ACCESS_CURE) from error
        self._engine = sa.create_engine(
            "sqlite+pysqlite://", creator=self._connect, poolclass=sa.QueuePool, hide_parameters=True
        )
        self._writing = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        sa.event.listen(self._engine, "begin", _begin)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One read transaction. Raises Unavailable."""
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[sa.Connection]:
        """One write transaction, alone among all processes; durable on leaving. Raises Unavailable, nothing stored."""
        with self._transaction(self._writing) as connection:
            yield connection

    def close(self) -> None:
        """Release the file; may be called twice."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise Unavailable("the key store", getattr(error.orig, "sqlite_errorname", "it fails")) from error

    def _connect(self, path: Path | None = None) -> sqlite3.Connection:
        uri = f"file:{quote(str(path or self._path))}?mode=rw"
        driver = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        driver.execute("PRAGMA synchronous=FULL")
        driver.execute("PRAGMA trusted_schema=OFF")
        return driver

    def _create(self, metadata: sa.MetaData) -> None:
        """Make the file under another name and link it into place: others see a complete database or none."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}.new")
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with closing(self._connect(new)) as driver:
                driver.execute(f"PRAGMA application_id={APPLICATION_ID}")
                driver.execute(f"PRAGMA user_version={FORMAT}")
                driver.execute("PRAGMA journal_mode=WAL")
                engine = sa.create_engine("sqlite+pysqlite://", creator=lambda: driver, poolclass=sa.StaticPool)
                metadata.create_all(engine)
            os.link(new, self._path)
        except FileExistsError:
            return  # another process was first
        finally:
            new.unlink()

    def _check(self, driver: sqlite3.Connection, tables: set[str]) -> None:
        application_id = driver.execute("PRAGMA application_id").fetchone()[0]
        found = {row[0] for row in driver.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if application_id != APPLICATION_ID or not tables <= found:
            raise self._unusable("it is not a larimar control database")
        if driver.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
            raise self._unusable("it was written by a newer larimar")
        if driver.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise self._unusable("it is damaged")

    def _refusal(self, error: Exception) -> StateFolderUnusable:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code & 0xFF in _DAMAGE:
            return self._unusable(f"it is damaged ({name})")
        return self._unusable(f"it cannot be opened ({name})", _ACCESS_CURE)

    def _unusable(self, reason: str, cure: str = _DAMAGE_CURE) -> StateFolderUnusable:
        return StateFolderUnusable(str(self._path.parent), f"{self._path.name}: {reason}", cure)


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
