"""Alembic's entry: migrates over the connection it is handed, inside the transaction that is open on it."""

from __future__ import annotations

from alembic import context

from memory_actor.ledger_schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite too rolls DDL back, once BEGIN is ours to send
)
with context.begin_transaction():
    context.run_migrations()
