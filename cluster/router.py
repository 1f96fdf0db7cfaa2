"""The order of calls behind each operation: encoder, memory, decoder. Knows neither HTTP nor Ray.

Changes are shielded: once a change is on its way to the memory, a client that goes away does not stop it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from cluster.calls import MEMORY, Calls
from cluster.patience import Deadline, Patience
from cluster.ports import CallLost, DecoderPort, EncoderPort, MemoryDirectory, MemoryPort
from cluster.retraction import Retraction, unknowns_over
from cluster.safekeeping import Safekeeping
from cluster.stages import Stages
from memory_actor.errors import DeadlineExceeded, LarimarError, NotFound, StaleMemory, Unavailable
from memory_actor.types import (
    EncodedFacts,
    FactPage,
    FactRecord,
    FactText,
    ForgetReceipt,
    Idempotency,
    ReadMode,
    Recall,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
    as_plain,
)
from workers.ports import Generation, GenerationChunk, GenerationRequest, Readback, SecondStage

T = TypeVar("T")

ENCODER, DECODER = "the encoder", "the decoder"
STATUS_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Query:
    """One question to a tenant's memory and the decoder. `memory` False asks the base model alone."""

    generation: GenerationRequest
    memory: bool = True
    read: ReadMode = ReadMode.SNAP
    min_version: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """`recall` is None when the memory was off."""

    generation: Generation
    recall: Recall | None
    ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class AnswerStream:
    """A recall, and the text that follows. `stages` is complete after the last chunk."""

    recall: Recall | None
    chunks: AsyncGenerator[GenerationChunk, None]
    stages: Stages


