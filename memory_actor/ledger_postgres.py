"""The clustered engine: one schema of a PostgreSQL database, which any node may take over. Opens, checks, creates it.

There is no file lock to keep a second process out, so commits and take-overs take turns with an advisory lock: a
stale incarnation's commit is either over, and seen by its successor, before the successor reads the epoch, or it finds
the newer epoch and stores nothing. A lost connection is never replaced: the incarnation ends and replay decides.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

import psycopg
import sqlalchemy as sa

from memory_actor.errors import (
    LarimarError,
    LedgerCorrupt,
    LedgerFailed,
    LedgerServerUnusable,
    Unavailable,
    VaultLocked,
)
from memory_actor.ledger_meta import (
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
from memory_actor.ledger_schema import HEAD, meta, metadata
from memory_actor.postgres import (
    Location,
    attach,
    connect,
    ensure_schema,
    is_damage,
    is_undecodable,
    parse,
    reason_of,
    sqlstate_of,
    vacuum,
)
from memory_actor.postgres_structure import structure_of
from memory_actor.types import MemoryConfig
from memory_actor.vault import Vault
from memory_actor.vault_postgres import REWRITE_ROWS_MAX

if TYPE_CHECKING:
    from memory_actor.postgres import Driver

WAIT_S: Final = 30.0
"""How long opening waits for a server that is starting or recovering."""

TAKE_OVER_S: Final = 5.0
"""How long a take-over waits for the transaction of the incarnation before; then it ends that one's session."""

