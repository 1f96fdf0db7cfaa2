"""The first tables. Frozen: later changes are later revisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_POSITION = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create every table of the first release."""
    op.create_table(
        "meta",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    )
    op.create_table(
        "actor_epoch",
        sa.Column("epoch", _POSITION, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
    )
    op.create_table(
        "tenant",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("retention", sa.String(16), nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("next_seq", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    )
    _create_fact_tables()
    op.create_table(
        "idempotency",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("key_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("request_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
    )
    op.create_index("idempotency_by_time", "idempotency", ["created_at"])
    op.create_table(
        "audit",
        sa.Column("position", _POSITION, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("facts_begun", sa.Integer, nullable=False),
        sa.Column("facts_ended", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
    )


def _create_fact_tables() -> None:
    op.create_table(
        "fact",
        sa.Column("tenant", sa.String(128), sa.ForeignKey("tenant.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("fact_id", sa.String(128), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("target_tokens", sa.Integer, nullable=False),
        sa.Column("prompt_digest", sa.LargeBinary(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("supersedes", sa.String(128)),
        sa.Column("prompt", sa.Text),
        sa.Column("target", sa.Text),
        sa.Column("words_checksum", sa.LargeBinary(16), nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("addresses", sa.LargeBinary, nullable=False),
        sa.Column("latents", sa.LargeBinary, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
        sa.UniqueConstraint("tenant", "fact_id", name="fact_id_once"),
    )
    op.create_index("fact_by_time", "fact", ["tenant", "created_at", "seq"])
    op.create_table(
        "fact_tag",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tag", sa.Text, primary_key=True),
        sa.ForeignKeyConstraint(["tenant", "seq"], ["fact.tenant", "fact.seq"], ondelete="CASCADE"),
    )
    op.create_index("fact_by_tag", "fact_tag", ["tenant", "tag", "seq"])
