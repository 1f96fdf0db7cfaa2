"""Calls to memory actors: patient, within a deadline, and shielded from clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from cluster.patience import Deadline, Patience
from cluster.ports import MemoryDirectory, MemoryPort

T = TypeVar("T")

MEMORY: Final = "the memory actor"


class Calls:
    """How one gateway replica talks to the memory actors. `timeout_s` bounds each request as a whole."""

    def __init__(self, memory: MemoryDirectory, *, timeout_s: float, patience: Patience) -> None:
        self._memory = memory
        self._timeout_s = timeout_s
        self._patience = patience
        self._shielded: set[asyncio.Task[Any]] = set()

    def owner_of(self, tenant: str) -> MemoryPort:
        return self._memory.owner_of(tenant)

    def everyone(self) -> Sequence[MemoryPort]:
        return self._memory.everyone()

    def deadline(self) -> Deadline:
        """The deadline of a request that starts now."""
        return Deadline.after(self._timeout_s)

    async def ask(self, call: Callable[[float], Awaitable[T]], deadline: Deadline) -> T:
        """The answer to a call that changes nothing of a tenant's memory, asked again while nobody answers."""
        return await self._patience.insist(call, what=MEMORY, deadline=deadline)

    async def change(self, call: Callable[[float], Awaitable[T]], deadline: Deadline) -> T:
        """The same for a call that carries an idempotency key and may change something; goes on without its caller."""
        return await self.shielded(self._patience.insist(call, what=MEMORY, deadline=deadline, changes_state=True))

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancelling the caller leaves it running to its end."""
        task = asyncio.ensure_future(work)
        self._shielded.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(self._shielded.discard)
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at a finished task's exception, lest a caller that went away leaves it 'never retrieved'."""
    if not task.cancelled():
        task.exception()
