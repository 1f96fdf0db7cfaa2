"""The gateway's ports over Ray: named memory actors and Serve handles. The only edge file that knows Ray's errors.

Ray's failures become two things: the LarimarError a task raised, unwrapped, or CallLost when nobody answered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio.to_thread
import ray
from ray import exceptions as ray_errors
from ray.serve import exceptions as serve_errors

from cluster.ports import CallLost, MemoryPort
from memory_actor.directory import actor_name, actor_of, virtual_shard
from memory_actor.errors import LarimarError, Overloaded, StaleMemory
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
    ReadMode,
    Recall,
    RestoreReply,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
)
from workers.ports import Generation, GenerationChunk, GenerationRequest, Readback

if TYPE_CHECKING:
    from memory_actor.doctor import Finding

T = TypeVar("T")

# Nobody answered, or the one who should is gone; the call may have been carried out.
_LOST = (
    ray_errors.RayActorError,
    ray_errors.GetTimeoutError,
    ray_errors.WorkerCrashedError,
    ray_errors.ObjectLostError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
    ray_errors.RaySystemError,
    serve_errors.DeploymentUnavailableError,
    serve_errors.ReplicaUnavailableError,
)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Ray's exceptions as ours; anything else passes and is a bug."""
    try:
        yield
    except serve_errors.BackPressureError as error:
        queued, queued_max = error.args[:2]
        raise Overloaded(what, queued, queued_max) from None
    except _LOST as error:
        raise CallLost(what, type(error).__name__) from None
    except ray_errors.RayTaskError as error:
        if isinstance(error.cause, LarimarError):
            raise error.cause from None
        if isinstance(error.cause, _LOST):
            raise CallLost(what, type(error.cause).__name__) from None
        raise


