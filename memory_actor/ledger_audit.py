"""The audit chain as it grows: one content-free entry for each change, each hashed over the one before it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from memory_actor.ledger_rows import GENESIS, chain
from memory_actor.ledger_schema import audit

_HEAD = sa.select(audit.c.position, audit.c.hash).order_by(audit.c.position.desc()).limit(1)


class AuditChain:
    """The entries that one transaction adds. `rows` are complete rows of the table, for the caller to insert."""

    def __init__(self, connection: sa.Connection, epoch: int, now: float) -> None:
        """Goes on after the last entry stored, as incarnation `epoch` at `now` seconds."""
        head = connection.execute(_HEAD).one_or_none()
        self._position, self._head = (0, GENESIS) if head is None else (int(head[0]), bytes(head[1]))
        self._epoch, self._now = epoch, float(now)
        self.rows: list[tuple[Any, ...]] = []

    def append(self, tenant: str, kind: str, begun: int = 0, ended: int = 0, version: int = 0) -> None:
        """Add an entry: what happened to which tenant, how many facts began and ended, its version afterwards."""
        self._position += 1
        row = (self._position, self._now, self._epoch, tenant, kind, begun, ended, version)
        self._head = chain(self._head, row)
        self.rows.append((*row, self._head))
