"""The eraser over lists: its order, what one pass shares, what waits, and that every broken-off pass is repeatable."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace

import pytest

from memory_actor import crash_points
from memory_actor.eraser import Eraser, Purged
from memory_actor.errors import LedgerFailed, LocationUnavailable, Overloaded
from memory_actor.ledger_erasures import ErasureRow
from memory_actor.receipts import ReceiptSigner, verify_receipt

TIMEOUT_S = 10
ACME, GLOBEX = "a" * 32, "b" * 32
POINTS = ("erase.before_key", "erase.after_key", "erase.after_checkpoints", "erase.before_done")


def erasure(number: int, uid: str = ACME, kind: str = "forget", facts: int = 2) -> ErasureRow:
    return ErasureRow(
        position=number,
        receipt_id=f"r_{number}",
        tenant="acme",
        uid=uid,
        kind=kind,
        fact_ids=tuple(f"f_{number}_{i}" for i in range(facts)),
        key_ids=tuple(10 * number + i for i in range(facts)),
        requested_at=100.0 + number,
        erase_by=160.0 + number,
        state_hash_before="1" * 64,
        state_hash_after="2" * 64,
        facts=facts,
    )


class World:
    """A ledger, a vault and checkpoints of lists; everything that happens, in order."""

    def __init__(self, *rows: ErasureRow) -> None:
        self.rows = list(rows)
        self.events: list[str] = []
        self.keys = {(row.uid, key_id) for row in rows for key_id in row.key_ids}
        self.receipts: dict[str, str] = {}
        self.down: set[str] = set()
        self.busy = False
        self.failures: list[BaseException] = []
        self.signer = ReceiptSigner(b"s" * 32)
        self.now = 200.0

    # the ledger
    def erasures(self, pending_only: bool = True) -> list[ErasureRow]:
        return [row for row in self.rows if row.receipt_id not in self.receipts or not pending_only]

    def complete_erasure(self, receipt_id: str, receipt: str, now: float) -> None:
        assert receipt_id not in self.receipts
        self.events.append(f"done {receipt_id}")
        self.receipts[receipt_id] = receipt

    def scrub(self) -> None:
        self.events.append("scrub")

    # the vault
    def destroy(self, uid: str, ids) -> int:
        self.events.append(f"keys {uid[0]}")
        gone = {(uid, one) for one in ids} & self.keys
        self.keys -= gone
        return len(gone)

    def destroy_tenant(self, uid: str) -> int:
        self.events.append(f"tenant {uid[0]}")
        gone = {one for one in self.keys if one[0] == uid}
        self.keys -= gone
        return len(gone) + 1

    # checkpoints
    def purge(self, uid: str, fact_ids) -> Purged:
        self.events.append(f"purge {uid[0]} {'all' if fact_ids is None else len(fact_ids)}")
        if uid in self.down:
            raise LocationUnavailable("bucket", "no answer")
        return Purged([("3" * 64, "4" * 64)], ["5" * 64])

    def settled(self) -> None:
        if self.busy:
            raise Overloaded("the memory actor", 1, 1)
        self.events.append("settled")

    def eraser(self, window_s: float = 60.0) -> Eraser:
        return Eraser(
            self,
            self,
            self.purge,
            self.signer,
            settled=self.settled,
            window_s=window_s,
            clock=lambda: self.now,
            on_failure=self.failures.append,
        )


def test_keys_go_first_and_the_receipt_comes_last():
    """Key, checkpoints, the log, receipt; and never before what is committed has left the memory."""
    world = World(erasure(1))
    assert world.eraser().run() == 1
    assert world.events == ["settled", "keys a", "purge a 2", "scrub", "done r_1"]
    assert world.keys == set()


def test_a_pass_shares_its_work():
    """Three erasures of two tenants: keys and checkpoints once per tenant, the log once; a receipt each."""
    world = World(erasure(1), erasure(2, GLOBEX), erasure(3))
    eraser = world.eraser()
    assert (eraser.pending, eraser.oldest_age_s()) == (3, 200.0 - 101.0)
    assert eraser.run() == 3
    assert world.events == [
        *("settled", "keys a", "purge a 4", "keys b", "purge b 2", "scrub"),
        *("done r_1", "done r_3", "done r_2"),
    ]
    assert (eraser.pending, eraser.oldest_age_s()) == (0, 0.0)
    assert eraser.run() == 0
    assert world.events[-1] == "done r_2"  # a pass with nothing to do touches nothing


def test_a_receipt_says_what_was_destroyed_and_names_no_fact():
    world = World(erasure(1))
    world.eraser().run()
    receipt = verify_receipt(world.receipts["r_1"], world.signer.public_key)
    assert (receipt.receipt_id, receipt.tenant, receipt.kind, receipt.facts) == ("r_1", "acme", "forget", 2)
    assert receipt.fact_hashes == tuple(sorted(hashlib.sha256(one).hexdigest() for one in (b"f_1_0", b"f_1_1")))
    assert (receipt.state_hash_before, receipt.state_hash_after) == ("1" * 64, "2" * 64)
    assert (receipt.requested_at, receipt.completed_at) == ("1970-01-01T00:01:41.000Z", "1970-01-01T00:03:20.000Z")
    assert (receipt.keys_destroyed, receipt.files_deleted, receipt.ledger_truncated) == (2, ("5" * 64,), True)
    assert receipt.checkpoints_rewritten == ({"old": "3" * 64, "new": "4" * 64},)
    assert receipt.remaining
    assert "f_1_0" not in world.receipts["r_1"]


def test_the_end_of_a_tenant_takes_its_own_key_and_all_its_checkpoints():
    """Together with forgets of that tenant that were still pending."""
    world = World(erasure(1), erasure(2, kind="tenant", facts=0))
    world.keys |= {(ACME, 77), (GLOBEX, 78)}
    assert world.eraser().run() == 2
    assert world.events[:3] == ["settled", "tenant a", "purge a all"]
    assert world.keys == {(GLOBEX, 78)}
    assert verify_receipt(world.receipts["r_2"], None).keys_destroyed == 4


def test_a_location_that_is_down_keeps_only_its_own_tenants_waiting():
    """Their data keys are gone already; the rest of the erasure follows when the location is back."""
    world = World(erasure(1), erasure(2, GLOBEX))
    world.down = {ACME}
    eraser = world.eraser()
    assert eraser.run() == 1
    assert list(world.receipts) == ["r_2"]
    assert world.keys == set()
    assert eraser.pending == 1
    assert eraser.run() == 0
    world.down = set()
    assert eraser.run() == 1
    assert verify_receipt(world.receipts["r_1"], None).keys_destroyed == 2  # all of them, whichever pass did it


@pytest.mark.parametrize("point", POINTS)
def test_a_pass_that_stops_anywhere_is_repeated_whole(point):
    """A storage error at each point: nothing is acknowledged too early, and a new eraser ends it with one receipt."""
    world = World(erasure(1), erasure(2))

    def fail(name: str) -> None:
        if name == point:
            raise OSError(5, "Input/output error")

    crash_points.install(fail)
    try:
        with pytest.raises(OSError, match="Input/output"):
            world.eraser().run()
    finally:
        crash_points.install(None)
    assert world.receipts == {}
    if point != "erase.before_key":
        assert world.keys == set()
    eraser = world.eraser()
    assert eraser.pending == 2
    assert eraser.run() == 2
    assert all(verify_receipt(one, None).keys_destroyed == 2 for one in world.receipts.values())


def test_every_point_is_passed():
    passed: list[str] = []
    crash_points.install(passed.append)
    try:
        World(erasure(1)).eraser().run()
    finally:
        crash_points.install(None)
    assert passed == list(POINTS)


def test_a_busy_writer_puts_the_pass_off():
    world = World(erasure(1))
    world.busy = True
    with pytest.raises(Overloaded):
        world.eraser().run()
    assert world.events == []


# -- its thread -------------------------------------------------------------------------------------------------


def until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.005)


def test_the_thread_takes_up_what_an_earlier_process_left_and_what_comes():
    world = World(erasure(1))
    eraser = world.eraser(window_s=0.2)
    eraser.start()
    try:
        until(lambda: "r_1" in world.receipts)
        world.rows.append(erasure(2))
        eraser.note("r_2", 102.0)
        until(lambda: "r_2" in world.receipts)
    finally:
        eraser.close()
        eraser.close()
    assert world.failures == []


def test_a_storage_error_on_the_thread_ends_the_process_and_the_thread():
    world = World(erasure(1))
    world.scrub = lambda: (_ for _ in ()).throw(LedgerFailed("path", "the disk reports an error"))
    eraser = world.eraser(window_s=0.2)
    eraser.start()
    until(lambda: world.failures)
    eraser.close()
    assert [type(one) for one in world.failures] == [LedgerFailed]


def test_a_busy_writer_or_a_fault_of_ours_does_not_end_the_thread(caplog):
    """It is logged, shows as pending, and the next pass does the work."""
    world = World(erasure(1))
    world.busy = True
    purge, world.purge = world.purge, lambda uid, ids: {}[uid]
    eraser = world.eraser(window_s=0.2)
    eraser.start()
    try:
        until(lambda: "erasure_waits" in caplog.text)
        world.busy = False
        until(lambda: "erasure_failed" in caplog.text)
        eraser._purge = purge
        until(lambda: world.receipts)
    finally:
        eraser.close()
    assert world.failures == []


def test_closing_before_starting_is_harmless():
    World(replace(erasure(1), kind="supersede")).eraser().close()
