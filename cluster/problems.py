"""Errors as RFC 9457 problem documents, and the outermost layer that turns every failure into one.

No traceback and nothing a caller sent beyond 64 characters of a name leaves through here.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, cast

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_actor.errors import BodyTooLarge, InvalidField, LarimarError, Unauthenticated

log = structlog.get_logger(__name__)

PROBLEM = "application/problem+json"
REQUEST_ID = "x-request-id"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; it only ends the exchange
_REQUEST_ID_PATTERN = re.compile(r"[!-~]{1,128}")
_RETRY_AFTER_S = "1"
_ROUTING = {404: ("route_not_found", "No such route"), 405: ("method_not_allowed", "Method not allowed")}


def request_id_of(scope: Scope) -> str:
    """The request's id: the caller's or the proxy's when printable, else a new one, the same during one request."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        given = Headers(scope=scope).get(REQUEST_ID, "")
        state["request_id"] = given if _REQUEST_ID_PATTERN.fullmatch(given) else uuid.uuid4().hex
    request_id: str = state["request_id"]
    return request_id


def problem_of(error: Exception, request_id: str) -> dict[str, Any]:
    """The problem document of any exception. One that is not ours says nothing but the request id."""
    error = unwrapped(error)
    if not isinstance(error, LarimarError):
        detail = "an unexpected error; it is in the server's log under this request id"
        # Whether something was applied before the bug showed is not known.
        return _document("internal", "Internal error", 500, detail, request_id, retryable=False, outcome="unknown")
    document = _document(
        error.code,
        error.title,
        error.http_status,
        str(error),
        request_id,
        retryable=error.retryable,
        outcome=error.outcome,
    )
    if isinstance(error, InvalidField):
        document["errors"] = error.args[1]
    return document


def unwrapped(error: Exception) -> Exception:
    """What a task raised, without Ray's wrapping: a RayTaskError is formatted as a traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LarimarError) else error


def problem_response(error: Exception, request_id: str) -> Response:
    """The HTTP answer to an exception, with the headers its class asks for."""
    document = problem_of(error, request_id)
    headers: dict[str, str] = {}
    if document["retryable"]:
        headers["Retry-After"] = _RETRY_AFTER_S
    if isinstance(unwrapped(error), Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(unwrapped(error), BodyTooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read
    return _rendered(document, headers)


def install(app: FastAPI, *, echo_request_id: bool) -> None:
    """Make `app` answer every failure with a problem document and carry a request id in every response.

    Args: echo_request_id: False where the server in front adds the header itself, as Ray Serve does.
    """
    app.add_exception_handler(LarimarError, _answer_expected)
    app.add_exception_handler(HTTPException, _answer_routing)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_middleware(LastResort, echo_request_id=echo_request_id)


async def _answer_expected(request: Request, error: Exception) -> Response:
    return problem_response(error, request_id_of(request.scope))


async def _answer_routing(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)  # registered for this class only
    code, title = _ROUTING.get(error.status_code, ("http_error", "Request refused"))
    # The path is not repeated: it may hold anything.
    detail = f"{title.lower()}; /openapi.json lists routes and methods"
    request_id = request_id_of(request.scope)
    document = _document(code, title, error.status_code, detail, request_id, retryable=False, outcome="not_applied")
    return _rendered(document, dict(error.headers or {}))


async def _answer_nobody(request: Request, _: Exception) -> Response:
    log.info("client_disconnected", request_id=request_id_of(request.scope))
    return Response(status_code=CLIENT_CLOSED_REQUEST)


class LastResort:
    """ASGI layer around the routes: request ids, and a content-free 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, *, echo_request_id: bool) -> None:
        self._app = app
        self._echo_request_id = echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._echo_request_id:
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - the last resort: logged once, answered without content
            log_unexpected(error, request_id)
            if not started:
                await problem_response(error, request_id)(scope, receive, send_with_id)


def log_unexpected(error: Exception, request_id: str) -> None:
    """One log line for a bug: its type and where it was raised. The message may hold content and is left out."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    log.error("request_failed", request_id=request_id, error=type(error).__name__, frames=frames[-8:])


def _document(
    code: str, title: str, status: int, detail: str, request_id: str, *, retryable: bool, outcome: str
) -> dict[str, Any]:
    return {
        "type": f"urn:larimar:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
        "retryable": retryable,
        "outcome": outcome,
    }


def _rendered(document: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(orjson.dumps(document), document["status"], headers, media_type=PROBLEM)
