"""Destroying what was forgotten: data keys first, then checkpoints that held it, then the ledger's own leftovers.

A forget is logical at once; the bytes follow within the erase window, many erasures together. Each step may be
repeated, so that a crash between any two of them costs nothing but doing it again.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from memory_actor.crash_points import reached
from memory_actor.errors import LarimarError, LocationUnavailable, Overloaded, Unavailable
from memory_actor.ledger_erasures import ErasureRow
from memory_actor.receipts import EraseReceipt, fact_hash, rfc3339

log = logging.getLogger("larimar.eraser")

_PASSES_PER_WINDOW: Final = 4  # so that a pass that fails can be repeated before the window closes
_INTERVAL_S_MIN: Final = 0.05

#: What no receipt can promise, in plain sentences.
BEYOND_REACH: Final = (
    "Replies that were sent to clients before, and whatever they kept of them.",
    "Copies of the state folder that were made outside this system and hold its keys as well as its data.",
)


@dataclass(slots=True)
class Purged:
    """What became of the checkpoints of one tenant: (old, new) manifest hashes, and hashes of deleted files."""

    rewritten: list[tuple[str, str]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


class ErasureLedger(Protocol):
    """What the eraser needs of the ledger."""

    def erasures(self, pending_only: bool = True) -> list[ErasureRow]: ...
    def complete_erasure(self, receipt_id: str, receipt: str, now: float) -> None: ...
    def scrub(self) -> None: ...


class KeyShredder(Protocol):
    """What the eraser needs of the vault."""

    def destroy(self, uid: str, ids: Sequence[int]) -> int: ...
    def destroy_tenant(self, uid: str) -> int: ...


class Signer(Protocol):
    """Signs receipts."""

    def sign(self, receipt: EraseReceipt) -> str: ...


class Eraser:
    """Erases on one thread of its own. `purge(uid, fact_ids)` rids checkpoints of these facts, None: of everything."""

    def __init__(
        self,
        ledger: ErasureLedger,
        vault: KeyShredder,
        purge: Callable[[str, frozenset[str] | None], Purged],
        signer: Signer,
        *,
        settled: Callable[[], None],
        window_s: float,
        clock: Callable[[], float],
        on_failure: Callable[[BaseException], None],
        beyond_reach: tuple[str, ...] = (),
    ) -> None:
        """`settled` returns when everything committed before the call has left the memory; it may raise Overloaded and
        Unavailable. `on_failure` is told of storage errors and ends the process. `beyond_reach`: what the storage in
        use cannot rid itself of, for the receipts. Raises what the ledger raises.
        """
        self._remaining = (*BEYOND_REACH, *beyond_reach)
        self._settled = settled
        self._ledger, self._vault, self._purge, self._signer = ledger, vault, purge, signer
        self._clock, self._on_failure = clock, on_failure
        self._interval_s = max(window_s / _PASSES_PER_WINDOW, _INTERVAL_S_MIN)
        #: Receipt ids and times of request of what is left to do.
        self._pending = {row.receipt_id: row.requested_at for row in ledger.erasures(pending_only=True)}
        self._passing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larimar-eraser", daemon=True)

    def start(self) -> None:
        """Erase from now on; what an earlier process left is taken up at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the pass that is running, if any. May be called twice, and before `start`."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- what there is to do ------------------------------------------------------------------------------------

    def note(self, receipt_id: str, requested_at: float) -> None:
        """An erasure was committed."""
        self._pending[receipt_id] = requested_at

    @property
    def pending(self) -> int:
        return len(self._pending)

    def oldest_age_s(self) -> float:
        """Seconds since the oldest pending erasure was asked for, 0 without one."""
        times = list(self._pending.values())
        return max(0.0, self._clock() - min(times)) if times else 0.0

    # -- doing it -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Erase everything that is pending, on this thread; returns how many erasures are done.

        Those of a tenant with a checkpoint in a location that cannot be reached stay pending. Raises Overloaded and
        Unavailable, with nothing done; LedgerFailed, Fenced, LedgerCorrupt, OSError: then the process has to end, and
        the next one goes on.
        """
        with self._passing:
            pending = self._ledger.erasures(pending_only=True)
            if not pending:
                return 0
            self._settled()
            by_uid = itertools.groupby(sorted(pending, key=lambda row: (row.uid, row.position)), lambda row: row.uid)
            erased = [done for uid, rows in by_uid for done in self._erase(uid, list(rows))]
            if not erased:
                return 0
            self._ledger.scrub()
            for row, keys, purged in erased:
                self._complete(row, keys, purged)
            return len(erased)

    def _erase(self, uid: str, rows: list[ErasureRow]) -> Iterator[tuple[ErasureRow, int, Purged]]:
        """The erasures of one tenant, together; nothing when they have to wait for a location."""
        ends = any(row.kind == "tenant" for row in rows)
        reached("erase.before_key")
        if ends:
            destroyed = self._vault.destroy_tenant(uid)
        else:
            destroyed = self._vault.destroy(uid, [key_id for row in rows for key_id in row.key_ids])
        reached("erase.after_key")
        try:
            purged = self._purge(uid, None if ends else frozenset(one for row in rows for one in row.fact_ids))
        except LocationUnavailable as error:
            log.warning("erasure_waits: location=%s erasures=%d", error.args[0], len(rows))
            return
        reached("erase.after_checkpoints")
        for row in rows:
            # After a crash the keys may be gone already: the note of the erasure says how many there were.
            yield row, max(destroyed, len(row.key_ids)) if row.kind == "tenant" else len(row.key_ids), purged

    def _complete(self, row: ErasureRow, keys: int, purged: Purged) -> None:
        now = self._clock()
        receipt = EraseReceipt(
            receipt_id=row.receipt_id,
            tenant=row.tenant,
            kind=row.kind,
            fact_hashes=tuple(map(fact_hash, row.fact_ids)),
            facts=row.facts,
            state_hash_before=row.state_hash_before,
            state_hash_after=row.state_hash_after,
            requested_at=rfc3339(row.requested_at),
            completed_at=rfc3339(now),
            keys_destroyed=keys,
            checkpoints_rewritten=tuple({"old": old, "new": new} for old, new in purged.rewritten),
            files_deleted=tuple(purged.deleted),
            ledger_truncated=True,
            remaining=self._remaining,
        )
        reached("erase.before_done")
        self._ledger.complete_erasure(row.receipt_id, self._signer.sign(receipt), now)
        self._pending.pop(row.receipt_id, None)

    def _loop(self) -> None:
        delay_s = 0.0 if self._pending else self._interval_s
        while not self._stop.wait(delay_s):
            delay_s = self._interval_s
            if not self._pending:
                continue
            try:
                self.run()
            except (Overloaded, Unavailable) as busy:
                log.warning("erasure_waits: %s", busy)
            except (LarimarError, OSError) as error:
                self._on_failure(error)
                return
            except Exception:
                # A fault of our own must not stop the others' erasures for good; it shows in the status as overdue.
                log.exception("erasure_failed: it is tried again")
