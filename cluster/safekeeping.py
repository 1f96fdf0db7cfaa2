"""What keeps memories: checkpoints, restores, residency, receipts and diagnoses, over the memory actors.

The key of a checkpoint's files passes through here, from the owner of the source to the owner of the target, and
goes nowhere else: no reply, log line or error holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.calls import Calls
from cluster.patience import Deadline
from cluster.ports import MemoryPort
from cluster.stages import Stages
from memory_actor.errors import CheckpointMismatch, CheckpointUnreadable, LarimarError, NotFound
from memory_actor.types import CheckpointGrant, CheckpointInfo, ErasureStatus, Idempotency, RestoreReply, TenantSummary

if TYPE_CHECKING:
    from memory_actor.doctor import Finding

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Fill `target` from a checkpoint of `source`: `checkpoint_id`, or the one that fits `version` best.

    `in_place` replaces what `target` holds, and then `source` is `target`; else `target` is created.
    """

    target: str
    source: str
    checkpoint_id: str | None = None
    version: int | None = None
    in_place: bool = False


class Safekeeping:
    """The operations behind the routes. Raises LarimarError only; anything else is a bug."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancelling the caller leaves it running to its end."""
        return await self._calls.shielded(work)

    # -- residency ----------------------------------------------------------------------------------------------

    async def sleep(self, tenant: str) -> TenantSummary:
        """Put the tenant's memory on disk only; every request goes on working and wakes it."""
        memory = self._calls.owner_of(tenant)
        return await self._calls.ask(lambda _: memory.sleep(tenant), self._calls.deadline())

    async def wake(self, tenant: str) -> TenantSummary:
        memory = self._calls.owner_of(tenant)
        return await self._calls.ask(lambda _: memory.wake(tenant), self._calls.deadline())

    # -- checkpoints --------------------------------------------------------------------------------------------

    async def checkpoint(self, tenant: str, location: str) -> CheckpointInfo:
        """Publish a checkpoint of one version of the tenant. A lost call is repeated: the tenant may get two."""
        memory = self._calls.owner_of(tenant)
        return await self._calls.ask(lambda _: memory.checkpoint(tenant, location), self._calls.deadline())

    async def checkpoints(self, tenant: str) -> list[CheckpointInfo]:
        """The tenant's checkpoints, newest first."""
        found = await self._listed(self._calls.owner_of(tenant), tenant, self._calls.deadline())
        return sorted(found, key=_age, reverse=True)

    async def restore(self, asked: RestoreRequest, idempotency: Idempotency) -> RestoreReply:
        """Durable and visible when this returns. Source and target may live on different memory actors."""
        stages, deadline = Stages(), self._calls.deadline()
        target = self._calls.owner_of(asked.target)
        grant: CheckpointGrant | None = None
        refusal: LarimarError | None = None
        with stages.timed("grant"):
            try:
                grant = await self._grant(asked, deadline)
            except (NotFound, CheckpointUnreadable) as error:
                # A restore whose reply was lost may have ended the very checkpoint it came from; the ledger of the
                # target knows the idempotency key and answers with the first reply.
                refusal = error
        with stages.timed("memory"):
            try:
                reply = await self._calls.change(
                    lambda _: target.restore(asked.target, grant, asked.version, asked.in_place, idempotency), deadline
                )
            except LarimarError as error:
                # Nobody answered is no evidence; a target that does not know the key leaves the first refusal.
                if refusal is not None and error.outcome == "not_applied" and not error.retryable:
                    raise refusal from None
                raise
        return replace(reply, ms=reply.ms | stages.done())

    async def _grant(self, asked: RestoreRequest, deadline: Deadline) -> CheckpointGrant:
        memory = self._calls.owner_of(asked.source)
        chosen = asked.checkpoint_id
        if chosen is None:
            found = await self._listed(memory, asked.source, deadline)
            chosen = best_for(asked.version, found, asked.source).checkpoint_id
        checkpoint_id = chosen
        grant = await self._calls.ask(lambda _: memory.grant(asked.source, checkpoint_id), deadline)
        if asked.version is not None and grant.info.version < asked.version:
            raise _too_old(grant.info, asked.version)
        return grant

    async def _listed(self, memory: MemoryPort, tenant: str, deadline: Deadline) -> list[CheckpointInfo]:
        return await self._calls.ask(lambda _: memory.checkpoints(tenant), deadline)

    # -- receipts -----------------------------------------------------------------------------------------------

    async def receipt(self, receipt_id: str, tenant: str | None) -> ErasureStatus:
        """How far an erasure is. With `tenant`, only that tenant's: another's raises the NotFound of a missing one."""
        deadline = self._calls.deadline()
        if tenant is not None:
            found = await self._erasure(self._calls.owner_of(tenant), receipt_id, deadline)
            if found is None or found.tenant != tenant:
                raise NotFound("receipt", receipt_id)
            return found
        answers = await asyncio.gather(
            *(self._erasure(actor, receipt_id, deadline) for actor in self._calls.everyone()), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, ErasureStatus):
                return answer
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer  # the one that did not answer may have it: "not found" would be a guess
        raise NotFound("receipt", receipt_id)

    async def _erasure(self, memory: MemoryPort, receipt_id: str, deadline: Deadline) -> ErasureStatus | None:
        try:
            return await self._calls.ask(lambda _: memory.erasure(receipt_id), deadline)
        except NotFound:
            return None

    # -- diagnoses ----------------------------------------------------------------------------------------------

    async def diagnose(self, tenant: str) -> list[Finding]:
        """What is wrong with one tenant's stored data; empty when nothing is."""
        memory = self._calls.owner_of(tenant)
        return await self._calls.ask(lambda _: memory.doctor(tenant), self._calls.deadline())

    async def diagnose_all(self) -> list[Finding]:
        """What is wrong with any tenant's stored data, over all memory actors."""
        deadline = self._calls.deadline()
        parts = await asyncio.gather(*(self._diagnosed(actor, deadline) for actor in self._calls.everyone()))
        return [finding for part in parts for finding in part]

    async def _diagnosed(self, memory: MemoryPort, deadline: Deadline) -> list[Finding]:
        return await self._calls.ask(lambda _: memory.doctor(None), deadline)


def best_for(version: int | None, checkpoints: Sequence[CheckpointInfo], tenant: str) -> CheckpointInfo:
    """The newest checkpoint, or for a restore to `version` the first that was taken at or after it.

    Raises: NotFound when there is none at all, CheckpointMismatch when all are older than `version`.
    """
    if not checkpoints:
        raise NotFound("a checkpoint of tenant", tenant)
    newest = max(checkpoints, key=_age)
    if version is None:
        return newest
    fitting = [info for info in checkpoints if info.version >= version]
    if not fitting:
        raise _too_old(newest, version)
    # The first one holds what later ones may have superseded.
    return min(fitting, key=lambda info: (info.version, info.created_at))


def _too_old(info: CheckpointInfo, version: int) -> CheckpointMismatch:
    return CheckpointMismatch(info.checkpoint_id, "its version", info.version, f"{version} or later")


def _age(info: CheckpointInfo) -> tuple[int, float]:
    return info.version, info.created_at
