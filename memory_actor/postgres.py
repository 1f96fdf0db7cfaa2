"""A PostgreSQL session the ledger can trust: where it is, how it is opened, what the server must promise.

The password comes from LARIMAR_LEDGER_PASSWORD or in libpq's own ways (a password file, a service file), never from
the URL, so that no settings file, message or process list shows it.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format
from sqlalchemy.pool import StaticPool

from memory_actor.errors import LedgerServerUnusable, SettingsInvalid

Driver: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

PASSWORD_VARIABLE: Final = "LARIMAR_LEDGER_PASSWORD"  # noqa: S105 - its name, not its value
VERSION_MIN: Final = 140_000
DEFAULT_PREFIX: Final = "larimar"

_SCHEMA_NAME = re.compile(r"[a-z][a-z0-9_]{0,50}\Z")  # `_keys` and quotes to spare; names are cut at 63 bytes
_SECRETS = ("password", "sslpassword")
_RETRY_S = 0.1

_DEFAULTS = {
    # A peer that is gone without a word is noticed within a minute, from both sides (see _PINNED for the other one).
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",  # ms
    "target_session_attrs": "read-write",  # of several hosts, the primary
}
_PINNED = {
    "bytea_output": "hex",
    # Every statement of ours, and every foreign key, has its index. A plan made while a table was small would be kept
    # for the life of the session, and read the whole table for each row written. Hence no costs that call for JIT.
    "enable_seqscan": "off",
    "jit": "off",
    "extra_float_digits": "1",  # less would round the times that the checksums are taken over
    "idle_in_transaction_session_timeout": "60s",  # a stopped process does not keep its successor waiting for ever
    "lock_timeout": "0",
    "statement_timeout": "0",
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_REQUIRED = {
    "fsync": ("on", "what is committed would not be on the disk"),
    "full_page_writes": ("on", "a crash could leave half-written pages"),
    "zero_damaged_pages": ("off", "damage would read as absence"),
    "ignore_checksum_failure": ("off", "damage would be read"),
    "session_replication_role": ("origin", "rows would outlive the tenant they belong to"),
}
# What the server says about refusals that no waiting changes; where it speaks another language, we wait in vain.
_FINAL = re.compile(
    r"password|pg_hba\.conf|does not exist|no such (user|role)|not permitted to log in|certificate|SSL|GSSAPI|"
    r"could not translate host name|definition of service|invalid (port|connection|sslmode)|unsupported"
)
_ROW_DAMAGE = frozenset({"XX001", "XX002", "22021"})  # data_corrupted, index_corrupted, text that is not UTF-8
_DAMAGE = frozenset({"42P01", "42703"})  # a table or a column is not there
_REASONS = {  # by SQLSTATE or its class
    "08": "the connection was lost",
    "23": "a row contradicts another",
    "25006": "the server is read-only",
    "40": "the transaction was rolled back",
    "42501": "permission denied",
    "42": "its tables are not as expected",
    "53100": "the server's disk is full",
    "53": "the server is out of resources",
    "57P": "the server ended the connection",
    "57": "the server was told to cancel",
    "58": "the server's disk reports an error",
    "XX": "stored pages are damaged",
}


@dataclass(frozen=True, slots=True)
class Location:
    """One schema of one database. `text` is the URL it was parsed from, without any secret."""

    text: str
    schema: str
    options: dict[str, str] = field(repr=False)  # libpq's

    @property
    def keys(self) -> Location:
        """Where the vault of this ledger is: a schema of its own in the same database."""
        return replace(self, schema=f"{self.schema}_keys")

    @property
    def lock_number(self) -> int:
        """The advisory lock that commits and take-overs of this ledger take turns with; 64 bits, signed."""
        digest = hashlib.blake2b(f"larimar ledger {self.schema}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)

    def __str__(self) -> str:
        return f"{self.text} (schema {self.schema})"


def is_postgres(location: str) -> bool:
    """Whether a ledger location is one of ours."""
    return location.partition("://")[0].partition("+")[0] in {"postgresql", "postgres"}


def location_of(url: str, index: int) -> str:
    """The location of memory actor `index`'s ledger under the URL of the settings, as `parse` reads it.

    Its schema is `larimar_NN`; `?schema=PREFIX` in the URL puts another prefix, so that several systems can share a
    database. Raises SettingsInvalid.
    """
    base, given = _split(url)
    return _join(base, {**given, "schema": f"{given.get('schema', DEFAULT_PREFIX)}_{index:02d}"})


def parse(location: str) -> Location:
    """Read a location: a libpq URL plus `schema=NAME` in its query. Raises SettingsInvalid; never quotes a secret."""
    base, given = _split(location)
    schema = given.pop("schema", f"{DEFAULT_PREFIX}_00")
    if not _SCHEMA_NAME.match(schema):
        raise SettingsInvalid("ledger.url", f"schema {schema!r} must match {_SCHEMA_NAME.pattern[:-2]}")
    text = _join(base, given)
    try:
        options = {name: str(value) for name, value in conninfo_to_dict(text).items() if value is not None}
    except psycopg.ProgrammingError:  # its message may quote the URL, and with it what is in a wrong place
        problem = "libpq cannot read it; write postgresql://USER@HOST:PORT/DATABASE"
        raise SettingsInvalid("ledger.url", problem) from None
    if secret := next((name for name in _SECRETS if name in options), None):
        cure = f"set the environment variable {PASSWORD_VARIABLE}, or use a password file (~/.pgpass) or service"
        raise SettingsInvalid("ledger.url", f"it holds a {secret}, which settings must not; {cure}")
    if "dbname" not in options and "service" not in options:
        raise SettingsInvalid("ledger.url", "it names no database; write postgresql://USER@HOST:PORT/DATABASE")
    return Location(text, schema, options)


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL up to its query, for the driver we have, and the query's values by name."""
    base, _, query = url.partition("?")
    scheme, _, rest = base.partition("://")
    _, _, driver = scheme.partition("+")
    if not is_postgres(url) or driver not in {"", "psycopg"}:
        raise SettingsInvalid("ledger.url", f"{scheme!r} is not supported; use postgresql://")
    return f"postgresql://{rest}", dict(parse_qsl(query, keep_blank_values=True))


