"""PostgreSQL's processes are killed with SIGKILL during commits; what was acknowledged is there afterwards, once."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from memory_actor.effects import StoredFact
from memory_actor.errors import Fenced, LedgerFailed
from memory_actor.ledger import Ledger, LedgerEntry
from tests.ledger_samples import created, idempotency, make_fact, plain, written
from tests.postgres_ledgers import open_ledger
from tests.postgres_server import PostgresServer, start_server

ROUNDS = int(os.environ.get("LARIMAR_TEST_POSTGRES_KILLS", "9"))
GROUP = 3  # facts of one request, and of one commit
SERIES_S = 0.15  # the longest time from the first commit to the kill


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    own = start_server()
    yield own
    own.remove()


def write_until_it_fails(ledger: Ledger, first: int, begun: threading.Event) -> int:
    """Commit request after request; returns how many were acknowledged."""
    done = 0
    try:
        while True:
            ledger.commit([_write(first + done)], 2.0)
            done += 1
            begun.set()
    except (LedgerFailed, Fenced):
        return done


def _write(request: int) -> LedgerEntry:
    facts = [_fact(seq) for seq in range(GROUP * request + 1, GROUP * (request + 1) + 1)]
    return written("acme", request + 1, *facts, key=f"k{request}")


def _fact(seq: int) -> StoredFact:
    return make_fact(seq, np.random.default_rng(seq))


def kill_backend(server: PostgresServer) -> None:
    """The process that serves the ledger's session; the server then resets itself and recovers."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'larimar kill_00'"
    ((pid,),) = server.sql(query)
    os.kill(int(str(pid)), signal.SIGKILL)


def kill_postmaster(server: PostgresServer) -> None:
    """The server's first process; the others end when they notice."""
    server.kill()
    server.start()


def kill_all(server: PostgresServer) -> None:
    """Every process at once."""
    pids = [int(str(pid)) for (pid,) in server.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")]
    os.kill(server.pid, signal.SIGSTOP)  # it must not react to the deaths of its children
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.kill()
    server.start()


KINDS: tuple[Callable[[PostgresServer], None], ...] = (kill_backend, kill_postmaster, kill_all)


def test_a_killed_server_loses_nothing_acknowledged(server: PostgresServer):
    """After each kill: acknowledged requests are whole and in order, at most one more is, replies and chain agree."""
    url = f"{server.ledger_url()}&schema=kill_00"
    draw = random.Random(20260104)
    stored = 0
    acknowledged = 0
    for number in range(ROUNDS):
        with open_ledger(url) as ledger:
            if number == 0:
                ledger.commit([created("acme")], 1.0)
            begun, counts = threading.Event(), []
            first = stored
            writer = threading.Thread(
                target=lambda: counts.append(write_until_it_fails(ledger, first, begun))  # noqa: B023 - joined below
            )
            writer.start()
            assert begun.wait(30)
            threading.Event().wait(draw.uniform(0, SERIES_S))  # the moment of the kill is what is random here
            KINDS[number % len(KINDS)](server)
            writer.join(timeout=60)
            assert counts, "the writer did not end"
        with open_ledger(url) as ledger:  # waits for a server that is still recovering
            facts = ledger.facts("acme", limit=10**6)
            assert first + counts[0] <= len(facts) // GROUP <= first + counts[0] + 1
            assert [plain(fact) for fact in facts] == [plain(_fact(seq)) for seq in range(1, len(facts) + 1)]
            stored = len(facts) // GROUP
            assert len(facts) == stored * GROUP
            replies = [ledger.idempotent_reply("acme", idempotency(f"k{request}")) for request in range(stored + 1)]
            assert replies == [*(b"reply to k%d" % request for request in range(stored)), None]
            assert ledger.audit_chain_ok()
        acknowledged += counts[0]
    assert acknowledged >= ROUNDS
