# ruff: noqa: S608 - statements are put together from constants and a checked schema name only
"""What is particular to a vault on PostgreSQL: making its schema, and having pages rewritten after a destruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from memory_actor.vault_lock import fresh_meta, meta_rows, require_any
from memory_actor.vault_schema import data_key, metadata, tenant_key, vault_meta

_TABLES: Final = [vault_meta, tenant_key, data_key]
_LOCK: Final = 0x4C4D5756  # advisory: two incarnations may both find the schema missing
REWRITE_ROWS_MAX: Final = 200_000
"""Above this many keys, `scrub` no longer rewrites the table, since that would hold up writes for seconds."""


def prepare(connection: sa.Connection, schema: str | None, root_keys: Sequence[bytes], location: str) -> None:
    """Make schema, tables and lock of a vault that is not there yet, in the caller's transaction."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    if sa.inspect(connection).has_table("vault_meta", schema=schema):
        return
    require_any(root_keys, location)
    values = fresh_meta(root_keys[0])
    prefix = f'"{schema}".' if schema else ""
    # IF NOT EXISTS would ask for the right to create schemas even where the schema is there.
    if schema and not sa.inspect(connection).has_schema(schema):
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
    metadata.create_all(connection.execution_options(schema_translate_map={None: schema}), tables=_TABLES)
    connection.exec_driver_sql(f"CREATE SEQUENCE {prefix}data_key_id")
    for table in ("tenant_key", "data_key"):
        # ANALYZE, which servers also run by themselves, keeps samples of a column's values: destroyed keys too.
        connection.exec_driver_sql(f"ALTER TABLE {prefix}{table} ALTER wrapped SET STATISTICS 0")
    connection.exec_driver_sql(
        f"INSERT INTO {prefix}vault_meta (name, value, checksum) VALUES (%s, %s, %s)", meta_rows(values)
    )


def scrub(connection: sa.Connection, prefix: str) -> None:
    """Have the server write the key tables anew, without what was destroyed, and flush its pages.

    The server's write-ahead log keeps older images until it recycles them: see `docs/guarantees.md`.
    """
    from memory_actor.postgres import vacuum  # noqa: PLC0415 - psycopg costs 0.1 s to import

    with connection.begin():
        rows = connection.exec_driver_sql(f"SELECT count(*) FROM {prefix}data_key").scalar_one()
    driver: Any = connection.connection.driver_connection
    tables = [f"{prefix}{table.name}" for table in _TABLES]
    try:
        vacuum(driver, tables, full=rows <= REWRITE_ROWS_MAX)
    except driver.Error as error:
        raise sa.exc.DBAPIError("VACUUM", None, error) from error
