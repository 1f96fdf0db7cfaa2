"""One group of effects as SQL inside one open transaction; the caller begins, fences, commits and rolls back.

Inserts are collected and sent in bulk; anything that deletes first sends what was collected, so that the tables
always see the effects in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, assert_never

import sqlalchemy as sa

from memory_actor.effects import (
    Effect,
    Erasure,
    FactsForgotten,
    FactsWritten,
    StoredFact,
    TenantCreated,
    TenantDeleted,
    TenantRestored,
)
from memory_actor.ledger_audit import AuditChain
from memory_actor.ledger_erasures import ErasureKind, ErasureRow, pack_erasure
from memory_actor.ledger_facts import pack_fact, tag_digest
from memory_actor.ledger_rows import TenantDamaged, TenantRow, pack_reply, pack_tenant, unpack_tenant
from memory_actor.ledger_schema import audit, erase_task, fact, fact_tag, idempotency, tenant
from memory_actor.types import Idempotency, MemoryConfig, Retention

if TYPE_CHECKING:
    from memory_actor.vault import DataKey

_IDS_PER_STATEMENT = 500
_UNKNOWN_UID = "0" * 32  # of a tenant whose row is damaged; its keys cannot be named any more

_ERASURE_HEAD = sa.select(sa.func.max(erase_task.c.position))
_TENANT = sa.select(tenant).where(tenant.c.name == sa.bindparam("of"))
_RAW_TENANT = sa.select(tenant.c.uid, tenant.c.version).where(tenant.c.name == sa.bindparam("of"))
_UPDATE_TENANT = (
    sa.update(tenant)
    .where(tenant.c.name == sa.bindparam("of"))
    .values({name: sa.bindparam(f"new_{name}") for name in ("version", "next_seq", "facts", "checksum")})
)
_DELETE_TENANT = sa.delete(tenant).where(tenant.c.name == sa.bindparam("of"))  # facts and tags go by cascade
_DELETE_REPLIES = sa.delete(idempotency).where(idempotency.c.tenant == sa.bindparam("of"))
_OF = fact.c.tenant == sa.bindparam("of")
# As bytes and as a number whatever is stored: damaged values must not keep their tenant from being deleted or restored.
_ALL_FACTS = (
    sa.select(sa.cast(fact.c.fact_id, sa.LargeBinary), sa.cast(fact.c.key_id, sa.BigInteger))
    .where(_OF)
    .order_by(fact.c.seq)
)
_DELETE_ALL_FACTS = sa.delete(fact).where(_OF)
_DELETE_FACTS = (
    sa.delete(fact).where(_OF, fact.c.fact_id.in_(sa.bindparam("ids", expanding=True))).returning(fact.c.key_id)
)

_KINDS: Final = {
    TenantCreated: "tenant_created",
    TenantDeleted: "tenant_deleted",
    TenantRestored: "tenant_restored",
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
    """Writes entries into the tables. Use once: `add` each entry in order, then `finish`.

    `tenants`, afterwards, are the rows of the tenants that the group concerned, None for those that ended.
    """

    def __init__(
        self,
        connection: sa.Connection,
        config: MemoryConfig,
        salt: bytes,
        epoch: int,
        now: float,
        *,
        known: Mapping[str, TenantRow],
        keys: Mapping[str, deque[DataKey]],
    ) -> None:
        """`known`: rows of tenants as stored. `keys`: fresh ones by incarnation, one for each fact that begins."""
        self.tenants: dict[str, TenantRow | None] = {}
        self._known = known
        self._keys = keys
        self._connection = connection
        self._config = config
        self._salt = salt
        self._now = now
        self._audit = AuditChain(connection, epoch, now)
        self._changed: set[str] = set()
        self._facts: list[tuple[Any, ...]] = []
        self._tags: list[tuple[Any, ...]] = []
        self._replies: list[tuple[Any, ...]] = []

    def add(self, entry: LedgerEntry) -> None:
        """Apply the entry's effect and remember its reply.

        Raises EffectRefused, ValueError, TenantDamaged, SQLAlchemyError.
        """
        scope = entry.idempotency_scope
        match entry.effect:
            case None:
                self._audit.append(scope, "unchanged")
            case TenantCreated() as effect:
                self._create_tenant(effect)
            case TenantDeleted() as effect:
                self._delete_tenant(effect)
            case TenantRestored() as effect:
                self._restore_tenant(effect)
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
            rows = [pack_tenant(self._tenant(name)) for name in sorted(self._changed)]
            names = ("of", "new_version", "new_next_seq", "new_facts", "new_checksum")
            values = [dict(zip(names, (row[0], row[4], row[5], row[7], row[8]), strict=True)) for row in rows]
            self._connection.execute(_UPDATE_TENANT, values)
        self._insert(audit, self._audit.rows)

    # -- effects ------------------------------------------------------------------------------------------------

    def _create_tenant(self, effect: TenantCreated) -> None:
        row = TenantRow(
            effect.tenant,
            effect.retention,
            effect.salt,
            effect.created_at,
            version=0,
            next_seq=1,
            uid=effect.uid,
            facts=0,
        )
        self._insert(tenant, [pack_tenant(row)])
        self.tenants[effect.tenant] = row
        self._audit.append(effect.tenant, _KINDS[TenantCreated])

    def _delete_tenant(self, effect: TenantDeleted) -> None:
        self._flush()
        name = effect.tenant
        row = self._tenant_even_damaged(name)
        ended = self._all_facts(name)
        self._connection.execute(_DELETE_REPLIES, {"of": name})
        self._connection.execute(_DELETE_TENANT, {"of": name})
        self.tenants[name] = None
        self._changed.discard(name)
        self._note_erasure(effect.erasure, row, "tenant", [one[0] for one in ended], [one[1] for one in ended])
        self._audit.append(name, _KINDS[TenantDeleted], ended=len(ended), version=row.version)

    def _restore_tenant(self, effect: TenantRestored) -> None:
        if effect.created is not None:
            self._create_tenant(effect.created)
        self._flush()
        row = self._tenant(effect.tenant)
        before = self._all_facts(row.name)
        self._connection.execute(_DELETE_ALL_FACTS, {"of": row.name})
        next_seq = self._collect_facts(row, effect.facts, None)
        self._change(replace(row, version=effect.version, next_seq=next_seq, facts=len(effect.facts)))
        staying = {stored.fact_id for stored in effect.facts}
        ended = [fact_id for fact_id, _ in before if fact_id not in staying]
        # All the old keys go: the facts that stay are sealed with new ones.
        self._note_erasure(effect.erasure, row, "restore", ended, [key_id for _, key_id in before])
        self._audit.append(
            row.name, _KINDS[TenantRestored], begun=len(effect.facts), ended=len(before), version=effect.version
        )

    def _write_facts(self, effect: FactsWritten) -> None:
        row = self._tenant(effect.tenant)
        begun, ended = len(effect.facts), len(effect.forgotten)
        key_ids = self._delete_facts(row, effect.forgotten)
        next_seq = self._collect_facts(row, effect.facts, effect.version)
        self._change(replace(row, version=effect.version, next_seq=next_seq, facts=row.facts + begun - ended))
        self._note_erasure(effect.erasure, row, "supersede", effect.forgotten, key_ids)
        self._audit.append(row.name, _KINDS[FactsWritten], begun=begun, ended=ended, version=effect.version)

    def _forget_facts(self, effect: FactsForgotten) -> None:
        row = self._tenant(effect.tenant)
        ended = len(effect.fact_ids)
        key_ids = self._delete_facts(row, effect.fact_ids)
        self._change(replace(row, version=effect.version, facts=row.facts - ended))
        self._note_erasure(effect.erasure, row, "forget", effect.fact_ids, key_ids)
        self._audit.append(row.name, _KINDS[FactsForgotten], ended=ended, version=effect.version)

    # -- rows ---------------------------------------------------------------------------------------------------

    def _tenant(self, name: str) -> TenantRow:
        row = self.tenants.get(name) if name in self.tenants else self._known.get(name)
        if row is None and name not in self.tenants:
            stored = self._connection.execute(_TENANT, {"of": name}).one_or_none()
            row = None if stored is None else unpack_tenant(stored)
        if row is None:
            raise EffectRefused(f"tenant {name!r} is not in the ledger")
        self.tenants[name] = row
        return row

    def _all_facts(self, name: str) -> list[tuple[str, int]]:
        """Ids of a tenant's facts and of their keys."""
        rows = self._connection.execute(_ALL_FACTS, {"of": name}).all()
        return [(bytes(fact_id).decode("utf-8", "replace"), key_id) for fact_id, key_id in rows]

    def _tenant_even_damaged(self, name: str) -> TenantRow:
        """As `_tenant`; of a damaged row only what ending the tenant needs, as far as it can still be read."""
        try:
            return self._tenant(name)
        except TenantDamaged:
            uid, version = self._connection.execute(_RAW_TENANT, {"of": name}).one()
            legible = isinstance(uid, str) and len(uid) == len(_UNKNOWN_UID) and set(uid) <= set("0123456789abcdef")
            return TenantRow(
                name,
                Retention.TEXT,
                b"",
                0.0,
                version=version if isinstance(version, int) else 0,
                next_seq=0,
                uid=uid if legible else _UNKNOWN_UID,
                facts=0,
            )

    def _change(self, row: TenantRow) -> None:
        self.tenants[row.name] = row
        self._changed.add(row.name)

    def _collect_facts(self, row: TenantRow, facts: Iterable[StoredFact], version: int | None) -> int:
        """Queue the facts for insertion; returns the position after the last. Positions are never used twice.

        `version` is the one that writes them, None to keep what each fact says.
        """
        name, next_seq, keys = row.name, row.next_seq, self._keys.get(row.uid, deque())
        for stored in facts:
            if stored.seq < next_seq:
                raise EffectRefused(f"fact {stored.seq} of tenant {name!r} comes after position {next_seq - 1}")
            next_seq = stored.seq + 1
            born = stored.version if version is None else version
            self._facts.append(pack_fact(name, stored, self._config, keys.popleft(), born))
            for tag in dict.fromkeys(stored.tags):
                self._tags.append((name, stored.seq, tag_digest(row.salt, tag)))
        return next_seq

    def _delete_facts(self, row: TenantRow, fact_ids: Sequence[str]) -> list[int]:
        """End facts; returns the ids of their keys."""
        if not fact_ids:
            return []
        self._flush()
        key_ids: list[int] = []
        for start in range(0, len(fact_ids), _IDS_PER_STATEMENT):
            some = list(fact_ids[start : start + _IDS_PER_STATEMENT])
            key_ids += self._connection.execute(_DELETE_FACTS, {"of": row.name, "ids": some}).scalars()
        if len(key_ids) != len(fact_ids):
            raise EffectRefused(f"tenant {row.name!r} has {len(key_ids)} of the {len(fact_ids)} facts to end")
        return key_ids

    def _note_erasure(
        self,
        erasure: Erasure | None,
        row: TenantRow,
        kind: ErasureKind,
        fact_ids: Sequence[str],
        key_ids: Sequence[int],
    ) -> None:
        if erasure is None:
            return
        task = ErasureRow(
            position=(self._connection.execute(_ERASURE_HEAD).scalar() or 0) + 1,
            receipt_id=erasure.receipt_id,
            tenant=row.name,
            uid=row.uid,
            kind=kind,
            fact_ids=tuple(fact_ids),
            key_ids=tuple(key_ids),
            requested_at=self._now,
            erase_by=erasure.erase_by,
            state_hash_before=erasure.state_hash_before,
            state_hash_after=erasure.state_hash_after,
            facts=len(fact_ids),
        )
        self._insert(erase_task, [pack_erasure(task)])

    def _flush(self) -> None:
        for table, rows in ((fact, self._facts), (fact_tag, self._tags), (idempotency, self._replies)):
            self._insert(table, rows)
            rows.clear()

    def _insert(self, table: sa.Table, rows: list[tuple[Any, ...]]) -> None:
        insert_rows(self._connection, table, rows)


def insert_rows(connection: sa.Connection, table: sa.Table, rows: list[tuple[Any, ...]]) -> None:
    """Insert complete rows, in column order. By the driver's own bulk call: Core would rebuild every row twice."""
    if rows:
        connection.exec_driver_sql(_insert_sql(connection.dialect, table), rows)


@lru_cache(maxsize=32)
def _insert_sql(dialect: sa.Dialect, table: sa.Table) -> str:
    """INSERT with one placeholder per column; the engine must have been made with a positional paramstyle."""
    return str(sa.insert(table).compile(dialect=dialect))