class RayMemory:
    """The memory actor `index`, found by name; found anew after every lost call. Implements MemoryPort."""

    def __init__(self, index: int, namespace: str) -> None:
        self._name = actor_name(index)
        self._namespace = namespace
        self._actor: Any = None

    async def _call(self, method: str, *args: Any) -> Any:
        what = "the memory actor"
        try:
            with translated(what):
                actor = self._actor or await self._find()
                return await getattr(actor, method).remote(*args)
        except (CallLost, StaleMemory):
            self._actor = None  # A stale answer may come from a process that has been superseded.
            raise

    async def _find(self) -> Any:
        try:
            # A lookup asks the cluster's control service and blocks meanwhile.
            self._actor = await anyio.to_thread.run_sync(lambda: ray.get_actor(self._name, self._namespace))
        except ValueError:
            raise CallLost("the memory actor", f"no actor named {self._name}") from None
        return self._actor

    async def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> TenantSummary:
        return cast(TenantSummary, await self._call("create_tenant", name, retention, idempotency))

    async def delete_tenant(self, name: str, idempotency: Idempotency) -> TenantSummary:
        return cast(TenantSummary, await self._call("delete_tenant", name, idempotency))

    async def tenants(self) -> list[TenantSummary]:
        return cast(list[TenantSummary], await self._call("tenants"))

    async def tenant(self, name: str) -> TenantSummary:
        return cast(TenantSummary, await self._call("tenant", name))

    async def write(
        self,
        tenant: str,
        facts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None,
    ) -> WriteReply:
        return cast(WriteReply, await self._call("write", tenant, facts, encoded, idempotency, timeout_s))

    async def forget(
        self,
        tenant: str,
        fact_ids: Sequence[str],
        dry_run: bool,
        idempotency: Idempotency | None,
        timeout_s: float | None = None,
    ) -> ForgetReceipt:
        return cast(ForgetReceipt, await self._call("forget", tenant, fact_ids, dry_run, idempotency, timeout_s))

    async def select(self, tenant: str, selector: Selector, limit: int) -> list[FactRecord]:
        return cast(list[FactRecord], await self._call("select", tenant, selector, limit))

    async def recall(self, tenant: str, keys: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        return cast(Recall, await self._call("recall", tenant, keys, mode, min_version))

    async def verify(self, tenant: str) -> Verification:
        return cast(Verification, await self._call("verify", tenant))

    async def facts(self, tenant: str, after: int, limit: int) -> FactPage:
        return cast(FactPage, await self._call("facts", tenant, after, limit))

    async def fact(self, tenant: str, fact_id: str) -> FactRecord:
        return cast(FactRecord, await self._call("fact", tenant, fact_id))

    async def status(self) -> EngineStatus:
        return cast(EngineStatus, await self._call("status"))

    async def sleep(self, name: str) -> TenantSummary:
        return cast(TenantSummary, await self._call("sleep", name))

    async def wake(self, name: str) -> TenantSummary:
        return cast(TenantSummary, await self._call("wake", name))

    async def checkpoint(self, tenant: str, location: str) -> CheckpointInfo:
        return cast(CheckpointInfo, await self._call("checkpoint", tenant, location))

    async def checkpoints(self, tenant: str) -> list[CheckpointInfo]:
        return cast(list[CheckpointInfo], await self._call("checkpoints", tenant))

    async def grant(self, tenant: str, checkpoint_id: str) -> CheckpointGrant:
        return cast(CheckpointGrant, await self._call("grant", tenant, checkpoint_id))

    async def restore(
        self, name: str, grant: CheckpointGrant | None, version: int | None, in_place: bool, idempotency: Idempotency
    ) -> RestoreReply:
        return cast(RestoreReply, await self._call("restore", name, grant, version, in_place, idempotency))

    async def erasure(self, receipt_id: str) -> ErasureStatus:
        return cast(ErasureStatus, await self._call("erasure", receipt_id))

    async def doctor(self, tenant: str | None) -> list[Finding]:
        return cast("list[Finding]", await self._call("doctor", tenant))


class RayMemoryDirectory:
    """All memory actors of one namespace. Implements MemoryDirectory."""

    def __init__(self, actors: int, namespace: str) -> None:
        self._actors = [RayMemory(index, namespace) for index in range(actors)]

    def owner_of(self, tenant: str) -> MemoryPort:
        return self._actors[actor_of(virtual_shard(tenant), len(self._actors))]

    def everyone(self) -> Sequence[MemoryPort]:
        return self._actors


async def _answer(what: str, response: Awaitable[T]) -> T:
    with translated(what):
        return await response


class ServeEncoder:
    """The encoder deployment behind its handle. Implements EncoderPort."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def encode_facts(self, facts: Sequence[FactText]) -> EncodedFacts:
        return cast(EncodedFacts, await _answer("the encoder", self._handle.encode_facts.remote(facts)))

    async def encode_queries(self, texts: Sequence[str]) -> list[Float16Array]:
        return cast(list[Float16Array], await _answer("the encoder", self._handle.encode_queries.remote(texts)))

    async def match(self, readback: Readback) -> float:
        return cast(float, await _answer("the encoder", self._handle.match.remote(readback)))

    async def match_prompts(self, query: str, prompts: Sequence[str]) -> list[float]:
        return cast(list[float], await _answer("the encoder", self._handle.match_prompts.remote(query, prompts)))

    async def status(self) -> dict[str, Any]:
        return cast(dict[str, Any], await _answer("the encoder", self._handle.status.remote()))


class ServeDecoder:
    """The decoder deployment behind its handle. Implements DecoderPort."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def generate(self, request: GenerationRequest) -> Generation:
        return cast(Generation, await _answer("the decoder", self._handle.generate.remote(request)))

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        with translated("the decoder"):
            chunks = self._handle.options(stream=True).stream.remote(request)
        try:
            while True:
                try:
                    with translated("the decoder"):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                yield chunk
        finally:
            chunks.cancel()  # frees the decoder when the client has gone; does nothing to a finished stream

    async def status(self) -> dict[str, Any]:
        return cast(dict[str, Any], await _answer("the decoder", self._handle.status.remote()))