class Router:
    """Every operation of the API, in terms of the ports. Raises LarimarError only; anything else is a bug."""

    def __init__(
        self,
        memory: MemoryDirectory,
        encoder: EncoderPort,
        decoder: DecoderPort,
        *,
        timeout_s: float,
        second_stage: SecondStage | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`second_stage` is the bundle's gate behind the cosine, None if it has none: then the cosine decides alone."""
        self._encoder = encoder
        self._second_stage = second_stage
        self._decoder = decoder
        self._patience = patience or Patience()
        self._memory = Calls(memory, timeout_s=timeout_s, patience=self._patience)
        #: Checkpoints, restores, residency, receipts and diagnoses, over the same memory actors.
        self.safekeeping = Safekeeping(self._memory)

    # -- tenants ------------------------------------------------------------------------------------------------

    async def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> TenantSummary:
        memory = self._memory.owner_of(name)
        return await self._change(lambda _: memory.create_tenant(name, retention, idempotency), self._deadline())

    async def delete_tenant(self, name: str, idempotency: Idempotency) -> TenantSummary:
        memory = self._memory.owner_of(name)
        return await self._change(lambda _: memory.delete_tenant(name, idempotency), self._deadline())

    async def tenants(self) -> list[TenantSummary]:
        """All tenants of all memory actors, by name."""
        deadline = self._deadline()
        lists = await asyncio.gather(*(self._tenants_of(actor, deadline) for actor in self._memory.everyone()))
        return sorted((summary for part in lists for summary in part), key=lambda summary: summary.name)

    async def _tenants_of(self, memory: MemoryPort, deadline: Deadline) -> list[TenantSummary]:
        return await self._ask(lambda _: memory.tenants(), deadline)

    async def tenant(self, name: str) -> TenantSummary:
        memory = self._memory.owner_of(name)
        return await self._ask(lambda _: memory.tenant(name), self._deadline())

    # -- facts --------------------------------------------------------------------------------------------------

    async def write(self, tenant: str, facts: Sequence[FactText], idempotency: Idempotency) -> WriteReply:
        """Encode, then store: durable and visible when this returns. Refusals of the encoder change nothing."""
        stages, deadline = Stages(), self._deadline()
        with stages.timed("encode"):
            encoded = await self._encode(lambda: self._encoder.encode_facts(facts), deadline)
        memory = self._memory.owner_of(tenant)
        with stages.timed("memory"):
            reply = await self._change(
                lambda left_s: memory.write(tenant, facts, encoded, idempotency, left_s), deadline
            )
        return replace(reply, ms=reply.ms | stages.done())

    async def facts(self, tenant: str, after: int, limit: int) -> FactPage:
        memory = self._memory.owner_of(tenant)
        return await self._ask(lambda _: memory.facts(tenant, after, limit), self._deadline())

    async def fact(self, tenant: str, fact_id: str) -> FactRecord:
        memory = self._memory.owner_of(tenant)
        return await self._ask(lambda _: memory.fact(tenant, fact_id), self._deadline())

    async def verify(self, tenant: str) -> Verification:
        memory = self._memory.owner_of(tenant)
        return await self._ask(lambda _: memory.verify(tenant), self._deadline())

    # -- forgetting ---------------------------------------------------------------------------------------------

    async def forget(self, tenant: str, fact_ids: Sequence[str], idempotency: Idempotency) -> ForgetReceipt:
        stages, memory = Stages(), self._memory.owner_of(tenant)
        with stages.timed("memory"):
            receipt = await self._change(
                lambda left_s: memory.forget(tenant, fact_ids, False, idempotency, left_s), self._deadline()
            )
        return replace(receipt, ms=receipt.ms | stages.done())

    async def forget_dry_run(self, tenant: str, fact_ids: Sequence[str]) -> ForgetReceipt:
        stages, memory = Stages(), self._memory.owner_of(tenant)
        with stages.timed("memory"):
            receipt = await self._ask(lambda _: memory.forget(tenant, fact_ids, True, None), self._deadline())
        return replace(receipt, ms=stages.done())

    async def preview(
        self,
        tenant: str,
        *,
        query: str | None = None,
        tags: tuple[str, ...] | None = None,
        before: float | None = None,
        limit: int,
    ) -> list[FactRecord]:
        """The facts that exactly one of `query`, `tags`, `before` (seconds since the epoch) is about."""
        deadline, memory = self._deadline(), self._memory.owner_of(tenant)
        selector = Selector(tags=tags, before=before)
        if query is not None:
            [keys] = await self._encode(lambda: self._encoder.encode_queries([query]), deadline)
            selector = Selector(keys=keys)
        found = await self._ask(lambda _: memory.select(tenant, selector, limit), deadline)
        return found if query is None else await self._asked_for(query, found, deadline)

    async def _asked_for(self, query: str, found: list[FactRecord], deadline: Deadline) -> list[FactRecord]:
        """Those that `query` asks for by the second half of the gate; where the words are not kept, the nearest."""
        stage = self._second_stage
        if stage is None:
            return found
        prompts = list(dict.fromkeys(fact.prompt for fact in found if fact.prompt is not None))
        matches: dict[str | None, float] = {}
        if prompts:
            answered = await self._encode(lambda: self._encoder.match_prompts(query, prompts), deadline)
            matches.update(zip(prompts, answered, strict=True))
        return [fact for fact in found if stage.lets_in(matches.get(fact.prompt), fact.score or 0.0)]

    async def retract(self, tenant: str, fact_ids: Sequence[str], idempotency: Idempotency) -> Retraction:
        """Write "unknown" over prompt-target facts. Raises InvalidField naming every id that has no such text."""
        deadline, memory = self._deadline(), self._memory.owner_of(tenant)
        found = await asyncio.gather(*(self._found(memory, tenant, fact_id, deadline) for fact_id in fact_ids))
        if any(record is None for record in found):
            replayed = await self._replayed_write(memory, tenant, idempotency, deadline)
            if replayed is not None:
                return Retraction(tuple(fact_ids), replayed)
        written = await self.write(tenant, unknowns_over(fact_ids, found), idempotency)
        return Retraction(tuple(fact_ids), written)

    async def _found(self, memory: MemoryPort, tenant: str, fact_id: str, deadline: Deadline) -> FactRecord | None:
        try:
            return await self._ask(lambda _: memory.fact(tenant, fact_id), deadline)
        except NotFound as missing:
            if missing.args[0] != "fact":
                raise
            return None

    async def _replayed_write(
        self, memory: MemoryPort, tenant: str, idempotency: Idempotency, deadline: Deadline
    ) -> WriteReply | None:
        """The stored reply to this idempotency key, if there is one.

        A retraction whose reply was lost finds its facts superseded when it comes again. The ledger looks a key up
        before it looks at the deadline, so a write whose deadline has passed is answered or refused, never applied.
        """
        try:
            return await self._ask(lambda _: memory.write(tenant, [], _NOTHING, idempotency, -1.0), deadline)
        except DeadlineExceeded:
            return None

    # -- queries ------------------------------------------------------------------------------------------------

    async def query(self, tenant: str, query: Query) -> Answer:
        stages, deadline = Stages(), self._deadline()
        recall = await self._recall(tenant, query, stages, deadline)
        request = _conditioned(query.generation, recall)
        generation = await self._patience.insist(
            lambda _: self._decoder.generate(request), what=DECODER, deadline=deadline
        )
        for stage in ("prefill", "decode"):
            stages.add(stage, generation.ms.get(stage, 0.0))
        return Answer(generation, recall, stages.done())

    async def query_stream(self, tenant: str, query: Query) -> AnswerStream:
        """The recall at once; the text as it is made. Close `chunks` to stop the decoder."""
        stages, deadline = Stages(), self._deadline()
        recall = await self._recall(tenant, query, stages, deadline)
        return AnswerStream(recall, self._chunks(_conditioned(query.generation, recall), stages, deadline), stages)

    async def _recall(self, tenant: str, query: Query, stages: Stages, deadline: Deadline) -> Recall | None:
        if not query.memory:
            return None
        with stages.timed("encode"):
            [keys] = await self._encode(lambda: self._encoder.encode_queries([query.generation.prompt]), deadline)
        memory = self._memory.owner_of(tenant)

        def ask(_: float) -> Awaitable[Recall]:
            return memory.recall(tenant, keys, query.read, query.min_version)

        with stages.timed("memory"):
            try:
                recall = await self._ask(ask, deadline)
            except StaleMemory:
                # A known address may be that of a superseded process; asking again looks the name up anew.
                recall = await self._ask(ask, deadline)
        stages.add("scope", recall.scope_ms)
        stages.add("read", recall.read_ms)
        return await self._verified(query.generation.prompt, recall, stages, deadline)

    async def _verified(self, prompt: str, recall: Recall, stages: Stages, deadline: Deadline) -> Recall:
        """The second half of the gate: what was read must be what was asked for, or nothing was recalled."""
        if self._second_stage is None or not recall.in_scope or recall.readout is None:
            return recall
        readback = Readback(prompt, recall.readout, recall.prompt_tokens, recall.target_tokens)
        with stages.timed("verify"):
            match = await self._encode(lambda: self._encoder.match(readback), deadline)
        if self._second_stage.lets_in(match, recall.score):
            return replace(recall, match=match)
        return replace(
            recall, in_scope=False, match=match, fact_id=None, readout=None, prompt_tokens=0, target_tokens=0
        )

    async def _chunks(
        self, request: GenerationRequest, stages: Stages, deadline: Deadline
    ) -> AsyncGenerator[GenerationChunk, None]:
        """The decoder's chunks. A decoder lost before its first chunk is asked again; afterwards Unavailable."""

        async def start(_: float) -> tuple[AsyncGenerator[GenerationChunk, None], GenerationChunk]:
            opened = self._decoder.stream(request)
            return opened, await anext(opened)

        opened, chunk = await self._patience.insist(start, what=DECODER, deadline=deadline)
        async with aclosing(opened):
            while True:
                if chunk.finish_reason is not None:
                    for stage in ("prefill", "decode"):
                        stages.add(stage, chunk.ms.get(stage, 0.0))
                    stages.done()
                yield chunk
                if chunk.finish_reason is not None:
                    return
                try:
                    async with asyncio.timeout(deadline.left_s()):
                        chunk = await anext(opened)
                except (CallLost, StopAsyncIteration) as error:
                    reason = error.reason if isinstance(error, CallLost) else "the answer broke off"
                    raise Unavailable(DECODER, reason) from None
                except TimeoutError:
                    raise DeadlineExceeded("the rest of the answer", deadline.seconds) from None

    # -- health -------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """What each component says of itself: `memory` (a list), `encoder`, `decoder`; {"error": reason} if mute."""
        actors = self._memory.everyone()
        *memories, encoder, decoder = await asyncio.gather(
            *(_within(actor.status(), MEMORY) for actor in actors),
            _within(self._encoder.status(), ENCODER),
            _within(self._decoder.status(), DECODER),
        )
        return {"memory": memories, "encoder": encoder, "decoder": decoder}

    async def missing(self) -> list[str]:
        """The components that do not answer; empty when ready."""
        status = await self.status()
        named = [(f"memory[{index}]", part) for index, part in enumerate(status["memory"])]
        named += [("encoder", status["encoder"]), ("decoder", status["decoder"])]
        return [name for name, part in named if "error" in part]

    # -- calling ------------------------------------------------------------------------------------------------

    def _deadline(self) -> Deadline:
        return self._memory.deadline()

    async def _encode(self, call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        return await self._patience.insist(lambda _: call(), what=ENCODER, deadline=deadline)

    async def _ask(self, call: Callable[[float], Awaitable[T]], deadline: Deadline) -> T:
        return await self._memory.ask(call, deadline)

    async def _change(self, call: Callable[[float], Awaitable[T]], deadline: Deadline) -> T:
        return await self._memory.change(call, deadline)

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancelling the caller leaves it running to its end."""
        return await self._memory.shielded(work)


_NOTHING = EncodedFacts(
    keys=np.zeros((0, 1), np.float16),
    latents=np.zeros((0, 1), np.int8),
    rows=np.zeros(0, np.int32),
    prompt_tokens=np.zeros(0, np.int32),
    target_tokens=np.zeros(0, np.int32),
)


def _conditioned(request: GenerationRequest, recall: Recall | None) -> GenerationRequest:
    """The decoding job; out of scope it is the prompt alone, exactly as for the base model."""
    if recall is None or not recall.in_scope or recall.readout is None:
        return request
    return replace(
        request, readout=recall.readout, prompt_tokens=recall.prompt_tokens, target_tokens=recall.target_tokens
    )


async def _within(status: Awaitable[Any], what: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            plain: dict[str, Any] = as_plain(await status)
            return plain
    except TimeoutError:
        return {"error": f"{what} did not answer within {STATUS_TIMEOUT_S} s"}
    except (CallLost, LarimarError) as error:
        return {"error": str(error)}
