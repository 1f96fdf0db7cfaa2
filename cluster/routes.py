"""The HTTP routes: authenticate, parse, validate, hand to the router, render. Nothing about the memory is decided here.

The order is the same everywhere: key, path, idempotency key, body. A tenant's key that names another tenant gets the
answer of a tenant that does not exist.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import format_sse_event

from cluster import schemas
from cluster.body import JSON, validate
from cluster.exchange import Exchange, check_id, idempotency_of, render, whole_number
from cluster.ports import KeysPort
from cluster.problems import log_unexpected, problem_of, request_id_of, unwrapped
from cluster.router import AnswerStream, Query, Router
from cluster.safekeeping_routes import SafekeepingRoutes
from cluster.settings import Settings
from memory_actor.errors import LarimarError, NotFound, Unavailable
from memory_actor.types import ForgetReceipt, Idempotency, ReadMode, Retention, WriteReply
from workers.ports import AnswerMode, GenerationRequest

READY_CACHE_S = 0.5  # /readyz needs no key: however often it is asked, the components are asked twice a second


class Routes:
    """One coroutine per route, over a router and the API keys. `now` is the wall clock in seconds."""

    def __init__(
        self, router: Router, keys: KeysPort, settings: Settings, now: Callable[[], float] = time.time
    ) -> None:
        self._router = router
        self._exchange = Exchange(keys, settings, now)
        self.safekeeping = SafekeepingRoutes(router.safekeeping, self._exchange, settings)
        self._ready: tuple[float, list[str]] | None = None

    # -- tenants and keys ---------------------------------------------------------------------------------------

    async def create_tenant(self, request: Request) -> Response:
        """Create a tenant; the reply shows its key once."""
        await self._exchange.admin(request, "create tenants")
        key = self._exchange.idempotency_key(request)
        value = await self._exchange.body(request)
        asked = validate(schemas.TenantRequest, value, self._exchange.limits)
        check_id("tenant name", asked.name, schemas.TENANT_PATTERN)
        once = idempotency_of("create_tenant", asked.name, value, key)
        reply = await self._router.shielded(self._create(asked.name, Retention(asked.retention), once))
        return render(request, reply, 201, replayed=reply.replayed)

    async def _create(self, name: str, retention: Retention, once: Idempotency) -> schemas.TenantCreatedReply:
        summary = await self._router.create_tenant(name, retention, once)
        # A replay must not invalidate the key that the first reply carried.
        key = None if summary.replayed else await self._exchange.renewed_key(name)
        return schemas.TenantCreatedReply.made(summary, key)

    async def list_tenants(self, request: Request) -> Response:
        """All tenants for the admin key; for a tenant's key, that tenant."""
        principal = await self._exchange.principal(request)
        if principal.tenant is None:
            summaries = await self._router.tenants()
        else:
            summaries = [await self._router.tenant(principal.tenant)]
        return render(request, schemas.TenantsReply(tenants=[schemas.TenantReply.of(item) for item in summaries]))

    async def show_tenant(self, request: Request, tenant: str) -> Response:
        """One tenant with its state hash."""
        await self._exchange.allow(request, tenant)
        return render(request, schemas.TenantReply.of(await self._router.tenant(tenant)))

    async def delete_tenant(self, request: Request, tenant: str) -> Response:
        """End a tenant, its facts and its keys."""
        await self._exchange.admin(request, "delete tenants")
        check_id("tenant name", tenant, schemas.TENANT_PATTERN)
        once = idempotency_of("delete_tenant", tenant, None, self._exchange.idempotency_key(request))
        reply = await self._router.shielded(self._delete(tenant, once))
        return render(request, reply, replayed=reply.replayed)

    async def _delete(self, tenant: str, once: Idempotency) -> schemas.TenantDeletedReply:
        summary = await self._router.delete_tenant(tenant, once)
        # A replay must not revoke the keys of a later tenant of the same name.
        if not summary.replayed or not await self._exists(tenant):
            await self._exchange.revoke_keys(tenant)
        plain = schemas.TenantReply.of(summary).model_dump()
        return schemas.TenantDeletedReply(**plain, replayed=summary.replayed, receipt_id=summary.receipt_id)

    async def _exists(self, tenant: str) -> bool:
        try:
            await self._router.tenant(tenant)
        except NotFound:
            return False
        return True

    async def renew_key(self, request: Request, tenant: str) -> Response:
        """A new key for a tenant; the old one stops working. A retry makes another and ends the first."""
        await self._exchange.admin(request, "make keys")
        check_id("tenant name", tenant, schemas.TENANT_PATTERN)
        self._exchange.idempotency_key(request)
        await self._router.tenant(tenant)
        key = await self._router.shielded(self._exchange.renewed_key(tenant))
        return render(request, schemas.KeyReply(tenant=tenant, key=key), 201)

    # -- facts --------------------------------------------------------------------------------------------------

    async def write(self, request: Request, tenant: str) -> Response:
        """Write facts, all or none; durable and visible when answered."""
        await self._exchange.allow(request, tenant)
        key = self._exchange.idempotency_key(request)
        value = await self._exchange.body(request)
        if isinstance(value, dict) and "facts" not in value and value.keys() & {"prompt", "text"}:
            facts = [validate(schemas.FactRequest, value, self._exchange.limits)]
        else:
            facts = validate(schemas.WriteRequest, value, self._exchange.limits).facts
        once = idempotency_of("write", tenant, value, key)
        reply = await self._router.write(tenant, [fact.fact() for fact in facts], once)
        return render(request, _written(reply), replayed=reply.replayed)

    async def list_facts(self, request: Request, tenant: str) -> Response:
        """Facts in the order of writing, page by page."""
        await self._exchange.allow(request, tenant)
        default = min(100, self._exchange.limits.page_facts_max)
        limit = whole_number(request, "limit", default, 1, self._exchange.limits.page_facts_max)
        after = whole_number(request, "after", 0, 0, schemas.INTEGER_MAX)
        page = await self._router.facts(tenant, after, limit)
        facts = [schemas.FactReply.of(record) for record in page.facts]
        return render(request, schemas.FactsReply(facts=facts, next_after=page.next_after))

    async def show_fact(self, request: Request, tenant: str, fact_id: str) -> Response:
        """One fact."""
        await self._exchange.allow(request, tenant)
        check_id("fact id", fact_id, schemas.FACT_ID_PATTERN)
        return render(request, schemas.FactReply.of(await self._router.fact(tenant, fact_id)))

    async def forget(self, request: Request, tenant: str) -> Response:
        """Forget by ids; preview by query, tags or time; or retract."""
        await self._exchange.allow(request, tenant)
        value = await self._exchange.body(request)
        asked = validate(schemas.ForgetRequest, value, self._exchange.limits)
        if asked.ids is None:
            return await self._preview(request, tenant, asked)
        for fact_id in asked.ids:
            check_id("fact id", fact_id, schemas.FACT_ID_PATTERN)
        if asked.dry_run:
            return render(request, _forgotten(await self._router.forget_dry_run(tenant, asked.ids)))
        key = self._exchange.idempotency_key(request)
        if asked.retract:
            once = idempotency_of("retract", tenant, value, key)
            return await self._retract(request, tenant, list(dict.fromkeys(asked.ids)), once)
        receipt = await self._router.forget(tenant, asked.ids, idempotency_of("forget", tenant, value, key))
        return render(request, _forgotten(receipt), replayed=receipt.replayed)

    async def _preview(self, request: Request, tenant: str, asked: schemas.ForgetRequest) -> Response:
        tags = None if asked.tags is None else tuple(asked.tags)
        limit = self._exchange.limits.page_facts_max
        found = await self._router.preview(tenant, query=asked.query, tags=tags, before=asked.before_s(), limit=limit)
        return render(request, schemas.PreviewResponse(candidates=[schemas.FactReply.of(item) for item in found]))

    async def _retract(self, request: Request, tenant: str, fact_ids: list[str], once: Idempotency) -> Response:
        done = await self._router.retract(tenant, fact_ids, once)
        written = _written(done.written).model_dump()
        reply = schemas.RetractResponse(retracted=list(done.retracted), **written)
        return render(request, reply, replayed=reply.replayed)

    async def verify(self, request: Request, tenant: str) -> Response:
        """Rebuild the memory from the surviving facts and compare hashes."""
        await self._exchange.allow(request, tenant)
        found = await self._router.verify(tenant)
        reply = schemas.VerifyResponse(
            identical=found.identical,
            state_hash=found.state_hash,
            rebuilt_hash=found.rebuilt_hash,
            facts=found.facts,
            version=found.version,
            ms=round(found.ms, 3),
        )
        return render(request, reply)

    # -- queries ------------------------------------------------------------------------------------------------

    async def query(self, request: Request, tenant: str) -> Response:
        """Answer a prompt with the memory's help; as server-sent events when `stream` is true."""
        await self._exchange.allow(request, tenant)
        asked = validate(schemas.QueryRequest, await self._exchange.body(request), self._exchange.limits)
        query = _query(asked)
        if asked.stream:
            answer = await self._router.query_stream(tenant, query)
            events = _events(answer, request_id_of(request.scope))
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        done = await self._router.query(tenant, query)
        reply = schemas.QueryResponse(
            **schemas.RecallReply.of(done.recall).model_dump(),
            text=done.generation.text,
            finish_reason=done.generation.finish_reason,
            usage=schemas.QueryUsage(ms=done.ms, tokens=len(done.generation.tokens)),
        )
        return render(request, reply)

    # -- health -------------------------------------------------------------------------------------------------

    async def livez(self) -> Response:
        """This process answers."""
        return Response(b'{"live":true}', media_type=JSON)

    async def readyz(self) -> Response:
        """Everything a request needs answers."""
        now = time.monotonic()
        if self._ready is None or now - self._ready[0] > READY_CACHE_S:
            self._ready = (now, await self._router.missing())
        if missing := self._ready[1]:
            raise Unavailable(", ".join(missing), "starting, restarting or failed")
        return Response(b'{"ready":true}', media_type=JSON)

    async def status(self, request: Request) -> Response:
        """What every component says of itself."""
        await self._exchange.admin(request, "see the status")
        components = await self._router.status()
        return render(request, {**components, "gateway": {"pid": os.getpid()}})


