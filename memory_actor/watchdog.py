"""Does this memory actor still have the right to serve? Looks at its raylet and at the ledger's newest epoch.

Ray counts a zombie or stopped raylet as alive, so that its actor would go on beside a successor: commits are fenced by
the ledger, reads are not. Pure but for the probes, which are injected; `actor.py` calls `tick` once a second.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final

REFUSE_AFTER_S: Final = 5.0
EXIT_AFTER_S: Final = 10.0

_BAD_STATES: Final = {"Z": "a zombie", "X": "dead", "T": "stopped", "t": "stopped by a debugger"}


class Verdict(Enum):
    """What the actor has to do from here on."""

    SERVE = "serve"
    REFUSE = "refuse reads and writes"
    EXIT = "exit"


class Watchdog:
    """Bad for `refuse_after_s` without a break: refuse; for `exit_after_s`: exit. One good look forgives everything."""

    def __init__(
        self,
        probe: Callable[[], str | None],
        *,
        timer: Callable[[], float],
        refuse_after_s: float = REFUSE_AFTER_S,
        exit_after_s: float = EXIT_AFTER_S,
    ) -> None:
        """`probe` returns what is wrong, or None. `timer` is monotonic, in seconds."""
        if not 0 <= refuse_after_s <= exit_after_s:
            raise ValueError(f"refuse_after_s {refuse_after_s} and exit_after_s {exit_after_s} must rise from 0")
        self._probe, self._timer = probe, timer
        self._refuse_after_s, self._exit_after_s = refuse_after_s, exit_after_s
        self._bad_since: float | None = None
        #: What is wrong, in words for a person; "" while nothing is.
        self.reason = ""

    def tick(self) -> Verdict:
        """Look once. The gap since the last look counts as bad when both looks are: a process that was stopped itself
        together with its raylet wakes up refusing."""
        reason = self._probe()
        if reason is None:
            self._bad_since, self.reason = None, ""
            return Verdict.SERVE
        now = self._timer()
        if self._bad_since is None:
            self._bad_since = now
        self.reason = reason
        bad_s = now - self._bad_since
        if bad_s >= self._exit_after_s:
            return Verdict.EXIT
        return Verdict.REFUSE if bad_s >= self._refuse_after_s else Verdict.SERVE


def raylet_problem(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Why the raylet with this process id cannot be relied on (gone, zombie, stopped), or None when it runs."""
    try:
        stat = (proc / str(pid) / "stat").read_text("ascii", errors="replace")
    except OSError:  # ENOENT, or ESRCH when it ended between open and read
        return f"its raylet (process {pid}) is gone"
    # The name in parentheses may hold spaces and parentheses itself: the state is the first field after the last one.
    state = stat.rpartition(")")[2].split()[:1]
    if not state:
        return f"its raylet (process {pid}) cannot be inspected"
    return f"its raylet (process {pid}) is {_BAD_STATES[state[0]]}" if state[0] in _BAD_STATES else None
