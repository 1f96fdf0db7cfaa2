"""The HTTP routes that keep memories: checkpoints, restores, residency, receipts, diagnoses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response

from cluster import safekeeping_schemas as bodies
from cluster.body import clip, validate
from cluster.exchange import Exchange, check_id, idempotency_of, render
from cluster.ports import PrincipalPort
from cluster.safekeeping import RestoreRequest, Safekeeping
from cluster.schemas import CHECKPOINT_ID_PATTERN, RECEIPT_ID_PATTERN, TENANT_PATTERN, TenantReply
from cluster.settings import Settings
from memory_actor.errors import InvalidField, InvalidLocation
from memory_actor.types import ErasureState, Idempotency, as_plain

if TYPE_CHECKING:
    from memory_actor.doctor import Finding

LATEST = "latest"
ACCEPTED = 202


class SafekeepingRoutes:
    """One coroutine per route."""

    def __init__(self, safekeeping: Safekeeping, exchange: Exchange, settings: Settings) -> None:
        self._safekeeping = safekeeping
        self._exchange = exchange
        self._locations = tuple(settings.checkpoint_locations)

    # -- residency ----------------------------------------------------------------------------------------------

    async def sleep(self, request: Request, tenant: str) -> Response:
        """Put a tenant's memory on disk only; every request goes on working and wakes it."""
        await self._exchange.admin(request, "put tenants to sleep")
        check_id("tenant name", tenant, TENANT_PATTERN)
        return render(request, TenantReply.of(await self._safekeeping.sleep(tenant)))

    async def wake(self, request: Request, tenant: str) -> Response:
        """Load a tenant's memory before somebody asks for it."""
        await self._exchange.admin(request, "wake tenants")
        check_id("tenant name", tenant, TENANT_PATTERN)
        return render(request, TenantReply.of(await self._safekeeping.wake(tenant)))

    # -- checkpoints --------------------------------------------------------------------------------------------

    async def checkpoint(self, request: Request, tenant: str) -> Response:
        """Publish a checkpoint of the tenant as it is now."""
        principal = await self._exchange.allow(request, tenant)
        value = await self._exchange.optional_body(request)
        asked = validate(bodies.CheckpointRequest, value, self._exchange.limits)
        self._check_location(asked.location, principal)
        info = await self._safekeeping.checkpoint(tenant, asked.location)
        return render(request, bodies.CheckpointReply(tenant=info.tenant, **bodies.checkpoint_fields(info)), 201)

    def _check_location(self, name: str, principal: PrincipalPort) -> None:
        if name in self._locations:
            return
        # What an operator configured is nobody else's business.
        allowed = "those the operator names" if principal.tenant is not None else ", ".join(self._locations)
        raise InvalidLocation(clip(name), allowed)

    async def list_checkpoints(self, request: Request, tenant: str) -> Response:
        """The tenant's checkpoints, newest first."""
        await self._exchange.allow(request, tenant)
        found = await self._safekeeping.checkpoints(tenant)
        listed = [bodies.ListedCheckpoint(**bodies.checkpoint_fields(info)) for info in found]
        return render(request, bodies.CheckpointsReply(tenant=tenant, checkpoints=listed))

    async def restore(self, request: Request, tenant: str) -> Response:
        """Fill a new tenant, or this one in place, from a checkpoint."""
        principal = await self._exchange.allow(request, tenant)
        key = self._exchange.idempotency_key(request)
        value = await self._exchange.body(request)
        asked = validate(bodies.RestoreBody, value, self._exchange.limits)
        if not asked.in_place or asked.from_tenant not in (None, tenant):
            principal.require_admin("restore into new tenants or from other tenants")
        wanted = _restore_request(tenant, asked)
        once = idempotency_of("restore", tenant, value, key)
        reply = await self._safekeeping.shielded(self._restore(wanted, once))
        return render(request, reply, 200 if asked.in_place else 201, replayed=reply.replayed)

    async def _restore(self, wanted: RestoreRequest, once: Idempotency) -> bodies.RestoreResponse:
        reply = await self._safekeeping.restore(wanted, once)
        # As for a tenant that is created: a replay must not invalidate the key that the first reply carried.
        fresh = not reply.in_place and not reply.replayed
        key = await self._exchange.renewed_key(reply.tenant) if fresh else None
        return bodies.RestoreResponse.made(reply, wanted.source, key)

    # -- receipts -----------------------------------------------------------------------------------------------

    async def receipt(self, request: Request, receipt_id: str) -> Response:
        """How far an erasure is, and the signed receipt when it is done: 202 until then."""
        principal = await self._exchange.principal(request)
        check_id("receipt id", receipt_id, RECEIPT_ID_PATTERN)
        status = await self._safekeeping.receipt(receipt_id, principal.tenant)
        done = status.state is ErasureState.DONE
        return render(request, bodies.ReceiptReply.of(status), 200 if done else ACCEPTED)

    # -- diagnoses ----------------------------------------------------------------------------------------------

    async def doctor(self, request: Request, tenant: str) -> Response:
        """What is wrong with one tenant's stored data."""
        await self._exchange.admin(request, "ask for diagnoses")
        check_id("tenant name", tenant, TENANT_PATTERN)
        return render(request, _diagnosis(await self._safekeeping.diagnose(tenant)))

    async def doctor_all(self, request: Request) -> Response:
        """What is wrong with any stored data."""
        await self._exchange.admin(request, "ask for diagnoses")
        return render(request, _diagnosis(await self._safekeeping.diagnose_all()))


def _restore_request(tenant: str, asked: bodies.RestoreBody) -> RestoreRequest:
    """Raises InvalidId, InvalidField."""
    source = asked.from_tenant or tenant
    check_id("tenant name", source, TENANT_PATTERN)
    if asked.checkpoint_id != LATEST:
        check_id("checkpoint id", asked.checkpoint_id, CHECKPOINT_ID_PATTERN)
    if asked.in_place != (source == tenant):
        message = (
            "in place a tenant is restored from its own checkpoints; leave 'from_tenant' out or restore a new tenant"
            if asked.in_place
            else "a new tenant needs another name than 'from_tenant'; to replace what it holds now say 'in_place': true"
        )
        raise InvalidField(message, [{"loc": ["body", "from_tenant"], "msg": message, "got": clip(source)}])
    checkpoint_id = None if asked.checkpoint_id == LATEST else asked.checkpoint_id
    return RestoreRequest(tenant, source, checkpoint_id, asked.version, asked.in_place)


def _diagnosis(findings: Sequence[Finding]) -> bodies.DoctorReply:
    return bodies.DoctorReply(healthy=not findings, findings=[as_plain(finding) for finding in findings])
