"""How long the gateway insists: calls to a restarting process are repeated until the request's deadline.

Repeating a call that changes something is safe because the ledger knows its idempotency key: a second arrival gets
the first reply. A memory actor that restarts (one to three seconds) is therefore invisible to callers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cluster.ports import CallLost
from memory_actor.errors import DeadlineExceeded, Fenced, LarimarError, LedgerFailed, OutcomeUnknown, Unavailable

T = TypeVar("T")

# Refusals of a process that is going away or coming up; its successor may accept the same call.
PASSING = (Fenced, LedgerFailed, Unavailable)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds, seconds)

    def left_s(self) -> float:
        return max(0.0, self.at - time.monotonic())


@dataclass(frozen=True, slots=True)
class Patience:
    """The waits between attempts: doubled from `wait_s` up to `wait_max_s`."""

    wait_s: float = 0.05
    wait_max_s: float = 1.0

    async def insist(
        self, call: Callable[[float], Awaitable[T]], *, what: str, deadline: Deadline, changes_state: bool = False
    ) -> T:
        """The answer of `call(seconds left)`, asked again while nobody answers and time is left.

        Args: changes_state: the call carries an idempotency key and may have been applied by a lost attempt.
        Raises: OutcomeUnknown when a lost attempt may have changed something; Unavailable or DeadlineExceeded when
            nothing was changed; any other refusal of the callee as it is.
        """
        wait_s = self.wait_s
        in_doubt = False
        while True:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline.left_s()):
                    return await call(deadline.left_s())
            except (CallLost, TimeoutError, *PASSING) as error:
                in_doubt = in_doubt or _may_have_applied(error)
                if deadline.left_s() <= wait_s:
                    raise _final(error, what, deadline, in_doubt=changes_state and in_doubt) from None
            except LarimarError as error:
                # This attempt was refused, but an earlier one may have been applied: "not applied" would be a guess.
                if changes_state and in_doubt and error.retryable:
                    raise OutcomeUnknown(what) from None
                raise
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self.wait_max_s)


def _may_have_applied(error: Exception) -> bool:
    return not isinstance(error, LarimarError) or error.outcome != "not_applied"


def _final(error: Exception, what: str, deadline: Deadline, *, in_doubt: bool) -> LarimarError:
    """What the caller is told when time is up."""
    if in_doubt:
        return error if isinstance(error, LedgerFailed) else OutcomeUnknown(what)
    if isinstance(error, LarimarError):
        return error
    if isinstance(error, CallLost):
        return Unavailable(what, error.reason)
    return DeadlineExceeded(what, deadline.seconds)
