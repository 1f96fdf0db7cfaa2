"""The ledger's tables as SQLAlchemy Core objects, the same for every database engine.

The tables are created and changed by the Alembic revisions in `memory_actor/migrations`; this file is what the
statements are written against, and a test holds the two together. Every row that recovery depends on carries a
`checksum` (BLAKE2b, 16 bytes) over all columns before it, which is verified on each read.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

HEAD: Final = "0001"
"""The Alembic revision this release reads and writes."""

APPLICATION_ID: Final = 0x4C4D5752
"""'LMWR' in the header of a SQLite file: tells our ledgers from other people's databases."""

metadata = sa.MetaData()

_POSITION = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # there, INTEGER keys need no index of their own

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),
)
"""`identity`: the bundle's numbers as JSON. `salt`: 32 random bytes that key the hashes of idempotency keys."""

actor_epoch = sa.Table(
    "actor_epoch",
    metadata,
    sa.Column("epoch", _POSITION, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
)
"""One row per incarnation. The primary key is the fence: two incarnations cannot take the same epoch."""

tenant = sa.Table(
    "tenant",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("retention", sa.String(16), nullable=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("next_seq", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),
)

fact = sa.Table(
    "fact",
    metadata,
    sa.Column("tenant", sa.String(128), sa.ForeignKey("tenant.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("fact_id", sa.String(128), nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("target_tokens", sa.Integer, nullable=False),
    sa.Column("prompt_digest", sa.LargeBinary(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),  # JSON list, in the caller's order
    sa.Column("supersedes", sa.String(128)),
    sa.Column("prompt", sa.Text),  # NULL under `latent` retention, and so is target
    sa.Column("target", sa.Text),
    sa.Column("words_checksum", sa.LargeBinary(16), nullable=False),  # over the columns above, for listings
    sa.Column("key", sa.LargeBinary, nullable=False),  # D float16, little-endian
    sa.Column("addresses", sa.LargeBinary, nullable=False),  # rows * K int8
    sa.Column("latents", sa.LargeBinary, nullable=False),  # rows * uint32 lengths, then the rows without trailing zeros
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),  # over all columns above
    sa.UniqueConstraint("tenant", "fact_id", name="fact_id_once"),
    sa.Index("fact_by_time", "tenant", "created_at", "seq"),
)

fact_tag = sa.Table(
    "fact_tag",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tag", sa.Text, primary_key=True),
    sa.ForeignKeyConstraint(["tenant", "seq"], ["fact.tenant", "fact.seq"], ondelete="CASCADE"),
    sa.Index("fact_by_tag", "tenant", "tag", "seq"),
)
"""An index over `fact.tags`, which stays the truth."""

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),  # "" for operations on no tenant: not a foreign key
    sa.Column("key_hash", sa.LargeBinary(32), primary_key=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("request_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("reply", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    sa.Index("idempotency_by_time", "created_at"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("position", _POSITION, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("facts_begun", sa.Integer, nullable=False),
    sa.Column("facts_ended", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),  # SHA-256(hash of position - 1 || this row)
)
