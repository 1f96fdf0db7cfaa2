"""The memory actor: a Ray shell over `MemoryEngine`. The only file of this package that knows Ray.

A plain detached named actor with `max_restarts=-1, max_task_retries=0`: Ray restarts it, never repeats a call.
Linear algebra, fsync and ledger reads run on threads; the event loop only waits.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import ray

from memory_actor.errors import LarimarError, StateFolderBusy
from memory_actor.types import (
    CheckpointGrant,
    CheckpointInfo,
    EncodedFacts,
    EngineStatus,
    ErasureStatus,
    FactPage,
    FactRecord,
    FactText,
    Float16Array,
    ForgetReceipt,
    Idempotency,
    MemoryConfig,
    ReadMode,
    Recall,
    RestoreReply,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
)
from memory_actor.watchdog import Verdict, Watchdog, raylet_problem

if TYPE_CHECKING:
    from memory_actor.doctor import Finding
    from memory_actor.engine import MemoryEngine

EXIT_POISONED = 70  # EX_SOFTWARE: storage failed or a newer incarnation took over; replay decides what was stored

_LOCK_WAIT_S: Final = 30.0  # for a predecessor that is dying; Ray starts us while it still holds the files
_LOOK_EVERY_S: Final = 1.0

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
        keys_folder: str | None = None,
        locations: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are fields of `EngineSettings`; `locations` are checkpoint locations by name."""
        import torch  # noqa: PLC0415 - only the actor's own process pays for it, not the one that starts it

        from memory_actor.engine import EngineSettings  # noqa: PLC0415

        torch.set_num_threads(torch_threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = EngineSettings(
            device=device,
            keys_folder=None if keys_folder is None else Path(keys_folder),
            locations=dict(locations or {}),
            **settings,
        )
        self._engine = _open_patiently(index, Path(state_dir), config, chosen)
        self._readers = ThreadPoolExecutor(reader_threads, thread_name_prefix="larimar-reader")
        # What waits for disks and buckets must not keep queries waiting.
        self._keepers = ThreadPoolExecutor(1, thread_name_prefix="larimar-keeper")
        threading.Thread(target=_watch, args=(self._engine,), name="larimar-watchdog", daemon=True).start()
        # Half a million objects of torch live on: no collection need look at them again.
        gc.collect()
        gc.freeze()

    async def _read(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *args)

    async def _keep(self, function: Callable[..., T], *args: Any) -> T:
        # Shielded: a caller that goes away must not leave a checkpoint half-registered in its eyes only.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._keepers, function, *args))

    async def _submit(self, submit: Callable[[], Future[T]]) -> T:
        # Shielded: a caller that goes away must not cancel a command that is already queued.
        return await asyncio.shield(asyncio.wrap_future(submit()))

    async def _change(self, tenant: str, submit: Callable[[], Future[T]]) -> T:
        """`_submit` for a change that needs the tenant's memory: a cold one is loaded off the writer thread."""
        if not self._engine.is_ready(tenant):
            await self._read(self._engine.rouse, tenant)
        return await self._submit(submit)

    # -- tenants ------------------------------------------------------------------------------------------------

    async def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> TenantSummary:
        return await self._submit(lambda: self._engine.create_tenant(name, retention, idempotency))

    async def delete_tenant(self, name: str, idempotency: Idempotency) -> TenantSummary:
        return await self._submit(lambda: self._engine.delete_tenant(name, idempotency))

    async def tenants(self) -> list[TenantSummary]:
        return await self._read(self._engine.summaries)

    async def tenant(self, name: str) -> TenantSummary:
        return await self._read(self._engine.summary, name)

    async def sleep(self, name: str) -> TenantSummary:
        return await self._keep(self._engine.sleep, name)

    async def wake(self, name: str) -> TenantSummary:
        return await self._read(self._engine.wake, name)

    # -- facts --------------------------------------------------------------------------------------------------

    async def write(
        self,
        tenant: str,
        facts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None = None,
    ) -> WriteReply:
        return await self._change(tenant, lambda: self._engine.write(tenant, facts, encoded, idempotency, timeout_s))

    async def forget(
        self,
        tenant: str,
        fact_ids: Sequence[str],
        dry_run: bool,
        idempotency: Idempotency | None,
        timeout_s: float | None = None,
    ) -> ForgetReceipt:
        return await self._change(
            tenant,
            lambda: self._engine.forget(tenant, fact_ids, idempotency, dry_run=dry_run, timeout_s=timeout_s),
        )

    async def select(self, tenant: str, selector: Selector, limit: int) -> list[FactRecord]:
        return await self._read(self._engine.select, tenant, selector, limit)

    async def recall(self, tenant: str, keys: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        return await self._read(self._engine.recall, tenant, keys, mode, min_version)

    async def verify(self, tenant: str) -> Verification:
        return await self._read(self._engine.verify, tenant)

    async def facts(self, tenant: str, after: int, limit: int) -> FactPage:
        return await self._read(self._engine.facts, tenant, after, limit)

    async def fact(self, tenant: str, fact_id: str) -> FactRecord:
        return await self._read(self._engine.fact, tenant, fact_id)

    # -- safekeeping --------------------------------------------------------------------------------------------

    async def checkpoint(self, tenant: str, location: str) -> CheckpointInfo:
        return await self._keep(self._engine.checkpoint, tenant, location)

    async def checkpoints(self, tenant: str) -> list[CheckpointInfo]:
        return await self._read(self._engine.checkpoints, tenant)

    async def grant(self, tenant: str, checkpoint_id: str | None) -> CheckpointGrant:
        return await self._read(self._engine.grant, tenant, checkpoint_id)

    async def restore(
        self, name: str, grant: CheckpointGrant | None, version: int | None, in_place: bool, idempotency: Idempotency
    ) -> RestoreReply:
        future = await self._keep(self._engine.restore, name, grant, version, in_place, idempotency)
        return await self._submit(lambda: future)

    async def erasure(self, receipt_id: str) -> ErasureStatus:
        return await self._read(self._engine.erasure, receipt_id)

    async def erase_now(self) -> int:
        return await self._keep(self._engine.erase_now)

    async def doctor(self, tenant: str | None) -> list[Finding]:
        return await self._keep(self._engine.doctor, tenant)

    async def status(self) -> EngineStatus:
        return await self._read(self._engine.status)

    async def close(self) -> None:
        """Finish what is queued or being erased, and let go of the files; what comes later is refused.

        For a clean stop. Without it nothing is lost: the next start goes on where this one ended.
        """
        await asyncio.get_running_loop().run_in_executor(self._keepers, self._engine.close)


def _open_patiently(index: int, state_dir: Path, config: MemoryConfig, settings: Any) -> MemoryEngine:
    """Open the storage; while a predecessor that is dying holds its files, try again. Raises StartupErrors."""
    from memory_actor.engine import MemoryEngine  # noqa: PLC0415 - torch

    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return MemoryEngine.open(index, state_dir, config, settings, on_poison=_exit_poisoned)
        except StateFolderBusy:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)  # there is nothing to be told by; a dead process lets go at once


def _watch(engine: MemoryEngine) -> None:
    """Once a second: may this process still serve? Runs until the process ends."""
    raylet = int(os.environ.get("RAY_RAYLET_PID") or os.getppid())

    def probe() -> str | None:
        return raylet_problem(raylet) or engine.superseded()

    dog = Watchdog(probe, timer=time.monotonic)
    refusing = False
    while True:
        time.sleep(_LOOK_EVERY_S)
        try:
            verdict = dog.tick()
        except LarimarError as error:
            _exit_poisoned(error)
        if verdict is Verdict.EXIT:
            _exit_poisoned(RuntimeError(dog.reason))
        if (verdict is Verdict.REFUSE) != refusing:
            refusing = not refusing
            engine.suspend(dog.reason if refusing else None)


def _exit_poisoned(error: BaseException) -> None:
    """End the process at once: nothing it holds in memory may be served after a failed commit."""
    # Ray's own log of this process keeps the reason; it names no content.
    os.write(2, f"memory actor stops (exit {EXIT_POISONED}): {error!r}\n".encode())
    os._exit(EXIT_POISONED)