def _query(asked: schemas.QueryRequest) -> Query:
    generation = GenerationRequest(
        prompt=asked.prompt,
        mode=AnswerMode(asked.mode),
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=asked.seed,
    )
    return Query(generation, asked.memory == "on", ReadMode(asked.read), asked.min_version)


async def _events(answer: AnswerStream, request_id: str) -> AsyncGenerator[bytes, None]:
    """Server-sent events: `recall`, then `token`s, then `done`; or `error` with a problem document as the last."""
    yield _event("recall", schemas.RecallReply.of(answer.recall).model_dump())
    tokens = 0
    try:
        async with aclosing(answer.chunks):
            async for chunk in answer.chunks:
                tokens += len(chunk.tokens)
                if chunk.text:
                    yield _event("token", {"text": chunk.text})
                if chunk.finish_reason is not None:
                    usage = {"ms": answer.stages.ms, "tokens": tokens}
                    yield _event("done", {"finish_reason": chunk.finish_reason, "usage": usage})
    except Exception as error:  # noqa: BLE001 - the status line is sent; what is left is to say it in the stream
        if not isinstance(unwrapped(error), LarimarError):
            log_unexpected(error, request_id)
        yield _event("error", problem_of(error, request_id))


def _event(name: str, value: Any) -> bytes:
    return format_sse_event(event=name, data_str=orjson.dumps(value).decode())


def _written(reply: WriteReply) -> schemas.WriteResponse:
    return schemas.WriteResponse(
        ids=list(reply.fact_ids),
        version=reply.version,
        superseded=list(reply.superseded),
        replayed=reply.replayed,
        usage=schemas.Usage(ms=reply.ms),
    )


def _forgotten(receipt: ForgetReceipt) -> schemas.ForgetResponse:
    return schemas.ForgetResponse(
        forgotten=list(receipt.forgotten),
        not_found=list(receipt.not_found),
        state_hash_before=receipt.state_hash_before,
        state_hash_after=receipt.state_hash_after,
        version=receipt.version,
        facts=receipt.facts,
        dry_run=receipt.dry_run,
        replayed=receipt.replayed,
        outcome="not_applied" if receipt.dry_run else "applied",
        receipt_id=receipt.receipt_id,
        erase_by=None if receipt.erase_by is None else schemas.iso_time(receipt.erase_by),
        usage=schemas.Usage(ms=receipt.ms),
    )
