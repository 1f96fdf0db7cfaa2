"""The ledger's tables as SQLAlchemy Core objects, the same for every database engine.

The tables are created and changed by the Alembic revisions in `memory_actor/migrations`; this file is what the
statements are written against, and a test holds the two together. Every row that recovery depends on says when it was
changed: rows of `fact` are sealed with AES-256-GCM, which authenticates their plain columns too; all others carry a
`checksum` (BLAKE2b, 16 bytes) over the columns before it. Both are verified on each read.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

HEAD: Final = "0002"
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
"""`identity`: the bundle's numbers as JSON. `salt`: 32 random bytes that key the hashes of idempotency keys. `vault`:
the name of the vault whose keys seal the facts. `schema`: digest of a SQLite file's table definitions.
`unswept`, while it is there: a migration left bytes of deleted rows in the file."""

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
    sa.Column("uid", sa.String(32), nullable=False),  # the incarnation; names its key in the vault
    sa.Column("facts", sa.BigInteger, nullable=False),  # live ones: a lost row is a count that does not match
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),
)

fact = sa.Table(
    "fact",
    metadata,
    sa.Column("tenant", sa.String(128), sa.ForeignKey("tenant.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("fact_id", sa.String(128), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),  # the tenant's version that wrote it, 0 before revision 0002
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("supersedes", sa.String(128)),
    sa.Column("key_id", sa.BigInteger, nullable=False),  # the data key in the vault
    sa.Column("words", sa.LargeBinary, nullable=False),  # sealed: prompt, target, tags; see `ledger_rows`
    sa.Column("vectors", sa.LargeBinary, nullable=False),  # sealed: token counts, digest, key, addresses, latents
    sa.UniqueConstraint("tenant", "fact_id", name="fact_id_once"),
    sa.Index("fact_by_time", "tenant", "created_at", "seq"),
)

fact_tag = sa.Table(
    "fact_tag",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tag", sa.LargeBinary(16), primary_key=True),  # a digest keyed by the tenant's salt
    sa.ForeignKeyConstraint(["tenant", "seq"], ["fact.tenant", "fact.seq"], ondelete="CASCADE"),
    sa.Index("fact_by_tag", "tenant", "tag", "seq"),
)
"""An index over the tags sealed in `fact.words`, which stay the truth."""

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

erase_task = sa.Table(
    "erase_task",
    metadata,
    sa.Column("position", _POSITION, primary_key=True, autoincrement=False),
    sa.Column("receipt_id", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(128), nullable=False),  # not a foreign key: it outlives the tenant
    sa.Column("uid", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),  # forget | supersede | restore | tenant
    sa.Column("ended", sa.LargeBinary, nullable=False),  # msgpack [fact ids, key ids]; both empty once done
    sa.Column("requested_at", sa.Double, nullable=False),
    sa.Column("erase_by", sa.Double, nullable=False),
    sa.Column("state_hash_before", sa.String(64), nullable=False),
    sa.Column("state_hash_after", sa.String(64), nullable=False),
    sa.Column("facts", sa.BigInteger, nullable=False),
    sa.Column("done_at", sa.Double),
    sa.Column("receipt", sa.Text),
    sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    sa.Index("erase_task_by_done", "done_at"),
)
"""What forgotten facts leave to destroy, noted in the commit that forgets them; with their receipts once done."""

checkpoint = sa.Table(
    "checkpoint",
    metadata,
    sa.Column("checkpoint_id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(128), nullable=False),  # not a foreign key: its files outlive the tenant for a while
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
    sa.Index("checkpoint_by_uid", "uid"),
)
