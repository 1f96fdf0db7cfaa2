"""A process that commits is killed with SIGKILL at random moments; what it acknowledged is there afterwards, once."""

from __future__ import annotations

import os
import random
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memory_actor.effects import StoredFact
from memory_actor.ledger import Ledger, LedgerEntry
from tests.ledger_samples import created, idempotency, make_fact, open_ledger, plain, written

KILLS = int(os.environ.get("LARIMAR_TEST_KILLS", "30"))
GROUP = 3  # facts of one request; a commit has one or two requests


def write_for_ever(path: Path) -> None:
    """The victim: commit group after group, and say on stdout which requests were acknowledged.

    Request n writes facts GROUP * n + 1 … GROUP * n + GROUP under the key `k<n>`. A request that was answered before
    the last kill is recognised by its key and not applied again.
    """
    print("opening", flush=True)
    with open_ledger(path, owner="victim") as ledger:
        if not ledger.tenants():
            ledger.commit([created("acme")], 1.0)
        done = (ledger.tenants()[0].next_seq - 1) // GROUP
        # As a client does that heard nothing: send the last request again, with the same key.
        request = max(0, done - 1)
        while True:
            size = 1 + request % 2
            fresh = [n for n in range(request, request + size) if not _answered(ledger, n)]
            ledger.commit([_write(n) for n in fresh], 2.0)
            request += size
            print(f"ack {request - 1}", flush=True)


def _answered(ledger: Ledger, request: int) -> bool:
    reply = ledger.idempotent_reply("acme", idempotency(f"k{request}"))
    assert reply in (None, b"reply to k%d" % request)
    return reply is not None


def _write(request: int) -> LedgerEntry:
    facts = [_fact(seq) for seq in range(GROUP * request + 1, GROUP * (request + 1) + 1)]
    return written("acme", request + 1, *facts, key=f"k{request}")


def _fact(seq: int) -> StoredFact:
    return make_fact(seq, np.random.default_rng(seq))


def run_and_kill(path: Path, wait_s: float) -> int:
    """Start a victim and kill it `wait_s` after it began to open the ledger.

    Returns the last request that it acknowledged, -1 when there was none.
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, __file__, str(path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as victim:
        assert victim.stdout is not None
        said = b""
        with selectors.DefaultSelector() as ready:
            ready.register(victim.stdout, selectors.EVENT_READ)
            deadline = time.monotonic() + 60
            kill_at = deadline
            while time.monotonic() < kill_at:
                if ready.select(max(0.0, min(kill_at - time.monotonic(), 1.0))):
                    piece = os.read(victim.stdout.fileno(), 65536)
                    assert piece, "the victim ended by itself"
                    if not said:
                        kill_at = time.monotonic() + wait_s
                    said += piece
        victim.send_signal(signal.SIGKILL)
        said += victim.stdout.read()
    acknowledged = [int(line.split()[1]) for line in said[: said.rfind(b"\n")].split(b"\n") if line.startswith(b"ack")]
    return acknowledged[-1] if acknowledged else -1


@pytest.mark.parametrize("seed", [11])
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path, seed: int):
    """After each of many kills: acknowledged facts are there, none twice, no request by half, replies repeat."""
    path = tmp_path / "ledger" / "memory-00.sqlite"
    draw = random.Random(seed)
    expected: list[object] = []
    commits = 0
    for number in range(KILLS):
        # The first start creates and migrates the file, which takes about 0.3 s longer.
        last = run_and_kill(path, draw.uniform(0, 0.5 if number < 4 else 0.12))
        commits += last >= 0
        with open_ledger(path, owner="examiner") as ledger:
            facts = ledger.facts("acme", limit=10**6)
            # Whole requests, in order, no gap and no repetition, nothing that was there before is missing; at most
            # one commit of two requests more than was acknowledged.
            assert [fact.seq for fact in facts] == list(range(1, len(facts) + 1))
            assert len(facts) % GROUP == 0
            stored, known = len(facts) // GROUP, max(last + 1, len(expected) // GROUP)
            assert known <= stored <= known + 2
            expected += [plain(_fact(seq)) for seq in range(len(expected) + 1, len(facts) + 1)]
            assert [plain(fact) for fact in facts] == expected
            for request in range(stored):
                assert ledger.idempotent_reply("acme", idempotency(f"k{request}")) == b"reply to k%d" % request
            assert ledger.idempotent_reply("acme", idempotency(f"k{stored}")) is None
            assert ledger.audit_chain_ok()
    assert commits > KILLS / 3  # the kills came during opening and during commits, not all before


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
