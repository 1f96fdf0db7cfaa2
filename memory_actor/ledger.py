"""The ledger: the durable truth from which every memory is rebuilt. What `commit` returned from survives anything.

SQL through SQLAlchemy Core; the statements are the same for every engine, and `Ledger.open` dispatches on the scheme.
Today that is SQLite (`ledger_sqlite`); PostgreSQL is a second opener beside it, and joins the same contract tests.

Not here yet, and their places: an `erase_task` table for physical erase (checkpoints rewritten, log truncated, receipt
signed) beside `audit`; columns for the data key and nonce of encrypted words and vectors in `fact`, filled in
`ledger_rows`. Deleted rows are overwritten in the file today, but copies may stay in the write-ahead log until it is
checkpointed, at the latest by `close`.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from memory_actor import ledger_schema as schema
from memory_actor.effects import StoredFact
from memory_actor.errors import Fenced, IdempotencyKeyReused, LarimarError, LedgerCorrupt, LedgerFailed, SettingsInvalid
from memory_actor.ledger_rows import (
    GENESIS,
    RowDamaged,
    TenantRow,
    chain,
    idempotency_key_hash,
    request_hash,
    unpack_fact,
    unpack_record,
    unpack_reply,
    unpack_tenant,
)
from memory_actor.ledger_sqlite import OpenedLedger, is_damage, open_sqlite, reason_of
from memory_actor.ledger_writer import EffectRefused, GroupWriter, LedgerEntry
from memory_actor.types import FactRecord, Idempotency, MemoryConfig

__all__ = ["Ledger", "LedgerEntry", "TenantRow"]

_IDS_PER_STATEMENT = 500  # SQLite allows 32,766 bound values, PostgreSQL 65,535
_RECORD_COLUMNS = list(schema.fact.c)[: list(schema.fact.c).index(schema.fact.c.words_checksum) + 1]

_OF = schema.fact.c.tenant == sa.bindparam("of")
_FACTS = (
    sa.select(schema.fact)
    .where(_OF, schema.fact.c.seq > sa.bindparam("after"))
    .order_by(schema.fact.c.seq)
    .limit(sa.bindparam("n"))
)
_FACTS_BY_ID = (
    sa.select(schema.fact)
    .where(_OF, schema.fact.c.fact_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(schema.fact.c.seq)
)
_RECORDS = (
    sa.select(*_RECORD_COLUMNS)
    .where(_OF, schema.fact.c.seq > sa.bindparam("after"))
    .order_by(schema.fact.c.seq)
    .limit(sa.bindparam("n"))
)
_RECORD = sa.select(*_RECORD_COLUMNS).where(_OF, schema.fact.c.fact_id == sa.bindparam("id"))
_TENANTS = sa.select(schema.tenant).order_by(schema.tenant.c.name)
_REPLY = sa.select(schema.idempotency).where(
    schema.idempotency.c.tenant == sa.bindparam("of"), schema.idempotency.c.key_hash == sa.bindparam("key")
)
_PRUNE = sa.delete(schema.idempotency).where(schema.idempotency.c.created_at < sa.bindparam("before"))
_AUDIT = (
    sa.select(schema.audit)
    .where(schema.audit.c.position > sa.bindparam("after"))
    .order_by(schema.audit.c.position)
    .limit(4096)
)


class Ledger:
    """One memory actor's ledger. Safe to share between threads: one lock, held for one transaction or one page."""

    def __init__(self, opened: OpenedLedger, config: MemoryConfig) -> None:
        """Use `open`."""
        self._opened = opened
        self._connection = opened.connection
        self._config = config
        self._lock = threading.Lock()
        self._stopped: LarimarError | None = None

    @classmethod
    def open(cls, location: Path | str, config: MemoryConfig, owner: str, now: float) -> Self:
        """Open or create a ledger, migrate it and take the next epoch, which fences every earlier incarnation.

        Args: location: a path or a URL `sqlite:///PATH`. owner: who takes the epoch, for people. now: seconds.
        Raises: StateFolderUnusable, LedgerCorrupt, BundleMismatch, SettingsInvalid; then nothing was changed.
        """
        if isinstance(location, str):
            scheme, separator, rest = location.partition("://")
            if separator and scheme.partition("+")[0] != "sqlite":
                raise SettingsInvalid("ledger.url", f"{scheme!r} ledgers are not supported by this release; use sqlite")
            location = Path(rest.removeprefix("/")) if separator else Path(location)
        return cls(open_sqlite(location, config, owner, now), config)

    @property
    def epoch(self) -> int:
        """This incarnation's number; grows by one with each open."""
        return self._opened.epoch

    @property
    def location(self) -> str:
        """The file, for messages."""
        return self._opened.location

    # -- writing ------------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[LedgerEntry], now: float) -> None:
        """Make a group of entries durable, all or none; on return they are on the disk.

        The caller has looked up each idempotency key, and no key comes twice in a group.
        Raises: Fenced, LedgerFailed. After either the ledger takes no further commit: only a replay can tell what
        was stored.
        """
        with self._lock, self._writing():
            writer = GroupWriter(self._connection, self._config, self._opened.salt, self.epoch, now)
            for entry in entries:
                writer.add(entry)
            writer.finish()

    def prune_idempotency(self, before: float) -> int:
        """Drop the replies stored before that time; returns how many. Raises LedgerFailed."""
        with self._lock, self._writing():
            return self._connection.execute(_PRUNE, {"before": before}).rowcount

    # -- reading ------------------------------------------------------------------------------------------------

    def idempotent_reply(self, tenant: str, idempotency: Idempotency) -> bytes | None:
        """The reply stored for the key, None for a new key; `tenant` is "" for operations on no tenant.

        Raises: IdempotencyKeyReused when the key came with another endpoint or request.
        """
        salt = self._opened.salt
        rows = self._read(_REPLY, {"of": tenant, "key": idempotency_key_hash(salt, tenant, idempotency.key)})
        if not rows:
            return None
        with self._unpacking():
            endpoint, stored_hash, reply = unpack_reply(rows[0])
        same_request = hmac.compare_digest(stored_hash, request_hash(salt, idempotency.request_digest))
        if endpoint != idempotency.endpoint or not same_request:
            raise IdempotencyKeyReused(endpoint)
        return reply

    def tenants(self) -> list[TenantRow]:
        """All tenants by name."""
        rows = self._read(_TENANTS, {})
        with self._unpacking():
            return [unpack_tenant(row) for row in rows]

    def facts(self, tenant: str, *, after_seq: int = 0, limit: int = 2048) -> list[StoredFact]:
        """The next `limit` facts after position `after_seq`, in order; fewer mean the end."""
        rows = self._read(_FACTS, {"of": tenant, "after": after_seq, "n": limit})
        with self._unpacking():
            return [unpack_fact(row, self._config) for row in rows]

    def facts_by_id(self, tenant: str, fact_ids: Sequence[str]) -> list[StoredFact]:
        """Those of the facts that exist, in order of position."""
        found: list[StoredFact] = []
        for start in range(0, len(fact_ids), _IDS_PER_STATEMENT):
            some = list(fact_ids[start : start + _IDS_PER_STATEMENT])
            rows = self._read(_FACTS_BY_ID, {"of": tenant, "ids": some})
            with self._unpacking():
                found += [unpack_fact(row, self._config) for row in rows]
        return sorted({one.seq: one for one in found}.values(), key=lambda one: one.seq)

    def fact_records(self, tenant: str, after_seq: int = 0, limit: int = 100) -> list[FactRecord]:
        """As `facts`, without reading vectors."""
        return self._records(_RECORDS, {"of": tenant, "after": after_seq, "n": limit})

    def record(self, tenant: str, fact_id: str) -> FactRecord | None:
        """One fact as listed, None when the tenant has no such fact."""
        records = self._records(_RECORD, {"of": tenant, "id": fact_id})
        return records[0] if records else None

    def select_ids(
        self, tenant: str, tags: Sequence[str] | None = None, before: float | None = None, limit: int = 1000
    ) -> list[FactRecord]:
        """The first `limit` facts that have all of `tags` and were written before `before`, in order."""
        statement = (
            sa.select(*_RECORD_COLUMNS).where(schema.fact.c.tenant == tenant).order_by(schema.fact.c.seq).limit(limit)
        )
        if before is not None:
            statement = statement.where(schema.fact.c.created_at < before)
        for tag in dict.fromkeys(tags or ()):
            tagged = sa.select(schema.fact_tag.c.seq).where(
                schema.fact_tag.c.tenant == tenant, schema.fact_tag.c.tag == tag
            )
            statement = statement.where(schema.fact.c.seq.in_(tagged))
        return self._records(statement, {})

    def audit_chain_ok(self) -> bool:
        """Whether every audit entry follows from the one before it. Cannot see a cut-off end: anchor the last hash."""
        position, head = 0, GENESIS
        while rows := self._read(_AUDIT, {"after": position}):
            for row in rows:
                position, head = position + 1, chain(head, row[:-1])
                if (row[0], row[-1]) != (position, head):
                    return False
        return True

    # -- life ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the file; may be called twice."""
        with self._lock:
            if not self._connection.closed:
                self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One write transaction. Whatever fails in it stops the ledger, since a failed flush must not be retried."""
        if self._stopped is not None:
            raise type(self._stopped)(*self._stopped.args)
        if self._connection.closed:
            raise LedgerFailed(self.location, "it is closed")
        try:
            with self._connection.begin():
                yield
        except Fenced as error:
            self._stopped = error
            raise
        except sa.exc.DBAPIError as error:
            self._stopped = LedgerFailed(self.location, reason_of(error.orig))
            raise self._stopped from error
        except (sa.exc.SQLAlchemyError, EffectRefused, RowDamaged, ValueError) as error:
            self._stopped = LedgerFailed(self.location, str(error))
            raise self._stopped from error

    def _read(self, statement: sa.Select[Any], values: dict[str, Any]) -> Sequence[sa.Row[Any]]:
        with self._lock:
            if self._connection.closed:
                raise LedgerFailed(self.location, "it is closed")
            try:
                with self._connection.begin():
                    return self._connection.execute(statement, values).all()
            except sa.exc.DBAPIError as error:
                if is_damage(error.orig):
                    raise LedgerCorrupt(self.location, f"it cannot be read: {reason_of(error.orig)}") from error
                raise LedgerFailed(self.location, reason_of(error.orig)) from error

    def _records(self, statement: sa.Select[Any], values: dict[str, Any]) -> list[FactRecord]:
        rows = self._read(statement, values)
        with self._unpacking():
            return [unpack_record(row) for row in rows]

    @contextmanager
    def _unpacking(self) -> Iterator[None]:
        try:
            yield
        except RowDamaged as error:
            raise LedgerCorrupt(self.location, str(error)) from error
