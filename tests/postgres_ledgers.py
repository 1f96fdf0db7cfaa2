"""Ledgers on the test server, opened with one root key; and waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from memory_actor.ledger import Ledger
from memory_actor.ledger_postgres import PostgresLedger, open_postgres, open_vault_postgres
from memory_actor.types import MemoryConfig
from tests.ledger_samples import CONFIG

ROOT_KEY: Final = bytes(range(32))


@contextmanager
def open_ledger(url: str, owner: str = "test") -> Iterator[Ledger]:
    """A ledger with its vault; both are closed afterwards."""
    with open_vault_postgres(url, [ROOT_KEY]) as vault, Ledger.open(url, CONFIG, owner, 1.0, vault) as ledger:
        yield ledger


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
