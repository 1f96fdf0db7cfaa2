"""One group of effects as SQL inside one open transaction; the caller begins, commits and rolls back.

Inserts are collected and sent in bulk; anything that deletes first sends what was collected, so that the tables
always see the effects in their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, assert_never

import sqlalchemy as sa

from memory_actor.effects import Effect, FactsForgotten, FactsWritten, StoredFact, TenantCreated, TenantDeleted
from memory_actor.errors import Fenced
from memory_actor.ledger_rows import (
    GENESIS,
    TenantRow,
    chain,
    pack_fact,
    pack_reply,
    pack_tenant,
    unpack_tenant,
)
from memory_actor.ledger_schema import actor_epoch, audit, fact, fact_tag, idempotency, tenant
from memory_actor.types import Idempotency, MemoryConfig

_EPOCH = sa.select(sa.func.max(actor_epoch.c.epoch))
_AUDIT_HEAD = sa.select(audit.c.position, audit.c.hash).order_by(audit.c.position.desc()).limit(1)
_TENANT = sa.select(tenant).where(tenant.c.name == sa.bindparam("of"))
_FACTS_OF = sa.select(sa.func.count()).select_from(fact).where(fact.c.tenant == sa.bindparam("of"))
_UPDATE_TENANT = (
    sa.update(tenant)
    .where(tenant.c.name == sa.bindparam("of"))
    .values({name: sa.bindparam(f"new_{name}") for name in ("version", "next_seq", "checksum")})
)
_DELETE_TENANT = sa.delete(tenant).where(tenant.c.name == sa.bindparam("of"))  # facts and tags go by cascade
_DELETE_REPLIES = sa.delete(idempotency).where(idempotency.c.tenant == sa.bindparam("of"))
_DELETE_FACT = sa.delete(fact).where(fact.c.tenant == sa.bindparam("of"), fact.c.fact_id == sa.bindparam("id"))

_KINDS: Final = {
    TenantCreated: "tenant_created",
    TenantDeleted: "tenant_deleted",
    FactsWritten: "facts_written",
    FactsForgotten: "facts_forgotten",
}


class EffectRefused(Exception):
    """An effect does not follow from what is stored: a fault of our own code, never of a request."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One acknowledged request: what it changed (None: nothing) and the reply its repetitions will get.

    `scope` is the tenant the idempotency key belongs to and the one named in the audit entry of a request without
    effect. None means the tenant of the effect for facts, and "" for everything else: creating and deleting tenants
    are the operator's requests, and their replies outlive the tenant.
    """

    effect: Effect | None
    idempotency: Idempotency | None
    reply: bytes
    scope: str | None = None

    @property
    def idempotency_scope(self) -> str:
        if self.scope is not None:
            return self.scope
        return self.effect.tenant if isinstance(self.effect, (FactsWritten, FactsForgotten)) else ""


class GroupWriter:
    """Writes entries into the tables. Use once: `add` each entry in order, then `finish`."""

    def __init__(self, connection: sa.Connection, config: MemoryConfig, salt: bytes, epoch: int, now: float) -> None:
        """Raises Fenced when the newest epoch in the ledger is not `epoch`."""
        newest = connection.execute(_EPOCH).scalar_one()
        if newest != epoch:
            raise Fenced(epoch, newest)
        self._connection = connection
        self._config = config
        self._salt = salt
        self._epoch = epoch
        self._now = now
        head = connection.execute(_AUDIT_HEAD).one_or_none()
        self._position: int = 0 if head is None else head[0]
        self._head: bytes = GENESIS if head is None else head[1]
        self._tenants: dict[str, TenantRow] = {}
        self._changed: set[str] = set()
        self._facts: list[tuple[Any, ...]] = []
        self._tags: list[tuple[Any, ...]] = []
        self._replies: list[tuple[Any, ...]] = []
        self._audit: list[tuple[Any, ...]] = []

    def add(self, entry: LedgerEntry) -> None:
        """Apply the entry's effect and remember its reply. Raises EffectRefused, RowDamaged, SQLAlchemyError."""
        scope = entry.idempotency_scope
        match entry.effect:
            case None:
                self._append_audit(scope, "unchanged")
            case TenantCreated() as effect:
                self._create_tenant(effect)
            case TenantDeleted() as effect:
                self._delete_tenant(effect)
            case FactsWritten() as effect:
                self._write_facts(effect)
            case FactsForgotten() as effect:
                self._forget_facts(effect)
            case _:
                assert_never(entry.effect)
        if entry.idempotency is not None:
            self._replies.append(pack_reply(self._salt, scope, entry.idempotency, entry.reply, self._now))

    def finish(self) -> None:
        """Send everything that is still collected."""
        self._flush()
        if self._changed:
            rows = [pack_tenant(self._tenants[name]) for name in sorted(self._changed)]
            names = ("of", "new_version", "new_next_seq", "new_checksum")
            self._delete_or_update(_UPDATE_TENANT, [dict(zip(names, (r[0], *r[4:]), strict=True)) for r in rows])
        self._insert(audit, self._audit)

    # -- effects ------------------------------------------------------------------------------------------------

    def _create_tenant(self, effect: TenantCreated) -> None:
        row = TenantRow(effect.tenant, effect.retention, effect.salt, effect.created_at, version=0, next_seq=1)
        self._insert(tenant, [pack_tenant(row)])
        self._tenants[effect.tenant] = row
        self._append_audit(effect.tenant, _KINDS[TenantCreated])

    def _delete_tenant(self, effect: TenantDeleted) -> None:
        self._flush()
        row = self._tenant(effect.tenant)
        facts = self._connection.execute(_FACTS_OF, {"of": effect.tenant}).scalar_one()
        self._delete_or_update(_DELETE_REPLIES, [{"of": effect.tenant}])
        self._delete_or_update(_DELETE_TENANT, [{"of": effect.tenant}])
        del self._tenants[effect.tenant]
        self._changed.discard(effect.tenant)
        self._append_audit(effect.tenant, _KINDS[TenantDeleted], ended=facts, version=row.version)

    def _write_facts(self, effect: FactsWritten) -> None:
        row = self._tenant(effect.tenant)
        self._delete_facts(effect.tenant, effect.forgotten)
        next_seq = self._collect_facts(effect.tenant, row.next_seq, effect.facts)
        self._change(replace(row, version=effect.version, next_seq=next_seq))
        self._append_audit(
            effect.tenant,
            _KINDS[FactsWritten],
            begun=len(effect.facts),
            ended=len(effect.forgotten),
            version=effect.version,
        )

    def _forget_facts(self, effect: FactsForgotten) -> None:
        row = self._tenant(effect.tenant)
        self._delete_facts(effect.tenant, effect.fact_ids)
        self._change(replace(row, version=effect.version))
        self._append_audit(effect.tenant, _KINDS[FactsForgotten], ended=len(effect.fact_ids), version=effect.version)

    # -- rows ---------------------------------------------------------------------------------------------------

    def _tenant(self, name: str) -> TenantRow:
        if name not in self._tenants:
            stored = self._connection.execute(_TENANT, {"of": name}).one_or_none()
            if stored is None:
                raise EffectRefused(f"tenant {name!r} is not in the ledger")
            self._tenants[name] = unpack_tenant(stored)
        return self._tenants[name]

    def _change(self, row: TenantRow) -> None:
        self._tenants[row.name] = row
        self._changed.add(row.name)

    def _collect_facts(self, name: str, next_seq: int, facts: Iterable[StoredFact]) -> int:
        """Queue the facts for insertion; returns the position after the last. Positions are never used twice."""
        for stored in facts:
            if stored.seq < next_seq:
                raise EffectRefused(f"fact {stored.seq} of tenant {name!r} comes after position {next_seq - 1}")
            next_seq = stored.seq + 1
            self._facts.append(pack_fact(name, stored, self._config))
            self._tags += [(name, stored.seq, tag) for tag in dict.fromkeys(stored.tags)]
        return next_seq

    def _delete_facts(self, name: str, fact_ids: tuple[str, ...]) -> None:
        if not fact_ids:
            return
        self._flush()
        deleted = self._delete_or_update(_DELETE_FACT, [{"of": name, "id": fact_id} for fact_id in fact_ids])
        if deleted != len(fact_ids):
            raise EffectRefused(f"tenant {name!r} has {deleted} of the {len(fact_ids)} facts to end")

    def _append_audit(self, name: str, kind: str, begun: int = 0, ended: int = 0, version: int = 0) -> None:
        self._position += 1
        row = (self._position, float(self._now), self._epoch, name, kind, begun, ended, version)
        self._head = chain(self._head, row)
        self._audit.append((*row, self._head))

    def _flush(self) -> None:
        for table, rows in ((fact, self._facts), (fact_tag, self._tags), (idempotency, self._replies)):
            self._insert(table, rows)
            rows.clear()

    def _insert(self, table: sa.Table, rows: list[tuple[Any, ...]]) -> None:
        """Insert complete rows, in column order. By the driver's own bulk call: Core would rebuild every row twice."""
        if rows:
            self._connection.exec_driver_sql(_insert_sql(self._connection.dialect, table), rows)

    def _delete_or_update(self, statement: sa.Executable, rows: list[dict[str, Any]]) -> int:
        """Send the statement once for each of `rows`; returns how many rows of the table it touched."""
        return self._connection.execute(statement, rows).rowcount


@lru_cache(maxsize=32)
def _insert_sql(dialect: sa.Dialect, table: sa.Table) -> str:
    """INSERT with one placeholder per column; the engine must have been made with a positional paramstyle."""
    return str(sa.insert(table).compile(dialect=dialect))
