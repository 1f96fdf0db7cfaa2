# ruff: noqa: S608 - statements are put together from constants and a checked schema name only
"""What is particular to a vault on PostgreSQL: making its schema, and having pages rewritten after a destruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from memory_actor.vault_lock import fresh_meta, meta_rows, unlock
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
    values = fresh_meta(root_keys[0] if root_keys else bytes(32))
    if not root_keys:
        unlock(meta_rows(values), root_keys, location)  # says that there is no key
    prefix = f'"{schema}".' if schema else ""
    if schema:
        connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    metadata.create_all(connection.execution_options(schema_translate_map={None: schema}), tables=_TABLES)
    connection.exec_driver_sql(f"CREATE SEQUENCE {prefix}data_key_id")
    connection.exec_driver_sql(
        f"INSERT INTO {prefix}vault_meta (name, value, checksum) VALUES (%s, %s, %s)", meta_rows(values)
    )


def scrub(connection: sa.Connection, prefix: str) -> None:
    """Have the server write the key tables anew, without what was destroyed, and flush its pages.

    The server's write-ahead log keeps older images until it recycles them: see `docs/guarantees.md`.
    """
    rows = connection.exec_driver_sql(f"SELECT count(*) FROM {prefix}data_key").scalar_one()
    connection.rollback()
    kind = "VACUUM (FULL)" if rows <= REWRITE_ROWS_MAX else "VACUUM"
    before = connection.get_isolation_level()
    connection.execution_options(isolation_level="AUTOCOMMIT")
    try:
        for table in ("tenant_key", "data_key", "vault_meta"):
            connection.exec_driver_sql(f"{kind} {prefix}{table}")
        connection.exec_driver_sql("CHECKPOINT")
    finally:
        connection.execution_options(isolation_level=before)
