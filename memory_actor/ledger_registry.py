"""Erasures and checkpoints in the ledger: what is still to be destroyed, and which files hold copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa

from memory_actor.crash_points import reached
from memory_actor.ledger_audit import AuditChain
from memory_actor.ledger_erasures import ErasureRow, pack_checkpoint, pack_erasure, unpack_checkpoint, unpack_erasure
from memory_actor.ledger_rows import RowDamaged, TenantDamaged
from memory_actor.ledger_schema import audit, checkpoint, erase_task
from memory_actor.ledger_session import LedgerSession
from memory_actor.ledger_writer import EffectRefused, insert_rows
from memory_actor.types import CheckpointInfo

_Row = TypeVar("_Row")

_ERASURES = sa.select(erase_task).order_by(erase_task.c.position)
_PENDING = _ERASURES.where(erase_task.c.done_at.is_(None))
_ERASURE = sa.select(erase_task).where(erase_task.c.receipt_id == sa.bindparam("id"))
_COMPLETE = (
    sa.update(erase_task)
    .where(erase_task.c.position == sa.bindparam("at"))
    .values({name: sa.bindparam(f"new_{name}") for name in ("ended", "done_at", "receipt", "checksum")})
)
_CHECKPOINTS = sa.select(checkpoint).order_by(checkpoint.c.created_at, checkpoint.c.checkpoint_id)
_CHECKPOINTS_OF = _CHECKPOINTS.where(checkpoint.c.uid == sa.bindparam("uid"))
_REMOVE = sa.delete(checkpoint).where(checkpoint.c.checkpoint_id.in_(sa.bindparam("ids", expanding=True)))


class LedgerRegistry(LedgerSession):
    """Each change is one transaction, fenced like a commit, and refused for good after a failed one."""

    # -- erasures -----------------------------------------------------------------------------------------------

    def erasures(self, pending_only: bool = True) -> list[ErasureRow]:
        """Erasures in the order they were asked for, less those whose row is damaged: see `damaged_registrations`."""
        return self._intact(_PENDING if pending_only else _ERASURES, {}, unpack_erasure)[0]

    def erasure(self, receipt_id: str) -> ErasureRow | None:
        """One erasure, None when no such receipt was promised. Raises TenantDamaged."""
        with self._lock:
            rows = self._rows(_ERASURE, {"id": receipt_id})
        return _unpacked(rows[0], unpack_erasure) if rows else None

    def complete_erasure(self, receipt_id: str, receipt: str, now: float) -> None:
        """Note that everything is destroyed: keep the signed receipt, drop the ids of facts and keys.

        Nothing happens when it is done already. Raises Fenced, LedgerFailed.
        """
        with self._lock, self._writing():
            rows = self._connection.execute(_ERASURE, {"id": receipt_id}).all()
            if not rows:
                raise EffectRefused(f"no erasure has the receipt id {receipt_id!r}")
            row = unpack_erasure(rows[0])
            if row.done_at is not None:
                return
            done = pack_erasure(replace(row, fact_ids=(), key_ids=(), done_at=float(now), receipt=receipt))
            values = {"at": row.position, "new_ended": done[5], "new_done_at": done[11], "new_receipt": done[12]}
            self._connection.execute(_COMPLETE, values | {"new_checksum": done[13]})
            chain = AuditChain(self._connection, self.epoch, now)
            chain.append(row.tenant, "erased", ended=row.facts)
            insert_rows(self._connection, audit, chain.rows)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def checkpoints(self, uid: str | None = None) -> list[CheckpointInfo]:
        """Registered checkpoints, oldest first, of one incarnation or of all; less those whose row is damaged."""
        statement = _CHECKPOINTS if uid is None else _CHECKPOINTS_OF
        return self._intact(statement, {} if uid is None else {"uid": uid}, unpack_checkpoint)[0]

    def add_checkpoint(self, info: CheckpointInfo, replaces: str | None = None) -> None:
        """Register a published checkpoint, in the same transaction in the place of another one.

        Raises Fenced, LedgerFailed.
        """
        with self._lock, self._writing():
            reached("mark.before")
            if replaces is not None:
                self._connection.execute(_REMOVE, {"ids": [replaces]})
            self._connection.execute(sa.insert(checkpoint).values(pack_checkpoint(info)))

    def remove_checkpoints(self, ids: Sequence[str]) -> None:
        """Take checkpoints off the register; unknown ids are no error. Raises Fenced, LedgerFailed."""
        if ids:
            with self._lock, self._writing():
                self._connection.execute(_REMOVE, {"ids": list(ids)})

    def damaged_registrations(self) -> list[TenantDamaged]:
        """Erasures and checkpoints whose row is damaged: something may be left that nobody destroys."""
        return self.damaged_erasures() + self._intact(_CHECKPOINTS, {}, unpack_checkpoint)[1]

    def damaged_erasures(self) -> list[TenantDamaged]:
        """Erasures whose row is damaged, done ones too: whether one was done is among what cannot be believed."""
        return self._intact(_ERASURES, {}, unpack_erasure)[1]

    # -- inside -------------------------------------------------------------------------------------------------

    def _intact(
        self, statement: sa.Select[Any], values: dict[str, Any], unpack: Callable[[Sequence[Any]], _Row]
    ) -> tuple[list[_Row], list[TenantDamaged]]:
        with self._lock:
            rows = self._rows(statement, values)
        intact: list[_Row] = []
        damaged: list[TenantDamaged] = []
        for row in rows:
            try:
                intact.append(_unpacked(row, unpack))
            except TenantDamaged as damage:
                damaged.append(damage)
        return intact, damaged


def _unpacked(row: sa.Row[Any], unpack: Callable[[Sequence[Any]], _Row]) -> _Row:
    try:
        return unpack(row)
    except RowDamaged as damage:
        raise TenantDamaged(str(row.tenant), str(damage)) from damage