_END_HOLDERS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND ((classid::bigint << 32) | objid::bigint) = %s
"""
_LOCK_NOT_AVAILABLE = "55P03"
_NOT_ALLOWED = "42501"
# Sealed bytes do not compress, and a fact of usual size is read whole: keep it on its page.
#: Without statistics of what is erased one day: ANALYZE keeps samples of a column's values, forgotten ones too.
_STORAGE = (
    (
        "ALTER TABLE fact ALTER words SET STORAGE EXTERNAL, ALTER vectors SET STORAGE EXTERNAL,"
        " ALTER words SET STATISTICS 0, ALTER vectors SET STATISTICS 0, SET (toast_tuple_target = 8160)"
    ),
    "ALTER TABLE fact_tag ALTER tag SET STATISTICS 0",
)
_GROWING = "tenant, fact, fact_tag, idempotency, audit"
_ANALYSED_TURNS = frozenset({4, 16, 64, 256, 1024, 4096})
_NEEDED = ("identity", "salt", "schema")
_REVISION = "alembic_version"


@dataclass(frozen=True, kw_only=True)
class PostgresLedger(OpenedLedger):
    """An open ledger schema. `where` is what maintenance connects to beside the one connection for commits."""

    engine_name = "postgresql"
    truncates_beside_commits = True
    beyond_reach = (
        (
            "PostgreSQL's write-ahead log, replicas, archives and backups, which hold sealed facts and wrapped keys "
            "until they are reused or deleted; what is in them opens only with the root key."
        ),
        (
            "Free space inside PostgreSQL's table files, which may hold sealed facts; in a vault of more than "
            f"{REWRITE_ROWS_MAX:,} keys their wrapped keys too."
        ),
    )

    where: Location
    turns: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def lock_epoch(self) -> int:
        """See `OpenedLedger`. At READ COMMITTED the second statement sees whatever was committed before the lock."""
        if next(self.turns) in _ANALYSED_TURNS:
            # What autovacuum does within a minute: until then plans are those for empty tables, and foreign keys are
            # looked up by the wrong index, at a cost that grows with the tenant.
            self.connection.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) {_GROWING}, {self.where.keys.schema}.data_key")
        self.connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self.where.lock_number})")
        newest: int = self.connection.exec_driver_sql("SELECT max(epoch) FROM actor_epoch").scalar_one()
        return newest

    def truncate_log(self) -> None:
        """Take deleted rows out of the tables, over a session of its own; docs/postgresql.md says what stays where.

        Raises Unavailable when the server gives no further session; DBAPIError.
        """
        try:
            with closing(connect(self.where, wait_s=0)) as driver:
                vacuum(driver, [table.name for table in metadata.sorted_tables])
        except LedgerServerUnusable as error:
            raise Unavailable("the ledger's server", error.args[1]) from error
        except psycopg.Error as error:
            raise sa.exc.DBAPIError("VACUUM", None, error) from error

    def free_bytes(self) -> int | None:
        """None: a server does not say. A full disk there fails the commit, and nothing of it is stored."""
        return None

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
    EMPTY = "no tables yet"
    OLD = "tables of an earlier release"
    CURRENT = "tables of this release"


def open_postgres(
    location: str, config: MemoryConfig, owner: str, now: float, vault: Vault, *, wait_s: float = WAIT_S
) -> OpenedLedger:
    """Open or create the ledger at `location` (see `postgres.parse`) and take the next epoch for `owner`.

    The incarnation before is fenced from then on; a transaction it hangs in is ended after TAKE_OVER_S seconds.
    Raises SettingsInvalid, LedgerServerUnusable, LedgerCorrupt, BundleMismatch, VaultLocked; then nothing was changed.
    """
    where = parse(location)
    with ExitStack() as undo:
        driver = connect(where, wait_s)
        undo.callback(driver.close)
        with _opening(where):
            connection = undo.enter_context(attach(driver))
            with connection.begin():
                _inspect(driver, where, config)  # refuse before anybody is disturbed
            with _alone(connection, where):
                meta_rows = _make_tables(connection, driver, where, config, vault)
                epoch = take_epoch(connection, owner, now)
        opened = PostgresLedger(
            connection=connection, location=str(where), salt=meta_rows["salt"], epoch=epoch, vault=vault, where=where
        )
        undo.pop_all()  # nothing failed: the connection stays
    return opened


def open_vault_postgres(location: str, root_keys: Sequence[bytes], *, wait_s: float = WAIT_S) -> Vault:
    """Open or create the vault of the ledger at `location`, in a schema and over a connection of its own.

    Raises SettingsInvalid, LedgerServerUnusable, LedgerCorrupt, VaultLocked; then nothing was changed.
    """
    ledger = parse(location)
    where = ledger.keys
    with ExitStack() as undo:
        driver = connect(where, wait_s)
        undo.callback(driver.close)
        with _opening(where):
            with driver.transaction():
                if _is_sealed(driver, ledger) and not _has_table(driver, where, "vault_meta"):
                    reason = f"the schema is missing or empty, and ledger {ledger} was sealed with its keys"
                    raise VaultLocked(str(where), reason)
            connection = undo.enter_context(attach(driver))
            vault = Vault.over(connection, str(where), root_keys, schema=where.schema)
        undo.pop_all()
    return vault


def check_postgres(location: str, config: MemoryConfig, *, wait_s: float = 5.0) -> None:
    """Refuse what `open_postgres` would refuse about server and tables; nothing is changed, locked or created.

    Raises SettingsInvalid, LedgerServerUnusable, LedgerCorrupt, BundleMismatch.
    """
    where = parse(location)
    with closing(connect(where, wait_s)) as driver, _opening(where), driver.transaction():
        _inspect(driver, where, config)


def needs_vault(location: str, *, wait_s: float = WAIT_S) -> bool:
    """Whether the ledger was sealed with a vault, which must exist then. False for what is no ledger at all.

    Raises SettingsInvalid, LedgerServerUnusable.
    """
    where = parse(location)
    with closing(connect(where, wait_s)) as driver, _opening(where), driver.transaction():
        return _is_sealed(driver, where)


def vault_exists(location: str, *, wait_s: float = WAIT_S) -> bool:
    """Whether any memory actor of this system has a vault: then a missing root key was lost, and is not made anew.

    Raises SettingsInvalid, LedgerServerUnusable.
    """
    where = parse(location)
    prefix, _, _ = where.schema.rpartition("_")
    query = "SELECT 1 FROM pg_catalog.pg_tables WHERE tablename = 'vault_meta' AND schemaname ~ %s"
    with closing(connect(where, wait_s)) as driver, _opening(where):
        return driver.execute(query, [f"^{prefix or where.schema}(_[0-9]+)?_keys$"]).fetchone() is not None


def count_ledgers(location: str, *, wait_s: float = WAIT_S) -> int:
    """How many ledgers this system has on the server, one per memory actor.

    Raises SettingsInvalid, LedgerServerUnusable.
    """
    where = parse(location)
    prefix, _, _ = where.schema.rpartition("_")
    query = "SELECT count(*) FROM pg_catalog.pg_tables WHERE tablename = 'actor_epoch' AND schemaname ~ %s"
    with closing(connect(where, wait_s)) as driver, _opening(where):
        found = driver.execute(query, [f"^{prefix}_[0-9]+$"]).fetchone()
    return 0 if found is None else int(found[0])


def _is_sealed(driver: Driver, where: Location) -> bool:
    if not _has_table(driver, where, "meta"):
        return False
    query = f"SELECT 1 FROM \"{where.schema}\".meta WHERE name = 'vault'"  # noqa: S608 - a checked name
    return driver.execute(query.encode()).fetchone() is not None


def _has_table(driver: Driver, where: Location, table: str) -> bool:
    return driver.execute("SELECT to_regclass(%s)::text", [f"{where.schema}.{table}"]).fetchone() != (None,)


def _make_tables(
    connection: sa.Connection, driver: Driver, where: Location, config: MemoryConfig, vault: Vault
) -> dict[str, bytes]:
    """Create or migrate what is missing in the caller's transaction; returns the meta rows."""
    stage = _inspect(driver, where, config)  # again: another incarnation may have migrated in between
    if stage is _Stage.EMPTY:
        ensure_schema(connection, where)
    if stage is not _Stage.CURRENT:
        upgrade(connection, vault, str(where))
        put_meta(connection, {"vault": vault.identity.encode()})
        for statement in _STORAGE:
            connection.exec_driver_sql(statement)
    if stage is _Stage.EMPTY:
        put_meta(connection, {"identity": identity_of(config), "salt": secrets.token_bytes(32)})
    if stage is not _Stage.CURRENT:
        put_meta(connection, {"schema": checksum(structure_of(driver, where.schema))})
    meta_rows = get_meta(connection.execute(sa.select(meta)), str(where), (*_NEEDED, "vault"))
    check_vault(meta_rows["vault"], vault, str(where))
    return meta_rows


