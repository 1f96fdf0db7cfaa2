"""The Python client: one method per route, safe retries, typed replies.

Every change gets an idempotency key of its own, kept over all retries: whatever was lost on the way, a call that
returns has been applied exactly once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx2
import stamina
from pydantic import BaseModel

from cluster import safekeeping_schemas, schemas

R = TypeVar("R", bound=BaseModel)

Fact = Mapping[str, Any]  # {"prompt", "target"} or {"text"}, with `tags` and `keep_both`


class ApiError(Exception):
    """A refusal, with the fields of its problem document.

    An answer without one (a proxy's bare 5xx) has code "http_error" and outcome "unknown".
    """

    def __init__(self, problem: schemas.Problem, retry_after_s: float | None = None) -> None:
        super().__init__(problem, retry_after_s)
        self.problem = problem
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        lines = [f"{self.problem.code} ({self.problem.status}): {self.problem.detail}"]
        lines += [f"  {_dotted(item.get('loc', []))}: {item.get('msg')}" for item in self.problem.errors or []]
        return "\n".join(lines)

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def outcome(self) -> str:
        return self.problem.outcome

    @property
    def retryable(self) -> bool:
        return self.problem.retryable

    @property
    def request_id(self) -> str:
        return self.problem.request_id


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a call is repeated on lost connections and on refusals that say `retryable`."""

    attempts: int = 8
    timeout_s: float = 45.0
    wait_initial_s: float = 0.1
    wait_max_s: float = 5.0


@dataclass(frozen=True, slots=True)
class QueryEvent:
    """One event of a streamed query: `recall`, `token` or `done`, with the event's fields."""

    kind: Literal["recall", "token", "done"]
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The piece of text a `token` carries; empty for the others."""
        return str(self.fields.get("text", ""))


class Client:
    """A connection to one server. Close it, or use it in a `with` block.

    Args: key: an API key; timeout_s: for one attempt, which may wait for a long answer to be generated.
    Raises: ApiError from every method; httpx2.TransportError when nobody was reached in time.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout_s: float = 65.0,
        retries: Retries | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        headers = {"Accept": "application/json", "User-Agent": "larimar-client"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._retries = retries or Retries()
        self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- tenants ------------------------------------------------------------------------------------------------

    def create_tenant(self, name: str, retention: Literal["text", "latent"] = "text") -> schemas.TenantCreatedReply:
        """Needs the admin key. The reply carries the tenant's key, this once."""
        body = {"name": name, "retention": retention}
        return self._change("POST", "/v1/tenants", schemas.TenantCreatedReply, body)

    def delete_tenant(self, name: str) -> schemas.TenantDeletedReply:
        """Needs the admin key."""
        return self._change("DELETE", f"/v1/tenants/{name}", schemas.TenantDeletedReply)

    def tenants(self) -> list[schemas.TenantReply]:
        """All tenants with the admin key; with a tenant's key, that tenant."""
        return self._call("GET", "/v1/tenants", schemas.TenantsReply).tenants

    def tenant(self, name: str) -> schemas.TenantReply:
        """One tenant with its state hash."""
        return self._call("GET", f"/v1/tenants/{name}", schemas.TenantReply)

    def new_key(self, tenant: str) -> str:
        """Needs the admin key. A new key for the tenant; the old one stops working."""
        return self._change("POST", f"/v1/tenants/{tenant}/key", schemas.KeyReply).key

    # -- facts --------------------------------------------------------------------------------------------------

    def write(
        self, tenant: str, facts: Fact | Sequence[Fact], *, idempotency_key: str | None = None
    ) -> schemas.WriteResponse:
        """Write facts, all or none. A fact is `{"prompt", "target"}` or `{"text"}`, with `tags` and `keep_both`."""
        body = {"facts": [dict(fact) for fact in ([facts] if isinstance(facts, Mapping) else facts)]}
        return self._change("POST", f"/v1/tenants/{tenant}/facts", schemas.WriteResponse, body, idempotency_key)

    def facts(self, tenant: str, *, page: int | None = None) -> Iterator[schemas.FactReply]:
        """All facts in the order of writing, fetched page by page."""
        after: int | None = 0
        while after is not None:
            query = {"after": after} if page is None else {"after": after, "limit": page}
            reply = self._call("GET", f"/v1/tenants/{tenant}/facts", schemas.FactsReply, query=query)
            yield from reply.facts
            after = reply.next_after

    def fact(self, tenant: str, fact_id: str) -> schemas.FactReply:
        return self._call("GET", f"/v1/tenants/{tenant}/facts/{fact_id}", schemas.FactReply)

    def forget(
        self, tenant: str, ids: Sequence[str], *, dry_run: bool = False, idempotency_key: str | None = None
    ) -> schemas.ForgetResponse:
        """Forget facts as if they had never been written; unknown ids are no error."""
        body = {"ids": list(ids), "dry_run": dry_run}
        return self._change("POST", f"/v1/tenants/{tenant}/forget", schemas.ForgetResponse, body, idempotency_key)

    def preview(
        self, tenant: str, *, query: str | None = None, tags: Sequence[str] | None = None, before: str | None = None
    ) -> list[schemas.FactReply]:
        """The facts that one of `query`, `tags`, `before` (ISO-8601) is about. Changes nothing."""
        given = {"query": query, "tags": None if tags is None else list(tags), "before": before}
        body = {name: value for name, value in given.items() if value is not None}
        return self._call("POST", f"/v1/tenants/{tenant}/forget", schemas.PreviewResponse, body).candidates

    def retract(
        self, tenant: str, ids: Sequence[str], *, idempotency_key: str | None = None
    ) -> schemas.RetractResponse:
        """Write "unknown" over prompt-target facts."""
        body = {"ids": list(ids), "retract": True}
        return self._change("POST", f"/v1/tenants/{tenant}/forget", schemas.RetractResponse, body, idempotency_key)

    def verify(self, tenant: str) -> schemas.VerifyResponse:
        return self._call("POST", f"/v1/tenants/{tenant}/verify", schemas.VerifyResponse)

    # -- keeping ------------------------------------------------------------------------------------------------

    def checkpoint(self, tenant: str, location: str = "local") -> safekeeping_schemas.CheckpointReply:
        """Publish a checkpoint of the tenant as it is now. A lost reply is asked for again and may make another."""
        path = f"/v1/tenants/{tenant}/checkpoints"
        return self._call("POST", path, safekeeping_schemas.CheckpointReply, {"location": location})

    def checkpoints(self, tenant: str) -> list[safekeeping_schemas.ListedCheckpoint]:
        """The tenant's checkpoints, newest first."""
        return self._call("GET", f"/v1/tenants/{tenant}/checkpoints", safekeeping_schemas.CheckpointsReply).checkpoints

    def restore(
        self,
        tenant: str,
        *,
        from_tenant: str | None = None,
        checkpoint_id: str = "latest",
        version: int | None = None,
        in_place: bool = False,
        idempotency_key: str | None = None,
    ) -> safekeeping_schemas.RestoreResponse:
        """Fill the new `tenant` from a checkpoint of `from_tenant` (admin key), or `in_place` from one of its own."""
        given = {"from_tenant": from_tenant, "version": version}
        body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        body |= {"checkpoint_id": checkpoint_id, "in_place": in_place}
        path = f"/v1/tenants/{tenant}/restore"
        return self._change("POST", path, safekeeping_schemas.RestoreResponse, body, idempotency_key)

    def sleep(self, tenant: str) -> schemas.TenantReply:
        """Needs the admin key. The tenant's memory goes to disk until somebody asks."""
        return self._call("POST", f"/v1/tenants/{tenant}:sleep", schemas.TenantReply)

    def wake(self, tenant: str) -> schemas.TenantReply:
        """Needs the admin key."""
        return self._call("POST", f"/v1/tenants/{tenant}:wake", schemas.TenantReply)

    def receipt(self, receipt_id: str) -> safekeeping_schemas.ReceiptReply:
        """How far an erasure is; `receipt` is the signed document once `state` is "done"."""
        return self._call("GET", f"/v1/receipts/{receipt_id}", safekeeping_schemas.ReceiptReply)

    def receipt_done(
        self, receipt_id: str, *, timeout_s: float, poll_s: float = 0.5
    ) -> safekeeping_schemas.ReceiptReply:
        """Wait for the signed receipt. After `timeout_s` the pending one is returned."""
        give_up_at = time.monotonic() + timeout_s
        while (reply := self.receipt(receipt_id)).state != "done" and time.monotonic() < give_up_at:
            time.sleep(poll_s)
        return reply

    def doctor(self, tenant: str | None = None) -> safekeeping_schemas.DoctorReply:
        """Needs the admin key. What is wrong with the stored data of one tenant, or of all."""
        path = "/v1/doctor" if tenant is None else f"/v1/tenants/{tenant}/doctor"
        return self._call("GET", path, safekeeping_schemas.DoctorReply)

    # -- queries ------------------------------------------------------------------------------------------------

    def query(self, tenant: str, prompt: str, **options: Any) -> schemas.QueryResponse:
        """Answer a prompt. `options` are the other fields of the request: mode, max_tokens, memory, read, …"""
        body = {**options, "prompt": prompt}
        return self._call("POST", f"/v1/tenants/{tenant}/query", schemas.QueryResponse, body)

    def query_stream(self, tenant: str, prompt: str, **options: Any) -> Iterator[QueryEvent]:
        """The events of a streamed query. Retried until the first event has come, not after it."""
        body = {**options, "prompt": prompt, "stream": True}
        request = self._http.build_request("POST", f"/v1/tenants/{tenant}/query", json=body)
        response = self._send(request, stream=True)
        try:
            for event in httpx2.EventSource(response):
                fields = dict(event.json())  # type: ignore[call-overload]
                if event.event == "error":
                    raise ApiError(schemas.Problem.model_validate(fields))
                yield QueryEvent(event.event, fields)  # type: ignore[arg-type]
        finally:
            response.close()

    # -- health -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Needs the admin key. What every component says of itself."""
        reply: dict[str, Any] = self._send(self._http.build_request("GET", "/v1/status")).json()
        return reply

    def ready(self) -> bool:
        """Whether the server is ready. Asks once; never raises for a server that is not there."""
        try:
            return self._http.get("/readyz").status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False

    # -- sending ------------------------------------------------------------------------------------------------

    def _change(
        self,
        method: str,
        path: str,
        reply: type[R],
        body: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        return self._call(method, path, reply, body, idempotency_key=idempotency_key or uuid.uuid4().hex)

    def _call(
        self,
        method: str,
        path: str,
        reply: type[R],
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, int] | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        request = self._http.build_request(method, path, json=body, params=query, headers=headers)
        return reply.model_validate_json(self._send(request).content)

    def _send(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        """The successful response, after as many attempts as the settings allow. Raises ApiError, TransportError."""
        give_up_at = time.monotonic() + self._retries.timeout_s

        def worth_another_try(error: Exception) -> bool | float:
            if isinstance(error, httpx2.TransportError):
                return True
            if not isinstance(error, ApiError) or not error.retryable:
                return False
            if error.retry_after_s is None:
                return True
            wait_s = max(error.retry_after_s, self._retries.wait_initial_s)
            return wait_s if time.monotonic() + wait_s < give_up_at else False

        for attempt in stamina.retry_context(
            on=worth_another_try,
            attempts=self._retries.attempts,
            timeout=self._retries.timeout_s,
            wait_initial=self._retries.wait_initial_s,
            wait_max=self._retries.wait_max_s,
            wait_jitter=self._retries.wait_initial_s,
        ):
            with attempt:
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                raise _refusal(response)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _dotted(loc: Sequence[Any]) -> str:
    return ".".join(str(part) for part in loc)


def _refusal(response: httpx2.Response) -> ApiError:
    """The error of an unsuccessful response, which is read to its end and closed."""
    response.read()
    response.close()
    retry_after = response.headers.get("retry-after", "")
    retry_after_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return ApiError(schemas.Problem.model_validate_json(response.content), retry_after_s)
    # Not ours, so a proxy's: whether the request arrived is unknown, and its idempotency key makes a retry safe.
    passing = response.status_code == httpx2.codes.TOO_MANY_REQUESTS or response.is_server_error
    problem = schemas.Problem(
        type="about:blank",
        title=response.reason_phrase or "HTTP error",
        status=response.status_code,
        code="http_error",
        detail=f"the server answered {response.status_code} without a problem document",
        request_id=response.headers.get("x-request-id", ""),
        retryable=passing,
        outcome="unknown" if response.is_server_error else "not_applied",
    )
    return ApiError(problem, retry_after_s)
