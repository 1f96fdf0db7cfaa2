"""Problem documents: every failure becomes one, and none tells more than it should."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from cluster.problems import install, problem_of
from memory_actor import errors
from memory_actor.errors import InvalidField, LarimarError, NotFound, OutcomeUnknown, Unauthenticated, Unavailable

SECRET = "the launch code is 0000"


class TaskError(NotFound):
    """Shaped like Ray's wrapper: both classes, its text a traceback, the original in `cause`."""

    def __init__(self, cause: NotFound) -> None:
        super().__init__(*cause.args)
        self.cause = cause

    def __str__(self) -> str:
        return f"Traceback (most recent call last): {SECRET}"


def app_that_raises(error: Exception) -> TestClient:
    app = FastAPI()

    @app.get("/")
    async def route() -> None:
        raise error

    install(app, echo_request_id=True)
    return TestClient(app)


def expected_errors() -> Iterator[LarimarError]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, LarimarError):
            yield kind(*([] if name == "problems" else f"<{name}>" for name in kind.fields))


@pytest.mark.parametrize("error", list(expected_errors()), ids=lambda error: type(error).__name__)
def test_every_expected_error_is_a_problem_document(error: LarimarError) -> None:
    """Status, code, detail, retryable and outcome come from the class; the media type is RFC 9457's."""
    answer = app_that_raises(error).get("/", headers={"x-request-id": "abc"})
    document = answer.json()
    assert answer.status_code == document["status"] == error.http_status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (document["code"], document["title"], document["detail"]) == (error.code, error.title, str(error))
    assert (document["retryable"], document["outcome"]) == (error.retryable, error.outcome)
    assert document["type"].endswith(error.code)
    assert document["request_id"] == answer.headers["x-request-id"] == "abc"
    assert ("retry-after" in answer.headers) == error.retryable


def test_errors_survive_pickling_with_their_document() -> None:
    """An error that crossed a process border gives the same document."""
    for error in expected_errors():
        travelled = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes; Ray pickles errors
        assert problem_of(travelled, "r") == problem_of(error, "r")


def test_a_wrapped_error_shows_the_original_not_the_traceback() -> None:
    """Ray's wrapper formats as a traceback; the caller gets the original's words."""
    answer = app_that_raises(TaskError(NotFound("fact", "f_1"))).get("/")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "fact 'f_1' does not exist"
    assert SECRET not in answer.text


def test_a_bug_is_500_without_content_and_logged_once() -> None:
    """The caller gets a request id; the log gets the type and the place, neither gets the message."""
    with capture_logs() as logs:
        answer = app_that_raises(KeyError(SECRET)).get("/", headers={"x-request-id": "bug-1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["request_id"], answer.json()["outcome"]) == ("bug-1", "unknown")
    assert [(line["event"], line["request_id"], line["error"]) for line in logs] == [
        ("request_failed", "bug-1", "KeyError")
    ]
    assert SECRET not in answer.text + json.dumps(logs)


def test_401_says_how_to_authenticate() -> None:
    """Clients learn the scheme from the header."""
    assert app_that_raises(Unauthenticated()).get("/").headers["www-authenticate"] == "Bearer"


def test_invalid_fields_are_listed() -> None:
    """The problems of an InvalidField stand under `errors`."""
    problems = [{"loc": ["body", "a"], "msg": "no"}]
    assert app_that_raises(InvalidField("a: no", problems)).get("/").json()["errors"] == problems


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/nowhere/<script>", 404, "route_not_found"),
    ("DELETE", "/", 405, "method_not_allowed"),
])  # fmt: skip
def test_routing_failures_are_problem_documents(method: str, path: str, status: int, code: str) -> None:
    """Unknown routes and methods answer like everything else, without repeating the path."""
    answer = app_that_raises(KeyError()).request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "script" not in answer.text
    assert (status != 405) or answer.headers["allow"] == "GET"


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129])
def test_an_unusable_request_id_is_replaced(given: str | None) -> None:
    """Every response has an id, and it is never a stranger's paragraph."""
    headers = {} if given is None else {"x-request-id": given}
    answer = app_that_raises(Unavailable("x", "y")).get("/", headers=headers)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] != (given or "")
    assert len(answer.headers["x-request-id"]) == 32


def test_the_request_id_header_can_be_left_to_the_server() -> None:
    """Ray Serve adds the header itself; twice would be two."""
    app = FastAPI()
    install(app, echo_request_id=False)
    answer = TestClient(app).get("/", headers={"x-request-id": "abc"})
    assert "x-request-id" not in answer.headers
    assert answer.json()["request_id"] == "abc"


def test_a_doubtful_outcome_is_said() -> None:
    """`outcome_unknown` tells a client to retry with the same idempotency key."""
    document: dict[str, Any] = problem_of(OutcomeUnknown("the memory actor"), "r")
    assert (document["status"], document["outcome"], document["retryable"]) == (503, "unknown", True)
