"""What an opener hands to the ledger: a database that is checked, migrated, locked and fenced.

One subclass per engine, beside its opener (`ledger_sqlite`, `ledger_postgres`). Everything the engines do differently
is a method here; all other SQL is SQLAlchemy Core and the same for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from memory_actor.vault import Vault


@dataclass(frozen=True, kw_only=True)
class OpenedLedger(ABC):
    """An open ledger database whose newest epoch is ours.

    `connection` is the only one; bulk inserts bypass Core, so its engine needs a positional paramstyle (SQLite has one
    anyhow; for psycopg pass `paramstyle="format"` to `create_engine`). `salt` keys the hashes of idempotency keys.
    """

    engine_name: ClassVar[str]
    #: Whether `truncate_log` may run while another thread commits.
    truncates_beside_commits: ClassVar[bool] = False
    beyond_reach: ClassVar[tuple[str, ...]] = ()
    """What `truncate_log` cannot reach, as plain sentences for receipts of erasures."""

    connection: sa.Connection
    location: str  # for messages, without secrets
    salt: bytes
    epoch: int
    vault: Vault

    @abstractmethod
    def lock_epoch(self) -> int:
        """The newest epoch; called first in every write transaction.

        From then until the transaction ends no other incarnation can take an epoch. SQLite holds its file lock all
        along; PostgreSQL must lock here what a take-over locks too (an advisory lock, or the row that both update),
        and read the epoch in a statement after that, so that its snapshot is younger than the lock.
        """

    @abstractmethod
    def truncate_log(self) -> None:
        """Leave no bytes of deleted rows: SQLite empties the write-ahead log, PostgreSQL vacuums the tables.

        Called outside transactions. Raises LedgerFailed.
        """

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Free space where the database grows, None when it cannot be known from here."""

    @abstractmethod
    def is_damage(self, error: BaseException | None) -> bool:
        """Whether a failed read means that stored bytes changed (rather than that they cannot be reached)."""

    @abstractmethod
    def is_undecodable(self, error: BaseException | None) -> bool:
        """Whether it is one stored value that cannot be decoded: damage of a row, not of the database."""

    @abstractmethod
    def reason_of(self, error: BaseException | None) -> str:
        """What the database says, in our words: messages of drivers may quote stored text."""

    def close(self) -> None:
        """Release the connection and with it the lock. The vault stays open."""
        self.connection.close()
        self.connection.engine.dispose()