def _join(base: str, query: dict[str, str]) -> str:
    return f"{base}?{urlencode(query)}" if query else base


# -- connecting -----------------------------------------------------------------------------------------------------


class _BinaryCursor(psycopg.Cursor[tuple[Any, ...]]):
    """Rows come in PostgreSQL's binary form: blobs are not spelled out in hexadecimal on their way."""

    def __init__(self, connection: Driver, **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = Format.BINARY


def connect(location: Location, wait_s: float) -> Driver:
    """A session on the schema, which need not exist, at READ COMMITTED, with the settings our promises rest on.

    A server that is starting, recovering or out of connections is waited for up to `wait_s` seconds.
    Raises LedgerServerUnusable: not reachable, access refused, or a server that does not keep what it confirms.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            driver = _connect_once(location)
        except psycopg.OperationalError as error:
            reason = _first_line(error)
            if _FINAL.search(reason) or time.monotonic() > deadline:
                raise _not_reachable(location, reason) from error
            time.sleep(_RETRY_S)
        else:
            return driver


def _connect_once(location: Location) -> Driver:
    # Temporary tables last: they must not stand before ours. What is set here outranks defaults of role and database.
    pinned = {**_PINNED, "search_path": f"{location.schema},pg_temp"}
    options = {**_DEFAULTS, "application_name": f"larimar {location.schema}", **location.options}
    options["options"] = " ".join([options.get("options", ""), *(f"-c {name}={pinned[name]}" for name in pinned)])
    if secret := os.environ.get(PASSWORD_VARIABLE):
        options["password"] = secret
    driver = psycopg.connect(**options, client_encoding="UTF8", cursor_factory=_BinaryCursor)  # type: ignore[arg-type]
    try:
        driver.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # the fence is read after the lock, in its light
        _require(driver, location)
    except BaseException:
        driver.close()
        raise
    return driver


def _require(driver: Driver, location: Location) -> None:
    """Raises LedgerServerUnusable when the server does not keep what it confirms, or cannot keep our rows."""
    names = [*_REQUIRED, "server_encoding", "server_version", "server_version_num", "synchronous_commit"]
    with driver.transaction():
        rows = driver.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [names]).fetchall()
        found = {str(name): str(value) for name, value in rows}
        reads_only = driver.execute("SHOW transaction_read_only").fetchall() == [("on",)]
        if int(found["server_version_num"]) < VERSION_MIN:
            version = found["server_version"]
            cure = "Upgrade the server"
            raise LedgerServerUnusable(str(location), f"it runs PostgreSQL {version}; 14 is the oldest supported", cure)
        if reads_only:
            reason = "it is read-only: a standby, or default_transaction_read_only is on"
            raise LedgerServerUnusable(str(location), reason, "Name the primary server in ledger.url")
        if found["server_encoding"] != "UTF8":
            cure = "Create another one with: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            raise LedgerServerUnusable(str(location), f"the database's encoding is {found['server_encoding']}", cure)
        for name, (needed, why) in _REQUIRED.items():
            if found[name] != needed:
                raise _setting_refused(location, name, found[name], needed, why)
        if found["synchronous_commit"] == "off":
            raise _setting_refused(location, "synchronous_commit", "off", "on", "acknowledged facts could be lost")
        # As it is now, for as long as this session lives: a later change of the defaults cannot reach it.
        driver.execute("SELECT set_config('synchronous_commit', %s, false)", [found["synchronous_commit"]])


def _setting_refused(location: Location, name: str, found: str, needed: str, why: str) -> LedgerServerUnusable:
    cure = f"Set {name} = {needed} for the server, the database and the role (ALTER SYSTEM/DATABASE/ROLE … SET)"
    return LedgerServerUnusable(str(location), f"{name} is {found}: {why}", cure)


def attach(driver: Driver) -> sa.Connection:
    """SQLAlchemy's view of the session, with positional parameters. It never connects by itself: lost is lost."""
    spare = [driver]

    def take() -> Driver:
        if not spare:
            raise psycopg.OperationalError("the connection was lost")
        return spare.pop()

    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=take,
        poolclass=StaticPool,
        paramstyle="format",
        use_native_hstore=False,  # spares a query at the start
        hide_parameters=True,
    )
    return engine.connect()


