"""What the ledger tells: tenants, facts, listings, stored replies, the audit chain. Every value is verified first."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from memory_actor.effects import StoredFact
from memory_actor.errors import IdempotencyKeyReused, LedgerCorrupt
from memory_actor.ledger_facts import KEY_ID, tag_digest, unpack_fact, unpack_record
from memory_actor.ledger_rows import (
    GENESIS,
    RowDamaged,
    TenantDamaged,
    TenantRow,
    chain,
    idempotency_key_hash,
    request_hash,
    unpack_reply,
    unpack_tenant,
)
from memory_actor.ledger_schema import actor_epoch, audit, fact, fact_tag, idempotency, tenant
from memory_actor.ledger_session import LedgerSession, key_damage
from memory_actor.sealing import SealBroken
from memory_actor.types import FactRecord, Idempotency

_Unpacked = TypeVar("_Unpacked", StoredFact, FactRecord)

_IDS_PER_STATEMENT = 500  # SQLite allows 32,766 bound values, PostgreSQL 65,535
_RECORD_COLUMNS = [column for column in fact.c if column is not fact.c.vectors]

_OF = fact.c.tenant == sa.bindparam("of")
_AFTER = fact.c.seq > sa.bindparam("after")
_IDS = fact.c.fact_id.in_(sa.bindparam("ids", expanding=True))
_FACTS = sa.select(fact).where(_OF, _AFTER).order_by(fact.c.seq).limit(sa.bindparam("n"))
_FACTS_BY_ID = sa.select(fact).where(_OF, _IDS).order_by(fact.c.seq)
_RECORDS = sa.select(*_RECORD_COLUMNS).where(_OF, _AFTER).order_by(fact.c.seq).limit(sa.bindparam("n"))
_RECORD = sa.select(*_RECORD_COLUMNS).where(_OF, fact.c.fact_id == sa.bindparam("id"))
_LIVE_IDS = sa.select(fact.c.fact_id, fact.c.seq).where(_OF).order_by(fact.c.seq)
_COUNT = sa.select(sa.func.count()).select_from(fact).where(_OF)
_TENANT_NAMES = sa.select(tenant.c.name).order_by(tenant.c.name)
_TENANT = sa.select(tenant).where(tenant.c.name == sa.bindparam("of"))
_TENANTS = sa.select(tenant).order_by(tenant.c.name)
_REPLY = sa.select(idempotency).where(
    idempotency.c.tenant == sa.bindparam("of"), idempotency.c.key_hash == sa.bindparam("key")
)
_NEWEST_EPOCH = sa.select(sa.func.max(actor_epoch.c.epoch))
_AUDIT = sa.select(audit).where(audit.c.position > sa.bindparam("after")).order_by(audit.c.position).limit(4096)


class LedgerReader(LedgerSession):
    """Reads. A damaged row of one tenant raises TenantDamaged, damage beyond that LedgerCorrupt."""

    # -- tenants ------------------------------------------------------------------------------------------------

    def tenants(self) -> list[TenantRow]:
        """All tenants by name, less those whose row is damaged: see `damaged_tenants`."""
        return self._all_tenants()[0]

    def damaged_tenants(self) -> list[TenantDamaged]:
        """Tenants whose row is damaged, which must be refused and not be taken for unknown."""
        return self._all_tenants()[1]

    def tenant_row(self, name: str) -> TenantRow | None:
        """The tenant as stored now, None when there is none. Raises TenantDamaged."""
        with self._lock:
            rows = self._rows(_TENANT, {"of": name}, name)
        return unpack_tenant(rows[0]) if rows else None

    def _all_tenants(self) -> tuple[list[TenantRow], list[TenantDamaged]]:
        with self._lock:
            try:
                rows: list[sa.Row[Any] | TenantDamaged] = list(self._rows(_TENANTS, {}))
            except LedgerCorrupt:
                # One value that cannot be decoded hides all the others; names alone come from their index.
                rows = [self._tenant_or_damage(name) for (name,) in self._rows(_TENANT_NAMES, {})]
        intact: list[TenantRow] = []
        damaged: list[TenantDamaged] = []
        for row in rows:
            try:
                intact.append(unpack_tenant(_raise_damage(row)))
            except TenantDamaged as damage:
                damaged.append(damage)
        return intact, damaged

    def _tenant_or_damage(self, name: str) -> sa.Row[Any] | TenantDamaged:
        try:
            return self._rows(_TENANT, {"of": name}, name)[0]
        except TenantDamaged as damage:
            return damage

    # -- facts --------------------------------------------------------------------------------------------------

    def facts(self, tenant: str, *, after_seq: int = 0, limit: int = 2048) -> list[StoredFact]:
        """The next `limit` facts after position `after_seq`, in order; fewer mean the end.

        At the end the number of stored facts is compared with the tenant's count. Raises TenantDamaged.
        """
        values = {"of": tenant, "after": after_seq, "n": limit}
        rows, keys = self._sealed(tenant, _FACTS, values, whole=lambda found: len(found) < limit)
        return self._unpacked(tenant, rows, partial(unpack_fact, keys=keys, config=self._config))

    def facts_by_id(self, tenant: str, fact_ids: Sequence[str]) -> list[StoredFact]:
        """Those of the facts that exist, in order of position. Raises TenantDamaged."""
        found: list[StoredFact] = []
        wanted = list(dict.fromkeys(fact_ids))
        for start in range(0, len(wanted), _IDS_PER_STATEMENT):
            some = wanted[start : start + _IDS_PER_STATEMENT]
            rows, keys = self._sealed(tenant, _FACTS_BY_ID, {"of": tenant, "ids": some})
            found += self._unpacked(tenant, rows, partial(unpack_fact, keys=keys, config=self._config))
        return sorted(found, key=lambda one: one.seq)

    def fact_records(self, tenant: str, after_seq: int = 0, limit: int = 100) -> list[FactRecord]:
        """As `facts`, without opening vectors."""
        return self._records(tenant, _RECORDS, {"of": tenant, "after": after_seq, "n": limit})

    def record(self, tenant: str, fact_id: str) -> FactRecord | None:
        """One fact as listed, None when the tenant has no such fact."""
        records = self._records(tenant, _RECORD, {"of": tenant, "id": fact_id})
        return records[0] if records else None

    def select_ids(
        self, tenant: str, tags: Sequence[str] | None = None, before: float | None = None, limit: int = 1000
    ) -> list[FactRecord]:
        """The first `limit` facts that have all of `tags` and were written before `before`, in order."""
        wanted = list(dict.fromkeys(tags or ()))
        with self._lock:
            row = self._tenant(tenant)
        if row is None:
            return []
        statement = sa.select(*_RECORD_COLUMNS).where(_OF).order_by(fact.c.seq).limit(limit)
        if before is not None:
            statement = statement.where(fact.c.created_at < before)
        for tag in wanted:
            tagged = sa.select(fact_tag.c.seq).where(
                fact_tag.c.tenant == tenant, fact_tag.c.tag == tag_digest(row.salt, tag)
            )
            statement = statement.where(fact.c.seq.in_(tagged))
        records = self._records(tenant, statement, {"of": tenant})
        if any(not set(wanted) <= set(record.tags) for record in records):
            raise TenantDamaged(tenant, "its index of tags does not agree with its facts")
        return records

    def live_ids(self, tenant: str) -> list[tuple[str, int]]:
        """Id and position of every live fact in order of position; opens nothing. Raises TenantDamaged."""
        with self._lock:
            row = self._tenant(tenant)
            rows = self._rows(_LIVE_IDS, {"of": tenant}, tenant) if row else []
        if row is not None and len(rows) != row.facts:
            raise _miscounted(row, len(rows))
        return [(one.fact_id, one.seq) for one in rows]

    # -- replies and audit --------------------------------------------------------------------------------------

    def idempotent_reply(self, tenant: str, idempotency: Idempotency) -> bytes | None:
        """The reply stored for the key, None for a new key; `tenant` is "" for operations on no tenant.

        Raises: IdempotencyKeyReused when the key came with another endpoint or request.
        """
        salt = self._opened.salt
        values = {"of": tenant, "key": idempotency_key_hash(salt, tenant, idempotency.key)}
        with self._lock:
            rows = self._rows(_REPLY, values, tenant or None)
        if not rows:
            return None
        with self._damage_of(tenant):
            endpoint, stored_hash, reply = unpack_reply(rows[0])
        same_request = hmac.compare_digest(stored_hash, request_hash(salt, idempotency.request_digest))
        if endpoint != idempotency.endpoint or not same_request:
            raise IdempotencyKeyReused(endpoint)
        return reply

    def newest_epoch(self) -> int:
        """The newest incarnation's number: more than `epoch` once another process took over."""
        with self._lock:
            newest: int = self._rows(_NEWEST_EPOCH, {})[0][0]
        return newest

    def audit_chain_ok(self) -> bool:
        """Whether every audit entry follows from the one before it. Cannot see a cut-off end: anchor the last hash."""
        position, head = 0, GENESIS
        while True:
            with self._lock:
                rows = self._rows(_AUDIT, {"after": position})
            if not rows:
                return True
            for row in rows:
                position, head = position + 1, chain(head, row[:-1])
                if (row[0], row[-1]) != (position, head):
                    return False

    # -- inside -------------------------------------------------------------------------------------------------

    def _records(self, name: str, statement: sa.Select[Any], values: dict[str, Any]) -> list[FactRecord]:
        rows, keys = self._sealed(name, statement, values)
        return self._unpacked(name, rows, partial(unpack_record, keys=keys))

    def _sealed(
        self,
        name: str,
        statement: sa.Select[Any],
        values: dict[str, Any],
        whole: Callable[[Sequence[sa.Row[Any]]], bool] = lambda _: False,
    ) -> tuple[Sequence[sa.Row[Any]], Mapping[int, bytes]]:
        """Rows of a tenant's facts and their keys. `whole` says of the rows whether the tenant is to be counted."""
        with self._lock:
            row, rows = self._counted(name, statement, values, whole)
        if row is None:
            return [], {}
        keys = self._keys_of(row, rows)
        if len(keys) == len(rows):
            return rows, keys
        # Erased since the rows were read? With the lock held nothing is forgotten, and keys go after their facts.
        with self._lock:
            row, rows = self._counted(name, statement, values, whole)
            return rows, {} if row is None else self._keys_of(row, rows)

    def _counted(
        self,
        name: str,
        statement: sa.Select[Any],
        values: dict[str, Any],
        whole: Callable[[Sequence[sa.Row[Any]]], bool],
    ) -> tuple[TenantRow | None, Sequence[sa.Row[Any]]]:
        row = self._tenant(name)
        if row is None:
            return None, []
        rows = self._rows(statement, values, name)
        if whole(rows):
            count = self._rows(_COUNT, {"of": name})[0][0]
            if count != row.facts:
                raise _miscounted(row, count)
        return row, rows

    def _keys_of(self, row: TenantRow, rows: Sequence[sa.Row[Any]]) -> dict[int, bytes]:
        try:
            return self.vault.data_keys(row.uid, [one[KEY_ID] for one in rows])
        except SealBroken as error:
            raise key_damage(row.name, error) from error
        except (TypeError, OverflowError) as error:
            raise TenantDamaged(row.name, "a fact names a data key that cannot exist") from error

    def _unpacked(
        self, name: str, rows: Sequence[sa.Row[Any]], unpack: Callable[[sa.Row[Any]], _Unpacked]
    ) -> list[_Unpacked]:
        with self._damage_of(name):
            return [unpack(row) for row in rows]

    @contextmanager
    def _damage_of(self, name: str) -> Iterator[None]:
        """Name the tenant whose row is damaged; the ledger, for rows of no tenant."""
        try:
            yield
        except RowDamaged as error:
            raise (TenantDamaged(name, str(error)) if name else LedgerCorrupt(self.location, str(error))) from error


def _raise_damage(row: sa.Row[Any] | TenantDamaged) -> sa.Row[Any]:
    if isinstance(row, TenantDamaged):
        raise row
    return row


def _miscounted(row: TenantRow, found: int) -> TenantDamaged:
    return TenantDamaged(row.name, f"{found} of its {row.facts} facts are stored")
