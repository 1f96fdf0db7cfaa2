"""The Python client: what it sends, what it repeats, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import stamina
from starlette.testclient import TestClient

from cluster.client import ApiError, Client, Retries
from tests.fakes import World

SKY = {"prompt": "sky is", "target": "green"}
RETRIES = Retries(attempts=4, timeout_s=5.0, wait_initial_s=0.0, wait_max_s=0.0)


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """stamina counts attempts but does not sleep."""
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


class Wire(httpx2.BaseTransport):
    """Carries requests to the application over fakes; `faults` break one exchange each, before or after the server."""

    def __init__(self, world: World) -> None:
        self._inner = TestClient(world.app)._transport
        self.faults: list[tuple[str, Exception | httpx2.Response]] = []
        self.sent: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request)
        when, fault = self.faults.pop(0) if self.faults else ("", None)
        if when == "after":
            self._inner.handle_request(request)
        if isinstance(fault, Exception):
            raise fault
        return fault if fault is not None else self._inner.handle_request(request)


def connected(key: str | None = "acme") -> tuple[World, Wire, Client]:
    world = World.make()
    wire = Wire(world)
    return world, wire, Client("http://testserver", key, retries=RETRIES, transport=wire)


def bare(status: int, **headers: str) -> httpx2.Response:
    """An answer from something in front of the server."""
    return httpx2.Response(status, headers=headers, text="<html>")


def test_the_whole_api_through_the_client() -> None:
    """Every method, typed replies."""
    world, _, admin = connected("admin")
    made = admin.create_tenant("newco")
    assert made.key is not None
    assert [tenant.name for tenant in admin.tenants()] == ["acme", "globex", "newco"]
    key = admin.new_key("newco")
    with Client("http://testserver", key, retries=RETRIES, transport=Wire(world)) as client:
        wrote = client.write("newco", [SKY, {"text": "grass is blue", "tags": ["odd"]}])
        assert [fact.id for fact in client.facts("newco", page=1)] == wrote.ids
        assert client.fact("newco", wrote.ids[0]).target == "green"
        assert client.query("newco", "sky colour?", max_tokens=5).facts[0].id == wrote.ids[0]
        assert [fact.id for fact in client.preview("newco", tags=["odd"])] == [wrote.ids[1]]
        assert client.forget("newco", wrote.ids, dry_run=True).forgotten == wrote.ids
        retracted = client.retract("newco", wrote.ids[:1])
        assert client.forget("newco", [*retracted.ids, wrote.ids[1]]).facts == 0
        assert client.verify("newco").identical
        assert client.tenant("newco").facts == 0
    assert admin.status()["gateway"]["pid"] > 0
    assert admin.ready()
    assert admin.delete_tenant("newco").deleted


LOST: list[tuple[str, Any]] = [
    ("before", httpx2.ConnectError("refused")),
    ("after", httpx2.ReadError("reset")),
    ("after", httpx2.RemoteProtocolError("cut off")),
    ("after", bare(502)),
    ("after", bare(500)),
    ("before", bare(503)),
    ("before", bare(429, **{"retry-after": "0"})),
]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: f"{fault[0]}-{getattr(fault[1], 'status_code', fault[1])}")
def test_a_lost_write_is_repeated_with_its_key_and_applied_once(fault: tuple[str, Any]) -> None:
    """Whatever got lost on the way there or back: one idempotency key, one effect, a reply."""
    world, wire, client = connected()
    wire.faults = [fault, fault]
    reply = client.write("acme", SKY)
    assert len({request.headers["idempotency-key"] for request in wire.sent}) == 1
    assert (len(wire.sent), world.memory.owner_of("acme").changes_applied) == (3, 1)
    assert reply.replayed == (fault[0] == "after")


def test_each_logical_call_has_a_key_of_its_own() -> None:
    """Two equal writes are two writes, unless the caller names the key."""
    _, _, client = connected()
    assert client.write("acme", SKY).superseded != client.write("acme", SKY).superseded
    first = client.write("acme", SKY, idempotency_key="mine")
    assert client.write("acme", SKY, idempotency_key="mine").ids == first.ids


def test_what_stays_lost_is_raised() -> None:
    """After the last attempt the caller learns what happened."""
    _, wire, client = connected()
    wire.faults = [("before", httpx2.ConnectError("refused"))] * 9
    with pytest.raises(httpx2.ConnectError):
        client.write("acme", SKY)
    assert len(wire.sent) == RETRIES.attempts
    wire.faults = [("before", bare(502))] * 9
    with pytest.raises(ApiError) as refused:
        client.write("acme", SKY)
    assert (refused.value.code, refused.value.outcome, refused.value.retryable) == ("http_error", "unknown", True)


@pytest.mark.parametrize(
    ("call", "status", "code"),
    [
        (lambda client: client.write("acme", {"promt": "x"}), 422, "unknown_field"),
        (lambda client: client.fact("acme", "nonsense"), 422, "invalid_id"),
        (lambda client: client.tenant("globex"), 404, "not_found"),
        (lambda client: client.create_tenant("x"), 403, "forbidden"),
        (lambda client: client.write("acme", SKY, idempotency_key="x" * 300), 400, "idempotency_key_invalid"),
    ],
)
def test_a_refusal_is_raised_at_once_with_its_problem(call: Callable[[Client], Any], status: int, code: str) -> None:
    """What will not get better is not repeated."""
    _, wire, client = connected()
    with pytest.raises(ApiError) as refused:
        call(client)
    assert (refused.value.status, refused.value.code, refused.value.outcome) == (status, code, "not_applied")
    assert refused.value.request_id
    assert len(wire.sent) == 1


def test_a_refusal_reads_well() -> None:
    """Its text has the code, the status, and one line per wrong field."""
    _, _, client = connected()
    with pytest.raises(ApiError) as refused:
        client.write("acme", [{"prompt": ""}, {"prompt": "a", "tags": 1}])
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("invalid_field (422): ")
    assert [line.split(":")[0] for line in lines[1:]] == ["  body.facts.0.prompt", "  body.facts.1.tags"]


def test_a_retryable_problem_is_repeated() -> None:
    """The server says `retryable`; the client believes it."""
    world, wire, client = connected()
    world.memory.owner_of("acme").tenants_by_name["acme"].version = 1
    problem = {"type": "t", "title": "t", "status": 409, "code": "stale_memory", "detail": "d", "request_id": "r",
               "retryable": True, "outcome": "not_applied"}  # fmt: skip
    answer = httpx2.Response(
        409, headers={"content-type": "application/problem+json", "retry-after": "1"}, content=json.dumps(problem)
    )
    wire.faults = [("before", answer)]
    assert client.query("acme", "sky?", min_version=1).version == 1
    assert len(wire.sent) == 2


def test_a_wait_longer_than_the_patience_is_not_begun() -> None:
    """Retry-After beyond the time limit ends the call now, not then."""
    _, wire, client = connected()
    wire.faults = [("before", bare(503, **{"retry-after": "3600"}))]
    with pytest.raises(ApiError) as refused:
        client.tenant("acme")
    assert (refused.value.retry_after_s, len(wire.sent)) == (3600.0, 1)


def test_a_streamed_query_yields_its_events() -> None:
    """recall, tokens, done; a lost connection before the first is repeated."""
    _, wire, client = connected()
    client.write("acme", SKY)
    wire.faults = [("before", httpx2.ConnectError("refused"))]
    events = list(client.query_stream("acme", "sky colour?"))
    assert [event.kind for event in events] == ["recall", "token", "token", "token", "done"]
    assert "".join(event.text for event in events) == client.query("acme", "sky colour?").text
    assert events[0].fields["in_scope"] is True


def test_an_error_inside_a_stream_is_raised() -> None:
    """After the pieces that came before it."""
    world, _, client = connected()
    world.decoder.fail_after_chunks = 1
    events = client.query_stream("acme", "a b c")
    assert [next(events).kind, next(events).kind] == ["recall", "token"]
    with pytest.raises(ApiError) as refused:
        next(events)
    assert refused.value.code == "unavailable"


def test_a_refused_stream_is_raised_before_the_first_event() -> None:
    """Like any other refusal."""
    _, _, client = connected()
    with pytest.raises(ApiError) as refused:
        next(client.query_stream("acme", " "))
    assert refused.value.code == "invalid_field"


def test_a_server_that_is_not_there_is_not_ready() -> None:
    """No exception: a caller polls this while the server starts."""
    _, wire, client = connected()
    wire.faults = [("before", httpx2.ConnectError("refused")), ("before", bare(503))]
    assert [client.ready(), client.ready(), client.ready()] == [False, False, True]
