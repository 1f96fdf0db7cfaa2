"""Ledgers on the test server, opened with one root key; and waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa

from memory_actor.ledger import Ledger
from memory_actor.ledger_postgres import PostgresLedger, open_postgres, open_vault_postgres
from memory_actor.ledger_schema import actor_epoch
from memory_actor.types import MemoryConfig
from tests.ledger_samples import CONFIG, ROOT_KEY
from tests.postgres_server import shared_server


def open_ledger(url: str, config: MemoryConfig = CONFIG, owner: str = "test", now: float = 1.0) -> Ledger:
    """A ledger, which closes its vault."""
    vault = open_vault_postgres(url, [ROOT_KEY])
    try:
        return Ledger.open(url, config, owner, now, vault)
    except BaseException:
        vault.close()
        raise


@contextmanager
def opened(url: str, config: MemoryConfig = CONFIG) -> Iterator[PostgresLedger]:
    """As `open_ledger`, without the statements of `Ledger`."""
    with open_vault_postgres(url, [ROOT_KEY]) as vault:
        ledger = open_postgres(url, config, "test", 1.0, vault)
        try:
            assert isinstance(ledger, PostgresLedger)
            yield ledger
        finally:
            ledger.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return once the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)  # between two looks


class PostgresEngine:
    """Schemas on the test server, for the contract tests. Changes from outside come over a connection of their own."""

    def __init__(self, folder: Path) -> None:
        self._prefix = shared_server().fresh_url()

    def open(self, config: MemoryConfig = CONFIG, name: str = "memory-00") -> Ledger:
        return open_ledger(self._location(name), config)

    def usurp(self, ledger: Ledger) -> None:
        row = {"epoch": ledger.epoch + 1, "owner": "usurper", "started_at": 2.0}
        self.tamper(ledger, sa.insert(actor_epoch).values(row))

    def tamper(self, ledger: Ledger, statement: sa.Executable) -> None:
        schema = ledger.location.partition("(schema ")[2].removesuffix(")")
        way_in = shared_server().url_of(schema)
        engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(way_in))
        with engine.begin() as connection:
            connection.execute(statement)
        engine.dispose()

    def _location(self, name: str) -> str:
        return f"{self._prefix}_{name.replace('-', '_')}"
