"""Facts sealed with keys from the vault, erasures, checkpoints. Frozen: later changes are later revisions.

The rows of revision 0001 are copied aside, the tables made anew under their names, and the rows sealed on their way
back. Everything happens in the caller's transaction, so that an interruption leaves revision 0001 as it was and the
next opening starts again; the data keys of the interrupted attempt stay unused in the vault. The caller then rids the
file of what the deleted tables held (meta row `unswept`).

Needs `config.attributes["vault"]`. A row that does not match its checksum stops the migration: sealing it would pass
damage off as the truth.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import sqlalchemy as sa
from alembic import context, op

from memory_actor.crash_points import reached
from memory_actor.sealing import seal

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_POSITION = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_PAGE = 256  # rows sealed at a time
_TENANT = ("name", "retention", "salt", "created_at", "version", "next_seq", "uid", "facts", "checksum")
_FACT = (
    *("tenant", "seq", "fact_id", "version", "rows", "created_at", "supersedes", "key_id"),
    *("words", "vectors"),
)


def upgrade() -> None:
    """Make the tables of revision 0002 and seal every fact there is."""
    _make_new_tables()
    connection = op.get_bind()
    connection.exec_driver_sql("CREATE TABLE tenant_0001 AS SELECT * FROM tenant")
    connection.exec_driver_sql("CREATE TABLE fact_0001 AS SELECT * FROM fact")
    op.create_index("fact_0001_in_order", "fact_0001", ["tenant", "seq"])
    for table in ("fact_tag", "fact", "tenant"):
        op.drop_table(table)
    _make_tenant_and_fact()
    for name, salt, uid in _move_tenants(connection):
        _move_facts(connection, name, salt, uid)
    for table in ("fact_0001", "tenant_0001"):
        op.drop_table(table)


# -- rows -------------------------------------------------------------------------------------------------------


def _move_tenants(connection: sa.Connection) -> list[tuple[str, bytes, str]]:
    """Give every tenant an incarnation, a key in the vault and a count; returns name, salt and incarnation of each."""
    moved = []
    stored = connection.exec_driver_sql("SELECT * FROM tenant_0001 ORDER BY name").all()
    for old in stored:
        if _checksum(old[:6]) != old[6]:
            raise ValueError(f"tenant {old[0]!r} does not match its checksum")
        uid = secrets.token_hex(16)
        context.config.attributes["vault"].create_tenant(uid)
        facts = _execute(connection, "SELECT count(*) FROM fact_0001 WHERE tenant = :name", name=old[0]).scalar_one()
        row = (*old[:6], uid, facts)
        _insert(connection, "tenant", _TENANT, [(*row, _checksum(row))])
        moved.append((old[0], bytes(old[2]), uid))
    return moved


def _move_facts(connection: sa.Connection, name: str, salt: bytes, uid: str) -> None:
    for page in _pages(connection, name):
        (keys,) = context.config.attributes["vault"].issue([(uid, len(page))])
        facts, tags = [], []
        for old, key in zip(page, keys, strict=True):
            facts.append(_sealed(old, key.id, key.key))
            tags += [(name, old[1], _tag_digest(salt, tag)) for tag in dict.fromkeys(json.loads(old[8]))]
        _insert(connection, "fact", _FACT, facts)
        _insert(connection, "fact_tag", ("tenant", "seq", "tag"), tags)
        reached("migrate.mid_copy")


def _pages(connection: sa.Connection, name: str) -> Iterator[Sequence[Sequence[Any]]]:
    after = 0
    page = "SELECT * FROM fact_0001 WHERE tenant = :name AND seq > :after ORDER BY seq LIMIT :n"
    while rows := _execute(connection, page, name=name, after=after, n=_PAGE).all():
        yield rows
        after = rows[-1].seq


def _sealed(old: Sequence[Any], key_id: int, key: bytes) -> tuple[Any, ...]:
    """A row of revision 0001 as one of revision 0002. Which version wrote it is not known: 0, part of every version."""
    tenant, seq, fact_id, parts, prompt_tokens, target_tokens, digest, created_at = old[:8]
    tags, supersedes, prompt, target, words_checksum, *arrays, checksum = old[8:]
    if _checksum(old[:12]) != words_checksum or _checksum(old[:-1]) != checksum:
        raise ValueError(f"fact {seq} of tenant {tenant!r} does not match its checksum")
    plain = (tenant, seq, fact_id, 0, parts, created_at, supersedes, key_id)
    context_of_row = msgpack.packb(plain)
    words = msgpack.packb((prompt, target, json.loads(tags)))
    counts = prompt_tokens.to_bytes(4, "little") + target_tokens.to_bytes(4, "little")
    vectors = b"".join((counts, digest, *arrays))
    sealed = (seal(key, words, context_of_row + b"words"), seal(key, vectors, context_of_row + b"vectors"))
    return (*plain, *sealed)


def _tag_digest(salt: bytes, tag: str) -> bytes:
    return hashlib.blake2b(tag.encode(), key=salt, digest_size=16, person=b"larimar tag").digest()


def _checksum(values: Sequence[object]) -> bytes:
    return hashlib.blake2b(msgpack.packb(tuple(values), use_bin_type=True), digest_size=16).digest()


def _execute(connection: sa.Connection, statement: str, **values: object) -> sa.CursorResult[Any]:
    return connection.execute(sa.text(statement), values)


def _insert(connection: sa.Connection, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
    if rows:
        clause = sa.insert(sa.table(table, *map(sa.column, columns)))
        connection.execute(clause, [dict(zip(columns, row, strict=True)) for row in rows])


# -- tables -----------------------------------------------------------------------------------------------------


def _make_tenant_and_fact() -> None:
    op.create_table(
        "tenant",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("retention", sa.String(16), nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("next_seq", sa.BigInteger, nullable=False),
        sa.Column("uid", sa.String(32), nullable=False),
        sa.Column("facts", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    )
    op.create_table(
        "fact",
        sa.Column("tenant", sa.String(128), sa.ForeignKey("tenant.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("fact_id", sa.String(128), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("supersedes", sa.String(128)),
        sa.Column("key_id", sa.BigInteger, nullable=False),
        sa.Column("words", sa.LargeBinary, nullable=False),
        sa.Column("vectors", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("tenant", "fact_id", name="fact_id_once"),
    )
    op.create_index("fact_by_time", "fact", ["tenant", "created_at", "seq"])
    op.create_table(
        "fact_tag",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tag", sa.LargeBinary(16), primary_key=True),
        sa.ForeignKeyConstraint(["tenant", "seq"], ["fact.tenant", "fact.seq"], ondelete="CASCADE"),
    )
    op.create_index("fact_by_tag", "fact_tag", ["tenant", "tag", "seq"])


def _make_new_tables() -> None:
    op.create_table(
        "erase_task",
        sa.Column("position", _POSITION, primary_key=True, autoincrement=False),
        sa.Column("receipt_id", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("uid", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("ended", sa.LargeBinary, nullable=False),
        sa.Column("requested_at", sa.Double, nullable=False),
        sa.Column("erase_by", sa.Double, nullable=False),
        sa.Column("state_hash_before", sa.String(64), nullable=False),
        sa.Column("state_hash_after", sa.String(64), nullable=False),
        sa.Column("facts", sa.BigInteger, nullable=False),
        sa.Column("done_at", sa.Double),
        sa.Column("receipt", sa.Text),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    )
    op.create_index("erase_task_by_done", "erase_task", ["done_at"])
    op.create_table(
        "checkpoint",
        sa.Column("checkpoint_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("uid", sa.String(32), nullable=False),
        sa.Column("location", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("facts", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("state_hash", sa.String(64), nullable=False),
        sa.Column("key_id", sa.BigInteger, nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    )
    op.create_index("checkpoint_by_uid", "checkpoint", ["uid"])
