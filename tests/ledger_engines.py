"""The database engines that the ledger's contract tests run on. A new one adds a class and its name to `ENGINES`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from memory_actor.ledger import Ledger
from memory_actor.ledger_schema import actor_epoch
from memory_actor.types import MemoryConfig
from tests.ledger_samples import CONFIG, open_ledger
from tests.postgres_ledgers import PostgresEngine


class Engine(Protocol):
    """One database engine under test."""

    def open(self, config: MemoryConfig = CONFIG, name: str = "memory-00") -> Ledger:
        """Open ledger `name`; opening the same name again finds what was committed."""
        ...

    def usurp(self, ledger: Ledger) -> None:
        """Let another incarnation take the next epoch under the ledger's feet."""
        ...

    def tamper(self, ledger: Ledger, statement: sa.Executable) -> None:
        """Change stored rows behind the ledger's back."""
        ...


class SqliteEngine:
    """SQLite files. Since the file is locked, changes from outside go through the ledger's own connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, config: MemoryConfig = CONFIG, name: str = "memory-00") -> Ledger:
        return open_ledger(self._folder / "ledger" / f"{name}.sqlite", config)

    def usurp(self, ledger: Ledger) -> None:
        row = {"epoch": ledger.epoch + 1, "owner": "usurper", "started_at": 2.0}
        self.tamper(ledger, sa.insert(actor_epoch).values(row))

    def tamper(self, ledger: Ledger, statement: sa.Executable) -> None:
        with ledger._connection.begin():
            ledger._connection.execute(statement)


ENGINES = {"sqlite": SqliteEngine, "postgresql": PostgresEngine}
