"""Transactions on an opened ledger: one lock, one connection, errors in our words, and no commit after a failed one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from memory_actor.errors import Fenced, LarimarError, LedgerCorrupt, LedgerFailed
from memory_actor.ledger_opened import OpenedLedger
from memory_actor.ledger_rows import RowDamaged, TenantDamaged, TenantRow, unpack_tenant
from memory_actor.ledger_schema import tenant
from memory_actor.ledger_writer import EffectRefused
from memory_actor.sealing import SealBroken
from memory_actor.types import MemoryConfig
from memory_actor.vault import Vault

_KNOWN_MAX = 4096  # tenant rows kept in memory
_TENANT = sa.select(tenant).where(tenant.c.name == sa.bindparam("of"))


class LedgerSession:
    """Safe to share between threads: the lock is held for one transaction or one page."""

    def __init__(self, opened: OpenedLedger, config: MemoryConfig) -> None:
        """Use `Ledger.open`."""
        self._opened = opened
        self._connection = opened.connection
        self._config = config
        self._lock = threading.Lock()
        self._stopped: LarimarError | None = None
        #: Tenant rows as of the last commit: while the epoch is ours nobody else changes them.
        self._known: dict[str, TenantRow] = {}

    @property
    def epoch(self) -> int:
        """This incarnation's number; grows by one with each open."""
        return self._opened.epoch

    @property
    def location(self) -> str:
        """The file or server, for messages."""
        return self._opened.location

    @property
    def engine_name(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._opened.engine_name

    @property
    def beyond_reach(self) -> tuple[str, ...]:
        """Where bytes of what was erased may stay, as sentences for receipts; see `OpenedLedger`."""
        return self._opened.beyond_reach

    @property
    def vault(self) -> Vault:
        """The keys that the facts are sealed with."""
        return self._opened.vault

    # -- with the lock held -------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One write transaction of an incarnation that nobody superseded.

        Whatever fails in it stops the ledger, since a failed flush must not be retried.
        """
        with self._stopping():
            self._require_open()
            with self._connection.begin():
                newest = self._opened.lock_epoch()
                if newest != self.epoch:
                    raise Fenced(self.epoch, newest)
                yield

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Turn whatever storage raises into an error that is raised again for each later change."""
        if self._stopped is not None:
            raise type(self._stopped)(*self._stopped.args)
        try:
            yield
        except (Fenced, LedgerFailed) as error:
            self._stopped = error
            raise
        except sa.exc.DBAPIError as error:
            self._stopped = LedgerFailed(self.location, self._opened.reason_of(error.orig))
            raise self._stopped from error
        except OSError as error:
            self._stopped = LedgerFailed(self.location, error.strerror or type(error).__name__)
            raise self._stopped from error
        except (sa.exc.SQLAlchemyError, EffectRefused, RowDamaged, TenantDamaged, ValueError) as error:
            self._stopped = LedgerFailed(self.location, str(error))
            raise self._stopped from error

    @contextmanager
    def _reading(self, name: str | None = None) -> Iterator[None]:
        """One read transaction; of the tenant `name` only, when a value that cannot be decoded is its damage alone."""
        self._require_open()
        try:
            with self._connection.begin():
                yield
        except sa.exc.DBAPIError as error:
            if name is not None and self._opened.is_undecodable(error.orig):
                raise TenantDamaged(name, "a stored value cannot be decoded") from error
            if self._opened.is_damage(error.orig):
                reason = f"it cannot be read: {self._opened.reason_of(error.orig)}"
                raise LedgerCorrupt(self.location, reason) from error
            raise LedgerFailed(self.location, self._opened.reason_of(error.orig)) from error

    def _rows(self, statement: sa.Executable, values: dict[str, Any], name: str | None = None) -> Sequence[sa.Row[Any]]:
        with self._reading(name):
            return self._connection.execute(statement, values).all()

    def _tenant(self, name: str) -> TenantRow | None:
        """The tenant's row, None when there is none. Raises TenantDamaged."""
        if name not in self._known:
            rows = self._rows(_TENANT, {"of": name}, name)
            if not rows:
                return None
            self._know({name: unpack_tenant(rows[0])})
        return self._known[name]

    def _know(self, changed: dict[str, TenantRow | None]) -> None:
        """Keep rows in memory as they are stored now; None for a tenant that ended."""
        for name, row in changed.items():
            self._known.pop(name, None)
            if row is not None:
                self._known[name] = row
        while len(self._known) > _KNOWN_MAX:
            del self._known[next(iter(self._known))]

    def _require_open(self) -> None:
        if self._connection.closed:
            raise LedgerFailed(self.location, "it is closed")


def key_damage(name: str, error: SealBroken) -> TenantDamaged:
    """The vault's complaint about a key, as one about the tenant whose facts it seals."""
    return TenantDamaged(name, getattr(error, "reason", "a data key does not open"))