# -- schemas and errors ---------------------------------------------------------------------------------------------


def ensure_schema(connection: sa.Connection, location: Location) -> None:
    """Create the schema where it is missing, in the caller's transaction. Raises sqlalchemy's DBAPIError."""
    known = sa.text("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = :name")
    if connection.execute(known, {"name": location.schema}).scalar() is None:
        connection.exec_driver_sql(f'CREATE SCHEMA "{location.schema}"')


def vacuum(driver: Driver, tables: Sequence[str], *, full: bool = False) -> None:
    """Take deleted rows out of tables (names as in SQL), have the server flush its pages; between transactions only.

    A plain one runs beside commits and leaves stale bytes in the free space of pages. `full` writes the tables anew,
    without any, and locks each for as long as that takes. Raises psycopg.Error.
    """
    # By itself the server would leave the index entries of a few rows for a better occasion.
    option = b"FULL, ANALYZE" if full else b"INDEX_CLEANUP ON, ANALYZE"
    driver.autocommit = True
    try:
        for table in tables:
            driver.execute(b"VACUUM (%s) %s" % (option, table.encode()))
        flush(driver)
    finally:
        if not driver.closed:
            driver.autocommit = False


def flush(driver: Driver) -> None:
    """CHECKPOINT where the role may (pg_checkpoint): files of rewritten tables go, old log segments are let go."""
    try:
        driver.execute("CHECKPOINT")
    except psycopg.errors.InsufficientPrivilege:
        return  # the server's own checkpoint does the same within checkpoint_timeout, 5 minutes by default


def sqlstate_of(error: BaseException | None) -> str | None:
    """The five characters that say what went wrong, None for a lost connection and for errors of our own."""
    state: str | None = getattr(error, "sqlstate", None)
    return state


def reason_of(error: BaseException | None) -> str:
    """What the server says, in our words: its own may quote stored text."""
    state = sqlstate_of(error)
    if state is None:
        return "the connection was lost" if isinstance(error, psycopg.OperationalError) else type(error).__name__
    known = next((_REASONS[state[:size]] for size in (5, 3, 2) if state[:size] in _REASONS), None)
    name = f"SQLSTATE {state}, {type(error).__name__}"
    return f"{known} ({name})" if known else name


def is_damage(error: BaseException | None) -> bool:
    """Whether a failed read means that what is stored is not what was written (rather than out of reach)."""
    return sqlstate_of(error) in _DAMAGE or is_undecodable(error)


def is_undecodable(error: BaseException | None) -> bool:
    """Whether it is the rows that were asked for that cannot be read: damaged pages, text that is not UTF-8."""
    return sqlstate_of(error) in _ROW_DAMAGE or isinstance(error, UnicodeDecodeError)


def _not_reachable(location: Location, reason: str) -> LedgerServerUnusable:
    cure = (
        f"See that the server runs, that host, port, user and database are right, and that the password is in "
        f"{PASSWORD_VARIABLE} or in a password file"
    )
    return LedgerServerUnusable(str(location), f"no connection: {reason}", cure)


def _first_line(error: psycopg.Error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
