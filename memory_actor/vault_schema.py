# ruff: noqa: S608 - statements are put together from constants and checked names only; values are always bound
"""The vault's tables, and its statements in the dialect of each engine.

Statements are text because the vault is on the path of every write: building them anew for each call costs more than
running them. Every wrapped key has the same length, so destroying one on SQLite overwrites it in its own place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from memory_actor.sealing import KEY_BYTES, OVERHEAD_BYTES

APPLICATION_ID: Final = 0x4C4D5756
"""'LMWV' in the header of a SQLite file."""

WRAPPED_BYTES: Final = KEY_BYTES + OVERHEAD_BYTES
DESTROYED: Final = bytes(WRAPPED_BYTES)
"""What a wrapped key is overwritten with. It does not open under any key in practice: nonce and tag are all zero."""

PAGE: Final = 4096
"""Rows that `of_tenant` returns at most."""

metadata = sa.MetaData()

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # there, INTEGER keys need no index of their own

vault_meta = sa.Table(
    "vault_meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),
)
"""See `vault_lock`."""

tenant_key = sa.Table(
    "tenant_key",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("uid", sa.String(64), nullable=False, unique=True),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
)
"""One row per tenant that ever was: a destroyed key stays as zeros, so that nothing can make its tenant anew."""

data_key = sa.Table(
    "data_key",
    metadata,
    sa.Column("id", _ID, primary_key=True, autoincrement=False),
    sa.Column("tenant", _ID, nullable=False),  # tenant_key.id
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Index("data_key_of_tenant", "tenant"),
)

key_counter = sa.Table("key_counter", metadata, sa.Column("last", _ID, nullable=False))
"""SQLite: one row, the highest id ever given to a data key. On PostgreSQL ids come from the sequence `data_key_id`,
which two incarnations can draw from without waiting for each other."""


@dataclass(frozen=True, slots=True)
class Statements:
    """The vault's SQL for one engine. Placeholders are positional; a list of ids is one value (see `ids_value`)."""

    postgres: bool
    prefix: str  # of table names: "" or the quoted schema and a dot

    reserve: str  # (n) -> n ids (PostgreSQL), the last of n consecutive ids (SQLite)
    insert: str  # (id, tenant, wrapped)
    select: str  # (tenant, ids) -> id, wrapped
    of_tenant: str  # (tenant, after) -> the next PAGE of id, wrapped; destroyed ones left out
    live: str  # () -> how many data keys are not destroyed
    rewrap: str  # (wrapped, id)
    destroy: str  # (tenant, ids)
    destroy_all: str  # (tenant)

    tenant: str  # (uid) -> id, wrapped
    tenants: str  # () -> id, uid, wrapped
    add_tenant: str  # (uid, wrapped)
    rewrap_tenant: str  # (wrapped, id)

    all_meta: str  # () -> name, value, checksum
    get_check: str  # () -> value
    set_meta: str  # (value, checksum, name)

    def ids_value(self, ids: Sequence[int]) -> object:
        """A list of ids as the one value that `select` and `destroy` take."""
        return list(ids) if self.postgres else "[" + ",".join(str(int(one)) for one in ids) + "]"


def statements(*, postgres: bool, schema: str | None = None) -> Statements:
    """The statements for SQLite, or for PostgreSQL with the tables in `schema`."""
    if schema is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", schema):
        raise ValueError(f"{schema!r} is not a schema name")
    prefix = f'"{schema}".' if schema else ""
    key, tenant = f"{prefix}data_key", f"{prefix}tenant_key"
    among = "= ANY(?)" if postgres else "IN (SELECT value FROM json_each(?))"
    zeros = f"'\\x{DESTROYED.hex()}'::bytea" if postgres else f"x'{DESTROYED.hex()}'"
    if postgres:
        # Rows are never overwritten in place there; `vault_postgres` has the pages rewritten.
        destroy = f"DELETE FROM {key} WHERE"
        reserve = f"SELECT nextval('{prefix}data_key_id') FROM generate_series(1, ?)"
    else:
        # In place, so that no page is ever rearranged and no copy of a moved row can stay behind in a gap.
        destroy = f"UPDATE {key} SET wrapped = {zeros} WHERE wrapped <> {zeros} AND"
        reserve = "UPDATE key_counter SET last = last + ? RETURNING last"
    text = {
        "reserve": reserve,
        "insert": f"INSERT INTO {key} (id, tenant, wrapped) VALUES (?, ?, ?)",
        "select": f"SELECT id, wrapped FROM {key} WHERE tenant = ? AND id {among}",
        "of_tenant": f"SELECT id, wrapped FROM {key} WHERE tenant = ? AND id > ? AND wrapped <> {zeros} "
        f"ORDER BY id LIMIT {PAGE}",
        "live": f"SELECT count(*) FROM {key} WHERE wrapped <> {zeros}",
        "rewrap": f"UPDATE {key} SET wrapped = ? WHERE id = ?",
        "destroy": f"{destroy} tenant = ? AND id {among}",
        "destroy_all": f"{destroy} tenant = ?",
        "tenant": f"SELECT id, wrapped FROM {tenant} WHERE uid = ?",
        "tenants": f"SELECT id, uid, wrapped FROM {tenant} ORDER BY id",
        "add_tenant": f"INSERT INTO {tenant} (uid, wrapped) VALUES (?, ?) ON CONFLICT (uid) DO NOTHING",
        "rewrap_tenant": f"UPDATE {tenant} SET wrapped = ? WHERE id = ?",
    }
    text |= {
        "all_meta": f"SELECT name, value, checksum FROM {prefix}vault_meta",
        "get_check": f"SELECT value FROM {prefix}vault_meta WHERE name = 'check'",
        "set_meta": f"UPDATE {prefix}vault_meta SET value = ?, checksum = ? WHERE name = ?",
    }
    marked = {name: one.replace("?", "%s") if postgres else one for name, one in text.items()}
    return Statements(postgres=postgres, prefix=prefix, **marked)
