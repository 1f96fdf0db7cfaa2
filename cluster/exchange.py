"""What every route does before and after its own work: key, path, idempotency key, body; then the reply as asked for.

The order is the same everywhere. A tenant's key that names another tenant gets the answer of a tenant that does not
exist.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import msgpack
import orjson
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from cluster import schemas
from cluster.body import JSON, MSGPACK, clip, decode_body, read_body
from cluster.ports import KeysPort, PrincipalPort
from cluster.settings import Settings
from memory_actor.errors import IdempotencyKeyInvalid, IdempotencyKeyRequired, InvalidField, InvalidId
from memory_actor.types import Idempotency

REPLAYED = "Idempotent-Replayed"
_PRINTABLE = re.compile(r"[ -~]+")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")


class Exchange:
    """Keys, limits and the clock of one gateway replica. `now` is the wall clock in seconds."""

    def __init__(self, keys: KeysPort, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self.keys = keys
        self.limits = settings.limits
        self.now = now
        self._body_bytes_max = settings.http.body_bytes_max

    async def principal(self, request: Request) -> PrincipalPort:
        """Who asks. Raises Unauthenticated."""
        header = request.headers.get("authorization")
        return await anyio.to_thread.run_sync(lambda: self.keys.authenticate(header, self.now()))

    async def admin(self, request: Request, action: str) -> None:
        """Pass the admin only; `action` completes "this key may not …"."""
        (await self.principal(request)).require_admin(action)

    async def allow(self, request: Request, tenant: str) -> PrincipalPort:
        """Pass the admin and the tenant's own key."""
        principal = await self.principal(request)
        check_id("tenant name", tenant, schemas.TENANT_PATTERN)
        principal.require_tenant(tenant)
        return principal

    async def body(self, request: Request) -> Any:
        """The decoded body. Raises BodyTooLarge, UnsupportedMediaType, MalformedBody."""
        body = await read_body(request.headers, request.stream(), self._body_bytes_max)
        return decode_body(request.headers.get("content-type"), body)

    async def optional_body(self, request: Request) -> Any:
        """The decoded body, an empty object where there is none."""
        body = await read_body(request.headers, request.stream(), self._body_bytes_max)
        return decode_body(request.headers.get("content-type"), body) if body else {}

    def idempotency_key(self, request: Request) -> str:
        """Raises IdempotencyKeyRequired, IdempotencyKeyInvalid."""
        key = request.headers.get("idempotency-key")
        if key is None:
            raise IdempotencyKeyRequired
        length_max = self.limits.idempotency_key_chars_max
        if len(key) > length_max or not _PRINTABLE.fullmatch(key):
            raise IdempotencyKeyInvalid(len(key), length_max)
        return key

    async def renewed_key(self, tenant: str) -> str:
        """A new key for the tenant.

        Issuing ends earlier keys: one that outlived an earlier tenant of this name does not open the new one.
        """
        return await anyio.to_thread.run_sync(lambda: self.keys.issue(tenant, self.now()))

    async def revoke_keys(self, tenant: str) -> None:
        await anyio.to_thread.run_sync(lambda: self.keys.revoke_tenant(tenant, self.now()))


def idempotency_of(endpoint: str, tenant: str, value: Any, key: str) -> Idempotency:
    """The key with a digest of the request as its caller meant it: JSON or msgpack, key order and spaces aside."""
    canonical = json.dumps([endpoint, tenant, value], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Idempotency(key, hashlib.sha256(canonical.encode()).digest(), endpoint)


def check_id(what: str, value: str, pattern: str) -> None:
    """Raises InvalidId."""
    if not re.fullmatch(pattern, value):
        raise InvalidId(what, clip(value), pattern)


def whole_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A query parameter. Raises InvalidField with its name and range."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if not _WHOLE_NUMBER.fullmatch(given) or not least <= int(given) <= most:
        message = f"must be a whole number from {least} to {most}"
        raise InvalidField(f"{name}: {message}", [{"loc": ["query", name], "msg": message, "got": clip(given)}])
    return int(given)


def render(
    request: Request, reply: BaseModel | dict[str, Any], status: int = 200, *, replayed: bool = False
) -> Response:
    """The reply as the caller asked for it; JSON unless `Accept` names msgpack first."""
    value = reply.model_dump() if isinstance(reply, BaseModel) else reply
    headers = {REPLAYED: "true"} if replayed else None
    accepted = request.headers.get("accept", "")
    named = [kind.partition(";")[0].strip().lower() for kind in accepted.split(",")]
    if next((kind for kind in named if kind in {JSON, MSGPACK}), JSON) == MSGPACK:
        packed: bytes = msgpack.packb(value)
        return Response(packed, status, headers, media_type=MSGPACK)
    return Response(orjson.dumps(value), status, headers, media_type=JSON)