# -- taking turns ---------------------------------------------------------------------------------------------------


@contextmanager
def _alone(connection: sa.Connection, where: Location) -> Iterator[None]:
    """A transaction during which no incarnation commits or takes over.

    Whoever holds the lock for longer than TAKE_OVER_S (a stopped process, one behind a dead network) is disconnected;
    the server then rolls its transaction back, or has committed it, before the lock is ours.
    """
    for last in (False, True):
        transaction = connection.begin()
        try:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{int(TAKE_OVER_S * 1000)}ms'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({where.lock_number})")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        except sa.exc.DBAPIError as error:
            transaction.rollback()
            if last or sqlstate_of(error.orig) != _LOCK_NOT_AVAILABLE:
                raise
            with connection.begin():
                connection.exec_driver_sql(_END_HOLDERS, (where.lock_number,))
            continue
        with transaction:
            yield
        return


@contextmanager
def _opening(where: Location) -> Iterator[None]:
    """Turns what the server says while a ledger is opened into our errors."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _opening_error(where, error.orig) from error
    except psycopg.Error as error:
        raise _opening_error(where, error) from error
    except LedgerFailed as error:  # the vault's word for what the server refuses, also before it is open
        if isinstance(error.__cause__, sa.exc.DBAPIError):
            raise _opening_error(where, error.__cause__.orig) from error
        raise


def _opening_error(where: Location, error: BaseException | None) -> LarimarError:
    if is_damage(error):
        return LedgerCorrupt(str(where), f"it cannot be read as a ledger: {reason_of(error)}")
    cure = "See the server's log"
    if sqlstate_of(error) == _LOCK_NOT_AVAILABLE:
        cure = "Another session holds its lock and cannot be ended by this role: end it as the role that owns it"
    if sqlstate_of(error) == _NOT_ALLOWED:
        cure = (
            f"Make this role the owner of schema {where.schema} and of all that is in it, or let it create schemas: "
            f"CREATE SCHEMA {where.schema} AUTHORIZATION …, or GRANT CREATE ON DATABASE … (docs/postgresql.md)"
        )
    return LedgerServerUnusable(str(where), reason_of(error), cure)


# -- checks, which change nothing -----------------------------------------------------------------------------------


def _inspect(driver: Driver, where: Location, config: MemoryConfig) -> _Stage:
    """Check tables, revision and identity in the caller's transaction. Raises LedgerCorrupt, BundleMismatch."""
    structure = structure_of(driver, where.schema)
    tables = {row[1] for row in structure if row[0] == "table"}
    if not tables:
        return _Stage.EMPTY
    revisions = driver.execute("SELECT version_num FROM alembic_version").fetchall() if _REVISION in tables else []
    if not revisions:
        raise LedgerCorrupt(str(where), "the schema holds tables, but does not say which release made them")
    stage = _Stage.CURRENT if revisions[0][0] == HEAD else _Stage.OLD
    if stage is _Stage.OLD and revisions[0][0] not in known_revisions():
        raise LedgerCorrupt(str(where), f"its tables have revision {revisions[0][0]!r}, which this release cannot read")
    missing = metadata.tables.keys() - tables
    if stage is _Stage.CURRENT and missing:
        raise LedgerCorrupt(str(where), f"tables are missing: {', '.join(sorted(missing))}")
    stored = get_meta(driver.execute("SELECT name, value, checksum FROM meta").fetchall(), str(where), _NEEDED)
    if stored["schema"] != checksum(structure):
        raise LedgerCorrupt(str(where), "its table definitions were changed")
    check_identity(stored["identity"], config, str(where))
    return stage
