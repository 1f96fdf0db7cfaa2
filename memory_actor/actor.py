"""The memory actor: a Ray shell over `MemoryEngine`. The only file of this package that knows Ray.

A plain detached named actor with `max_restarts=-1, max_task_retries=0`: Ray restarts it, never repeats a call.
Linear algebra, fsync and ledger reads run on threads; the event loop only waits.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import ray

from memory_actor.directory import ledger_path
from memory_actor.types import (
    EncodedFacts,
    EngineStatus,
    FactPage,
    FactRecord,
    FactText,
    Float16Array,
    ForgetReceipt,
    Idempotency,
    MemoryConfig,
    ReadMode,
    Recall,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
)

EXIT_POISONED = 70  # EX_SOFTWARE: storage failed or a newer incarnation took over; replay decides what was stored

T = TypeVar("T")


@ray.remote(max_restarts=-1, max_task_retries=0)
class MemoryActor:
    """Owns the shards of the tenants placed on actor `index`. All methods may raise `memory_actor.errors`."""

    def __init__(
        self,
        index: int,
        state_dir: str,
        config: MemoryConfig,
        *,
        device: str = "auto",
        reader_threads: int = 2,
        torch_threads: int = 2,
        group_facts_max: int = 256,
        queue_max: int = 1024,
        idempotency_hours: float = 24.0,
    ) -> None:
        import torch  # noqa: PLC0415 - only the actor's own process pays for it, not the one that starts it

        from memory_actor.engine import EngineSettings, MemoryEngine  # noqa: PLC0415

        torch.set_num_threads(torch_threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._engine = MemoryEngine.open(
            index,
            ledger_path(Path(state_dir), index),
            config,
            EngineSettings(
                device=device,
                group_facts_max=group_facts_max,
                queue_max=queue_max,
                idempotency_hours=idempotency_hours,
            ),
            on_poison=_exit_poisoned,
        )
        self._readers = ThreadPoolExecutor(reader_threads, thread_name_prefix="larimar-reader")
        # Half a million objects of torch and the replayed facts live on: no collection need look at them again.
        gc.collect()
        gc.freeze()

    async def _read(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *args)

    async def _submit(self, submit: Callable[[], Future[T]]) -> T:
        # Shielded: a caller that goes away must not cancel a command that is already queued.
        return await asyncio.shield(asyncio.wrap_future(submit()))

    async def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> TenantSummary:
        return await self._submit(lambda: self._engine.create_tenant(name, retention, idempotency))

    async def delete_tenant(self, name: str, idempotency: Idempotency) -> TenantSummary:
        return await self._submit(lambda: self._engine.delete_tenant(name, idempotency))

    async def tenants(self) -> list[TenantSummary]:
        return await self._read(self._engine.summaries)

    async def tenant(self, name: str) -> TenantSummary:
        return await self._read(self._engine.summary, name)

    async def write(
        self,
        tenant: str,
        facts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None = None,
    ) -> WriteReply:
        return await self._submit(lambda: self._engine.write(tenant, facts, encoded, idempotency, timeout_s))

    async def forget(
        self, tenant: str, fact_ids: Sequence[str], dry_run: bool, idempotency: Idempotency | None
    ) -> ForgetReceipt:
        return await self._submit(lambda: self._engine.forget(tenant, fact_ids, idempotency, dry_run=dry_run))

    async def select(self, tenant: str, selector: Selector, limit: int) -> list[FactRecord]:
        return await self._read(self._engine.select, tenant, selector, limit)

    async def recall(self, tenant: str, key: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        return await self._read(self._engine.recall, tenant, key, mode, min_version)

    async def verify(self, tenant: str) -> Verification:
        return await self._read(self._engine.verify, tenant)

    async def facts(self, tenant: str, after: int, limit: int) -> FactPage:
        return await self._read(self._engine.facts, tenant, after, limit)

    async def fact(self, tenant: str, fact_id: str) -> FactRecord:
        return await self._read(self._engine.fact, tenant, fact_id)

    async def status(self) -> EngineStatus:
        return await self._read(self._engine.status)


def _exit_poisoned(error: BaseException) -> None:
    """End the process at once: nothing it holds in memory may be served after a failed commit."""
    # Ray's own log of this process keeps the reason; it names no content.
    os.write(2, f"memory actor stops (exit {EXIT_POISONED}): {error!r}\n".encode())
    os._exit(EXIT_POISONED)
