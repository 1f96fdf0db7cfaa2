"""Bodies: what is refused, with which answer, and that no refusal changes anything."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import schemas
from cluster.body import JSON, MSGPACK, PROBLEMS_MAX, decode_body, validate
from cluster.settings import HttpSettings, LimitSettings, Settings
from memory_actor.errors import InvalidField, MalformedBody, UnknownField, UnsupportedMediaType
from tests.fakes import World, once

FACTS = "/v1/tenants/acme/facts"
BOUNDS = LimitSettings(facts_per_request_max=3, text_chars_max=20, tags_per_fact_max=2, answer_tokens_max=10)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "at character"),
        (b'{"prompt": "a"} x', "follows"),
        (b'{"prompt": "a"}{"prompt": "a"}', "follows"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "byte order mark"),
        (b'{"prompt": "\xff"}', "invalid UTF-8 at byte 12"),
        ('{"prompt": "a"}'.encode("utf-16"), "invalid UTF-8"),
        (rb'{"prompt": "\ud800"}', "surrogate"),
        (rb'{"\udfff": "a"}', "surrogate"),
        (b'{"prompt": NaN}', "NaN"),
        (b'{"prompt": -Infinity}', "NaN and Infinity"),
        (b'{"prompt": 1e999}', "too large"),
        (b'{"prompt": 123456789012345678901}', "64 bits"),
        (b'{"prompt": 99999999999999999999}', "64 bits"),
        (b'{"prompt": ' + b"9" * 6000 + b"}", "64 bits"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'{"a": ' * 33 + b"1" + b"}" * 33, "deeper than 32"),
        (b"[" * 100_000, "deeper than 32"),
    ],
)
def test_malformed_json_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    """Anything but one strict JSON value is 400 malformed_body; the memory is as before."""
    world = World.make()
    before = world.state()
    with world.client() as client:
        answer = client.post(FACTS, content=body, headers={"Content-Type": JSON, **once()})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body")
    assert reason in answer.json()["detail"]
    assert world.state() == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"\x81\xa6prompt", "truncated"),
        (msgpack.packb({"prompt": "a"}) + b"\x01", "follows"),
        (msgpack.packb({"prompt": float("nan")}), "NaN"),
        (msgpack.packb({b"prompt": "a"}), "not a string"),
        (msgpack.packb({1: "a"}), "not a string"),
        (msgpack.packb({"prompt": b"bytes"}), "no text"),
        (msgpack.packb({"prompt": msgpack.ExtType(5, b"x")}), "no text"),
        (msgpack.packb({"prompt": msgpack.Timestamp(1)}), "no text"),
        (b"\x81\xa6prompt\xa1\xff", "UTF-8"),
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (b"\x91" * 40 + b"\x01", "deeper than 32"),
        (b"\x91" * 5000, "deeper than 32"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\xc1", "truncated"),
    ],
)
def test_malformed_msgpack_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    """Msgpack may carry exactly what JSON may."""
    with pytest.raises(MalformedBody, match=reason):
        decode_body(MSGPACK, body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_every_plain_value_passes_both_formats_unchanged(value: Any) -> None:
    """Strict is not lossy: what JSON and msgpack can both say arrives as it was sent."""
    assert decode_body(JSON, json.dumps(value).encode()) == value
    assert decode_body(MSGPACK, msgpack.packb(value)) == value


@given(st.binary(max_size=200), st.sampled_from([JSON, MSGPACK]))
def test_random_bytes_never_raise_anything_else(body: bytes, kind: str) -> None:
    """Garbage is decoded or refused as malformed; no other exception exists."""
    with contextlib.suppress(MalformedBody):
        decode_body(kind, body)


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json", "x" * 500],
)
def test_unsupported_content_type_is_415(content_type: str | None) -> None:
    """Only JSON and msgpack are read; the answer names both and repeats at most 64 characters."""
    with pytest.raises(UnsupportedMediaType) as refused:
        decode_body(content_type, b"{}")
    assert len(refused.value.args[0]) <= 64
    world = World.make()
    before = world.state()
    headers = once() if content_type is None else {"Content-Type": content_type, **once()}
    with world.client() as client:
        answer = client.post(FACTS, content=b'{"prompt": "a"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert world.state() == before


def test_content_encoding_is_refused() -> None:
    """Nothing is decompressed, so no bomb can be."""
    world = World.make()
    with world.client() as client:
        headers = {"Content-Type": JSON, "Content-Encoding": "gzip", **once()}
        answer = client.post(FACTS, content=b"\x1f\x8b", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("streamed", [False, True], ids=["declared", "streamed"])
def test_body_over_the_limit_is_413(streamed: bool) -> None:
    """Two megabytes are refused whether they are declared or only arrive."""
    world = World.make()
    before = world.state()
    body = b'{"prompt": "' + b"a" * 2_000_000 + b'"}'

    def pieces() -> Any:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    with world.client() as client:
        answer = client.post(FACTS, content=pieces() if streamed else body, headers={"Content-Type": JSON, **once()})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert "1048576" in answer.json()["detail"]
    assert world.state() == before


def test_body_at_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    world = World.make(Settings(http=HttpSettings(body_bytes_max=1024)))
    body = b'{"prompt": "a"}'.ljust(1024)
    with world.client() as client:
        headers = {"Content-Type": JSON, **once()}
        assert client.post(FACTS, content=body, headers=headers).status_code == 200
        assert client.post(FACTS, content=body + b" ", headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("model", "value", "loc", "message"),
    [
        (schemas.FactRequest, {"prompt": ""}, ["body", "prompt"], "empty"),
        (schemas.FactRequest, {"text": " \t\n\u2003"}, ["body", "text"], "whitespace"),
        (schemas.FactRequest, {"prompt": "a", "target": ""}, ["body", "target"], "empty"),
        (schemas.FactRequest, {"prompt": "x" * 21}, ["body", "prompt"], "has 21 characters; the limit is 20"),
        (schemas.FactRequest, {"prompt": 7}, ["body", "prompt"], "string"),
        (schemas.FactRequest, {"prompt": "a", "keep_both": 1}, ["body", "keep_both"], "boolean"),
        (schemas.FactRequest, {"prompt": "a", "tags": "b"}, ["body", "tags"], "list"),
        (schemas.FactRequest, {"prompt": "a", "tags": ["b", "c", "d"]}, ["body", "tags"], "has 3 tags; the limit is 2"),
        (schemas.FactRequest, {"prompt": "a", "tags": ["b", "b"]}, ["body", "tags"], "twice"),
        (schemas.FactRequest, {"prompt": "a", "text": "b"}, ["body"], "either"),
        (schemas.FactRequest, {"text": "b", "target": "c"}, ["body"], "goes with"),
        (schemas.WriteRequest, {"facts": []}, ["body", "facts"], "at least 1"),
        (schemas.WriteRequest, {"facts": [{"prompt": "a"}] * 4}, ["body", "facts"], "has 4 facts; the limit is 3"),
        (schemas.WriteRequest, {}, ["body", "facts"], "required"),
        (schemas.QueryRequest, {"prompt": "a", "max_tokens": 11}, ["body", "max_tokens"], "is 11; the limit is 10"),
        (schemas.QueryRequest, {"prompt": "a", "max_tokens": 0}, ["body", "max_tokens"], "greater"),
        (schemas.QueryRequest, {"prompt": "a", "max_tokens": "5"}, ["body", "max_tokens"], "integer"),
        (schemas.QueryRequest, {"prompt": "a", "max_tokens": True}, ["body", "max_tokens"], "integer"),
        (schemas.QueryRequest, {"prompt": "a", "mode": "chat"}, ["body", "mode"], "answer"),
        (schemas.QueryRequest, {"prompt": "a", "temperature": float("nan")}, ["body", "temperature"], "finite"),
        (schemas.QueryRequest, {"prompt": "a", "top_p": 0}, ["body", "top_p"], "greater"),
        (schemas.QueryRequest, {"prompt": "a", "min_version": -1}, ["body", "min_version"], "greater"),
        (schemas.QueryRequest, {"prompt": None}, ["body", "prompt"], "string"),
        (schemas.ForgetRequest, {}, ["body"], "exactly one"),
        (schemas.ForgetRequest, {"ids": ["a"], "query": "b"}, ["body"], "exactly one"),
        (schemas.ForgetRequest, {"ids": []}, ["body", "ids"], "at least 1"),
        (schemas.ForgetRequest, {"query": "a", "retract": True}, ["body"], "retract"),
        (schemas.ForgetRequest, {"before": "yesterday"}, ["body", "before"], "ISO-8601"),
        (schemas.ForgetRequest, {"before": "2026-01-31T12:00:00"}, ["body", "before"], "time zone"),
        (schemas.TenantRequest, {"name": "a", "retention": "all"}, ["body", "retention"], "text"),
    ],
)
def test_invalid_fields_are_named(model: type[Any], value: dict[str, Any], loc: list[Any], message: str) -> None:
    """Each problem says where and what, with both numbers for a limit."""
    with pytest.raises(InvalidField) as refused:
        validate(model, value, BOUNDS)
    problems = refused.value.args[1]
    assert any(item["loc"] == loc and message in item["msg"] for item in problems), problems


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ({"facts": [{"promt": "a"}]}, "did you mean 'prompt'?"),
        ({"facts": [{"prompt": "a", "tag": []}]}, "did you mean 'tags'?"),
        ({"fact": []}, "did you mean 'facts'?"),
        ({"facts": [], "zzz": 1}, "known fields: facts"),
    ],
)
def test_unknown_fields_name_the_nearest(value: dict[str, Any], near: str) -> None:
    """A misspelt field is never ignored."""
    with pytest.raises(UnknownField) as refused:
        validate(schemas.WriteRequest, value, BOUNDS)
    assert near in str(refused.value)


def test_all_problems_come_at_once_up_to_twenty_and_repeat_little() -> None:
    """A caller repairs a request in one go, and no content of more than 64 characters comes back."""
    bounds = LimitSettings(text_chars_max=20)
    facts = [{"prompt": "secret " * 50, "target": 7, "bogus" * 40: 1} for _ in range(30)]
    with pytest.raises(UnknownField) as refused:
        validate(schemas.WriteRequest, {"facts": facts}, bounds)
    problems = refused.value.args[1]
    assert len(problems) == PROBLEMS_MAX
    assert all(len(item.get("got", "")) <= 64 for item in problems)
    assert all(len(str(part)) <= 64 for item in problems for part in item["loc"])
    assert "bogus" * 14 not in json.dumps(problems)


@pytest.mark.parametrize("value", [[], "a", 1, None])
def test_a_body_that_is_no_object_is_invalid(value: Any) -> None:
    """Well-formed is not enough."""
    with pytest.raises(InvalidField, match="must be an object"):
        validate(schemas.WriteRequest, value, BOUNDS)
