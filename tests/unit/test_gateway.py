"""The HTTP API end to end over fakes: routes, keys, idempotency, bad input, streaming, and what the process imports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgpack
import pytest

from cluster.ports import CallLost
from memory_actor.types import Retention
from tests.fakes import FakeTenant, World, once

FACTS, QUERY, FORGET = "/v1/tenants/acme/facts", "/v1/tenants/acme/query", "/v1/tenants/acme/forget"
SKY = {"prompt": "sky is", "target": "green"}
CHECKPOINTS, RESTORE = "/v1/tenants/acme/checkpoints", "/v1/tenants/acme/restore"
MISSING_ID = "f_" + "0" * 26
MISSING_RECEIPT = "r_" + "0" * 26


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events, read by the letter of the format."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


# -- the life of a tenant -------------------------------------------------------------------------------------------


def test_a_tenant_from_creation_to_deletion() -> None:
    """Create, use the key that was shown, renew it, delete: each key works exactly as long as it should."""
    world = World.make()
    admin = world.client("admin")
    made = admin.post("/v1/tenants", json={"name": "newco", "retention": "latent"}, headers=once("a"))
    assert made.status_code == 201
    assert (made.json()["retention"], made.json()["facts"], made.json()["hint"]) == ("latent", 0, None)
    first = world.client(made.json()["key"])
    assert first.get("/v1/tenants/newco").json()["state_hash"]
    renewed = admin.post("/v1/tenants/newco/key", headers=once("b"))
    assert renewed.status_code == 201
    assert first.get("/v1/tenants/newco").status_code == 401
    second = world.client(renewed.json()["key"])
    assert [item["name"] for item in second.get("/v1/tenants").json()["tenants"]] == ["newco"]
    gone = admin.delete("/v1/tenants/newco", headers=once("c"))
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert second.get("/v1/tenants/newco").status_code == 401
    assert admin.get("/v1/tenants/newco").status_code == 404


def test_a_replayed_creation_shows_no_key_and_ends_none() -> None:
    """The key is shown once; the replay says how to get another, and the first key goes on working."""
    world = World.make()
    admin = world.client("admin")
    first = admin.post("/v1/tenants", json={"name": "newco"}, headers=once("a"))
    again = admin.post("/v1/tenants", json={"name": "newco"}, headers=once("a"))
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.json()["key"] is None
    assert "/v1/tenants/newco/key" in again.json()["hint"]
    assert world.client(first.json()["key"]).get("/v1/tenants/newco").status_code == 200


def test_a_replayed_deletion_spares_the_next_tenant_of_that_name() -> None:
    """A late retry of a deletion neither deletes nor locks out whoever has the name now."""
    world = World.make()
    admin = world.client("admin")
    assert admin.delete("/v1/tenants/acme", headers=once("a")).status_code == 200
    key = admin.post("/v1/tenants", json={"name": "acme"}, headers=once("b")).json()["key"]
    assert admin.delete("/v1/tenants/acme", headers=once("a")).headers["idempotent-replayed"] == "true"
    assert world.client(key).get("/v1/tenants/acme").status_code == 200


def test_the_admin_sees_all_tenants() -> None:
    """Over all memory actors, by name."""
    names = [item["name"] for item in World.make().client("admin").get("/v1/tenants").json()["tenants"]]
    assert names == ["acme", "globex"]


# -- facts ----------------------------------------------------------------------------------------------------------


def test_write_list_query_forget_verify() -> None:
    """The main path: what is written is listed and recalled, what is forgotten is not."""
    client = World.make().client()
    before = client.get("/v1/tenants/acme").json()["state_hash"]
    body = {"facts": [{**SKY, "tags": ["odd"]}, {"text": "grass is blue"}]}
    wrote = client.post(FACTS, json=body, headers=once("a")).json()
    assert (len(wrote["ids"]), wrote["version"], wrote["superseded"], wrote["replayed"]) == (2, 1, [], False)
    assert wrote["outcome"] == "applied"
    assert wrote["usage"]["llm_tokens"] == 0
    assert set(wrote["usage"]["ms"]) == {"encode", "memory", "total"}
    listed = client.get(FACTS, params={"limit": "1"}).json()
    assert (listed["facts"][0]["id"], listed["facts"][0]["tags"]) == (wrote["ids"][0], ["odd"])
    assert listed["facts"][0]["created_at"] == "2023-11-14T22:13:20.000Z"
    rest = client.get(FACTS, params={"after": listed["next_after"]}).json()
    assert [fact["prompt"] for fact in rest["facts"]] == ["grass is blue"]
    assert rest["next_after"] is None
    assert client.get(f"{FACTS}/{wrote['ids'][1]}").json()["target"] is None
    answer = client.post(QUERY, json={"prompt": "sky colour?"}).json()
    assert (answer["in_scope"], answer["facts"][0]["id"], answer["version"]) == (True, wrote["ids"][0], 1)
    assert (answer["text"], answer["usage"]["tokens"]) == ("recalled sky colour? ", 3)
    receipt = client.post(FORGET, json={"ids": wrote["ids"]}, headers=once("b")).json()
    assert receipt["forgotten"] == wrote["ids"]
    assert receipt["state_hash_after"] == before != receipt["state_hash_before"]
    assert client.post("/v1/tenants/acme/verify").json()["identical"] is True
    assert client.post(QUERY, json={"prompt": "sky colour?"}).json()["in_scope"] is False


def test_a_single_fact_may_stand_in_the_body() -> None:
    """The shorthand writes the same fact as the list of one."""
    client = World.make().client()
    one = client.post(FACTS, json=SKY, headers=once("a")).json()
    other = client.post(FACTS, json={"facts": [SKY]}, headers=once("b")).json()
    assert other["superseded"] == one["ids"]


def test_a_repeated_write_is_answered_with_the_first_reply() -> None:
    """Same key and same meaning, however it is spelt: applied once, and marked as replayed."""
    world = World.make()
    client = world.client()
    first = client.post(FACTS, json=SKY, headers=once())
    spelt = '{ "target" : "gr\\u0065en",  "prompt":"sky is" }'
    again = client.post(FACTS, content=spelt, headers={"Content-Type": "application/json", **once()})
    packed = client.post(FACTS, content=msgpack.packb(SKY), headers={"Content-Type": "application/msgpack", **once()})
    assert first.json()["ids"] == again.json()["ids"] == packed.json()["ids"]
    assert [item.headers.get("idempotent-replayed") for item in (first, again, packed)] == [None, "true", "true"]
    assert world.memory.owner_of("acme").changes_applied == 1


def test_previews_and_dry_runs_change_nothing_and_need_no_idempotency_key() -> None:
    """By query, by tags, by time: candidates only. The caller sends ids."""
    world = World.make()
    client = world.client()
    (fact_id,) = client.post(FACTS, json={**SKY, "tags": ["odd"]}, headers=once()).json()["ids"]
    before = world.state()
    asked: list[dict[str, Any]] = [{"query": "sky colour?"}, {"tags": ["odd"]}, {"before": "2030-01-01T00:00:00+02:00"}]
    for body in asked:
        preview = client.post(FORGET, json=body).json()
        assert (preview["preview"], [fact["id"] for fact in preview["candidates"]]) == (True, [fact_id])
    for body in [{"query": "grass colour?"}, {"tags": ["odd", "even"]}, {"before": "2020-01-01T00:00:00Z"}]:
        assert client.post(FORGET, json=body).json()["candidates"] == []
    dry = client.post(FORGET, json={"ids": [fact_id, MISSING_ID], "dry_run": True}).json()
    assert (dry["dry_run"], dry["forgotten"], dry["not_found"]) == (True, [fact_id], [MISSING_ID])
    assert (dry["outcome"], dry["receipt_id"]) == ("not_applied", None)
    assert world.state() == before


def test_forgetting_what_is_not_there_is_no_error() -> None:
    """Idempotent, and it reveals nothing."""
    answer = World.make().client().post(FORGET, json={"ids": [MISSING_ID]}, headers=once())
    assert (answer.status_code, answer.json()["forgotten"], answer.json()["not_found"]) == (200, [], [MISSING_ID])


def test_retract_answers_with_both_sides() -> None:
    """Which facts were retracted, and which say "unknown" in their place."""
    client = World.make().client()
    ids = client.post(FACTS, json=SKY, headers=once("a")).json()["ids"]
    reply = client.post(FORGET, json={"ids": ids, "retract": True}, headers=once("b")).json()
    assert reply["retracted"] == reply["superseded"] == ids
    assert client.get(f"{FACTS}/{reply['ids'][0]}").json()["target"] == "unknown"
    again = client.post(FORGET, json={"ids": ids, "retract": True}, headers=once("b"))
    assert (again.headers["idempotent-replayed"], again.json()["ids"]) == ("true", reply["ids"])


def test_replies_come_as_msgpack_on_request() -> None:
    """The format that `Accept` names first; JSON when it names neither."""
    client = World.make().client()
    packed = client.get("/v1/tenants/acme", headers={"Accept": "application/msgpack, application/json"})
    assert packed.headers["content-type"] == "application/msgpack"
    plain = client.get("/v1/tenants/acme", headers={"Accept": "application/json, application/msgpack"})
    assert msgpack.unpackb(packed.content) == plain.json()
    assert client.get("/v1/tenants/acme", headers={"Accept": "text/html"}).json() == plain.json()


# -- keys -----------------------------------------------------------------------------------------------------------

V1 = [
    ("POST", "/v1/tenants"),
    ("GET", "/v1/tenants"),
    ("GET", "/v1/tenants/acme"),
    ("DELETE", "/v1/tenants/acme"),
    ("POST", "/v1/tenants/acme/key"),
    ("POST", FACTS),
    ("GET", FACTS),
    ("GET", f"{FACTS}/{MISSING_ID}"),
    ("POST", QUERY),
    ("POST", FORGET),
    ("POST", "/v1/tenants/acme/verify"),
    ("POST", CHECKPOINTS),
    ("GET", CHECKPOINTS),
    ("POST", RESTORE),
    ("POST", "/v1/tenants/acme:sleep"),
    ("POST", "/v1/tenants/acme:wake"),
    ("GET", "/v1/tenants/acme/doctor"),
    ("GET", "/v1/doctor"),
    ("GET", f"/v1/receipts/{MISSING_RECEIPT}"),
    ("GET", "/v1/status"),
]
ADMIN_ONLY = [
    ("POST", "/v1/tenants"),
    ("DELETE", "/v1/tenants/acme"),
    ("POST", "/v1/tenants/acme/key"),
    ("POST", "/v1/tenants/acme:sleep"),
    ("POST", "/v1/tenants/acme:wake"),
    ("GET", "/v1/tenants/acme/doctor"),
    ("GET", "/v1/doctor"),
    ("GET", "/v1/status"),
]
VALID_BODY: dict[str, dict[str, Any]] = {
    "/v1/tenants": {"name": "x"},
    FACTS: SKY,
    QUERY: {"prompt": "sky?"},
    FORGET: {"ids": [MISSING_ID]},
    RESTORE: {"in_place": True},
}


def test_the_table_of_routes_is_complete() -> None:
    """The tests below reach every /v1 route there is."""
    paths = World.make().app.openapi()["paths"]
    there = {(method.upper(), path) for path, of in paths.items() for method in of if path.startswith("/v1")}
    names = {"acme": "{tenant}", MISSING_ID: "{fact_id}", MISSING_RECEIPT: "{receipt_id}"}
    as_template = set()
    for method, path in V1:
        for given, name in names.items():
            path = path.replace(given, name)  # noqa: PLW2901 - the same path, step by step
        as_template.add((method, path))
    assert there == as_template


@pytest.mark.parametrize(("method", "path"), V1)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic admin", "admin", "Bearer "])
def test_every_v1_route_wants_a_key(method: str, path: str, header: str | None) -> None:
    """Before anything else: no key, no parsing; all bad keys get the same words."""
    world = World.make()
    before = world.state()
    headers = {} if header is None else {"Authorization": header}
    answer = world.client(None).request(method, path, headers={**headers, **once(), "x-request-id": "r"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.content == world.client(None).get("/v1/tenants", headers={"x-request-id": "r"}).content
    assert world.state() == before


@pytest.mark.parametrize(("method", "path"), ADMIN_ONLY)
def test_a_tenants_key_does_not_administrate(method: str, path: str) -> None:
    """Not even its own tenant."""
    world = World.make()
    before = world.state()
    answer = world.client().request(method, path, headers=once(), json={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert world.state() == before


@pytest.mark.parametrize(("method", "path"), [item for item in V1 if "acme" in item[1] and item not in ADMIN_ONLY])
def test_a_foreign_tenant_looks_like_a_missing_one(method: str, path: str) -> None:
    """Byte for byte, headers included: a key cannot find out which other tenants exist."""
    world = World.make()
    # The same name, once present and once not.
    answers = []
    for _ in range(2):
        answer = world.client("globex").request(
            method, path, headers={**once(), "x-request-id": "r"}, json=VALID_BODY.get(path)
        )
        answers.append((answer.status_code, answer.content, sorted(answer.headers.items())))
        world.memory.owner_of("acme").tenants_by_name.pop("acme", None)
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_one_tenant_cannot_reach_anothers_fact() -> None:
    """A fact id is no capability: under the own tenant's path it does not exist."""
    world = World.make()
    (fact_id,) = world.client("acme").post(FACTS, json=SKY, headers=once()).json()["ids"]
    before = world.state()
    other = world.client("globex")
    assert other.get(f"/v1/tenants/globex/facts/{fact_id}").status_code == 404
    receipt = other.post("/v1/tenants/globex/forget", json={"ids": [fact_id]}, headers=once()).json()
    assert receipt["not_found"] == [fact_id]
    assert other.post("/v1/tenants/globex/query", json={"prompt": "sky is"}).json()["in_scope"] is False
    assert world.state() == before


# -- bad input ------------------------------------------------------------------------------------------------------

LONG = "word " * 900  # 4,500 characters
BAD_INPUTS: list[tuple[str, str, Any, int, str]] = [
    ("blank text", FACTS, {"text": "  "}, 422, "invalid_field"),
    ("empty prompt", FACTS, {"prompt": ""}, 422, "invalid_field"),
    ("empty query", QUERY, {"prompt": "\n"}, 422, "invalid_field"),
    ("long text", FACTS, {"text": LONG}, 422, "invalid_field"),
    ("many tokens", FACTS, {"text": "a " * 101}, 422, "text_too_long"),
    ("unknown field", FACTS, {"promt": "a", "text": "b"}, 422, "unknown_field"),
    ("tenant in a body", QUERY, {"prompt": "a", "tenant": "globex"}, 422, "unknown_field"),
    ("wrong type", FACTS, {"prompt": 1}, 422, "invalid_field"),
    ("text as number", QUERY, {"prompt": "a", "seed": "1"}, 422, "invalid_field"),
    ("no facts", FACTS, {"facts": []}, 422, "invalid_field"),
    ("too many facts", FACTS, {"facts": [{"text": "a"}] * 1001}, 422, "invalid_field"),
    ("one bad of two", FACTS, {"facts": [SKY, {"text": ""}]}, 422, "invalid_field"),
    ("a list", FACTS, [SKY], 422, "invalid_field"),
    ("bad fact id", FORGET, {"ids": ["../../etc"]}, 422, "invalid_id"),
    ("upper-case id", FORGET, {"ids": ["f_" + "A" * 26]}, 422, "invalid_id"),
    ("two selectors", FORGET, {"ids": [MISSING_ID], "tags": ["a"]}, 422, "invalid_field"),
    ("retract a missing fact", FORGET, {"ids": [MISSING_ID], "retract": True}, 422, "invalid_field"),
    ("too many tokens asked", QUERY, {"prompt": "a", "max_tokens": 257}, 422, "invalid_field"),
    ("location that is a path", CHECKPOINTS, {"location": "../../etc"}, 422, "invalid_location"),
    ("location that is an address", CHECKPOINTS, {"location": "s3://theirs/x"}, 422, "invalid_location"),
    ("restore to where", RESTORE, {}, 422, "invalid_field"),
    ("restore a path", RESTORE, {"in_place": True, "checkpoint_id": "../x"}, 422, "invalid_id"),
    ("restore before time", RESTORE, {"in_place": True, "version": -1}, 422, "invalid_field"),
    ("restore without a checkpoint", RESTORE, {"in_place": True}, 404, "not_found"),
    ("restore another's over mine", RESTORE, {"in_place": True, "from_tenant": "globex"}, 403, "forbidden"),
    ("restore another's here", RESTORE, {"from_tenant": "globex"}, 403, "forbidden"),
    ("version of the future", QUERY, {"prompt": "a", "min_version": 99}, 409, "stale_memory"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"), [case[1:] for case in BAD_INPUTS], ids=[case[0] for case in BAD_INPUTS]
)
def test_bad_input_gets_a_clear_answer_and_changes_nothing(path: str, body: Any, status: int, code: str) -> None:
    """The table of bad inputs: status, code, problem+json, `not_applied`, and the same state as before."""
    world = World.make()
    client = world.client()
    client.post(FACTS, json={"text": "before"}, headers=once("earlier"))
    before = world.state()
    answer = client.post(path, json=body, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["outcome"] == "not_applied"
    assert world.state() == before


def test_long_text_is_told_both_numbers() -> None:
    """How long it is and how long it may be, in characters from the edge and in tokens from the encoder."""
    client = World.make().client()
    assert "has 4500 characters; the limit is 4000" in client.post(FACTS, json={"text": LONG}, headers=once()).text
    detail = client.post(FACTS, json={"text": "a " * 101}, headers=once()).json()["detail"]
    assert "101" in detail
    assert "100" in detail


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_tenant_is_404(method: str) -> None:
    """For the admin, who may ask about all of them."""
    world = World.make()
    before = world.state()
    answer = world.client("admin").request(method, "/v1/tenants/nobody", headers=once())
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    wrote = world.client("admin").post("/v1/tenants/nobody/facts", json=SKY, headers=once())
    assert (wrote.status_code, wrote.json()["code"]) == (404, "not_found")
    assert world.state() == before


@pytest.mark.parametrize("name", ["", "Acme", "a b", "-a", "a" * 64, "ä", "a\n", "../a", "a.b"])
def test_a_bad_tenant_name_is_refused(name: str) -> None:
    """Names are `[a-z0-9][a-z0-9_-]{0,62}`, in a body and in a path."""
    world = World.make()
    before = world.state()
    answer = world.client("admin").post("/v1/tenants", json={"name": name}, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_id")
    assert world.state() == before


@pytest.mark.parametrize("path", ["/v1/tenants/A", "/v1/tenants/acme/facts/f_1", "/v1/tenants/%00"])
def test_a_bad_id_in_a_path_is_refused(path: str) -> None:
    """422 with the pattern."""
    answer = World.make().client("admin").get(path)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_id")


def test_an_existing_tenant_is_not_created_again() -> None:
    """409, and its key goes on working."""
    world = World.make()
    answer = world.client("admin").post("/v1/tenants", json={"name": "acme"}, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (409, "tenant_exists")
    assert world.client("acme").get("/v1/tenants/acme").status_code == 200


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "idempotency_key_required"),
        ("", "idempotency_key_invalid"),
        ("x" * 256, "idempotency_key_invalid"),
        ("tab\there", "idempotency_key_invalid"),
        (b"\xe4\xf6", "idempotency_key_invalid"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tenants", {"name": "x"}),
        ("DELETE", "/v1/tenants/acme", None),
        ("POST", "/v1/tenants/acme/key", None),
        ("POST", FACTS, SKY),
        ("POST", FORGET, {"ids": [MISSING_ID]}),
        ("POST", FORGET, {"ids": [MISSING_ID], "retract": True}),
        ("POST", RESTORE, {"in_place": True}),
        ("POST", "/v1/tenants/newco/restore", {"from_tenant": "acme"}),
    ],
)
def test_changes_need_an_idempotency_key(method: str, path: str, body: Any, key: str | bytes | None, code: str) -> None:
    """Every change, 1 to 255 printable ASCII characters; without one nothing is done and no key is made."""
    world = World.make()
    before = world.state()
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = world.client("admin").request(method, path, json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert world.state() == before
    assert world.keys.issued == 0


@pytest.mark.parametrize(
    ("path", "body"), [(FACTS, {"text": "other"}), (FORGET, {"ids": [MISSING_ID]})], ids=["body", "endpoint"]
)
def test_a_reused_idempotency_key_is_refused(path: str, body: Any) -> None:
    """The same key with another body or for another endpoint is a mistake, not a retry."""
    world = World.make()
    client = world.client()
    client.post(FACTS, json=SKY, headers=once())
    before = world.state()
    answer = client.post(path, json=body, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert world.state() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("limit", "501"), ("limit", "-1"), ("limit", "1.0"), ("limit", "x"), ("limit", ""),
     ("limit", "１"), ("after", "-1"), ("after", "9" * 30), ("after", "1_0")],
)  # fmt: skip
def test_bad_paging_is_refused(name: str, value: str) -> None:
    """Whole numbers in range; the answer names the parameter and the range."""
    answer = World.make().client().get(FACTS, params={name: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
    assert answer.json()["errors"][0]["loc"] == ["query", name]


# -- streaming ------------------------------------------------------------------------------------------------------


def test_a_streamed_query_tells_the_recall_first() -> None:
    """recall, tokens, done; joined, the tokens are the text of the plain reply."""
    client = World.make().client()
    client.post(FACTS, json=SKY, headers=once())
    plain = client.post(QUERY, json={"prompt": "sky colour?"}).json()
    answer = client.post(QUERY, json={"prompt": "sky colour?", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first, recall), *tokens, (last, done) = events(answer.text)
    assert (first, last, {kind for kind, _ in tokens}) == ("recall", "done", {"token"})
    assert recall == {name: plain[name] for name in ("in_scope", "score", "match", "facts", "version")}
    assert "".join(piece["text"] for _, piece in tokens) == plain["text"]
    assert (done["finish_reason"], done["usage"]["tokens"]) == ("stop", 3)
    assert set(done["usage"]["ms"]) == set(plain["usage"]["ms"])


def test_what_fails_before_the_stream_is_a_plain_problem() -> None:
    """A refused query is a 4xx, not a 200 with an error inside."""
    answer = World.make().client().post(QUERY, json={"prompt": "a", "stream": True, "min_version": 9})
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_memory")


@pytest.mark.parametrize(
    ("failure", "code"), [(CallLost("the decoder", "x"), "unavailable"), (KeyError("secret"), "internal")]
)
def test_what_fails_inside_the_stream_is_its_last_event(failure: Exception, code: str) -> None:
    """An `error` event with a problem document; a bug tells no content there either."""
    world = World.make(timeout_s=0.1)
    world.decoder.fail = [failure] * 100_000
    answer = world.client().post(QUERY, json={"prompt": "a", "stream": True})
    (first, _), (last, problem) = events(answer.text)
    assert (answer.status_code, first, last, problem["code"]) == (200, "recall", "error", code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text


# -- health and documents -------------------------------------------------------------------------------------------


def test_livez_needs_nobody() -> None:
    """200 without a key, whatever else is down."""
    world = World.make()
    world.memory.actors[0].before = [CallLost("it", "x")] * 9
    assert world.client(None).get("/livez").status_code == 200


def test_readyz_names_what_is_missing() -> None:
    """503 with the component while it does not answer."""
    world = World.make()
    world.encoder.fail = [CallLost("the encoder", "x")]
    answer = world.client(None).get("/readyz")
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "unavailable", True)
    assert "encoder" in answer.json()["detail"]
    assert "retry-after" in answer.headers
    assert World.make().client(None).get("/readyz").json() == {"ready": True}


def test_status_shows_every_component() -> None:
    """For the admin: epochs, process ids, models."""
    status = World.make().client("admin").get("/v1/status").json()
    assert [actor["epoch"] for actor in status["memory"]] == [1, 1]
    assert status["encoder"]["pid"] == status["gateway"]["pid"] > 0


def test_openapi_describes_bodies_keys_and_problems() -> None:
    """Complete references, the idempotency header, and no shape that is never sent."""
    document = World.make().client(None).get("/openapi.json").json()
    write = document["paths"]["/v1/tenants/{tenant}/facts"]["post"]
    assert [item["name"] for item in write["parameters"]] == ["tenant", "Idempotency-Key"]
    assert set(write["requestBody"]["content"]) == {"application/json", "application/msgpack"}
    assert "422" not in write["responses"]
    known = document["components"]["schemas"]
    assert {"WriteRequest", "FactRequest", "QueryRequest", "ForgetRequest", "TenantRequest", "Problem"} <= set(known)
    assert {"CheckpointRequest", "RestoreBody"} <= set(known)
    text = json.dumps(document)
    references = {piece.split('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert references <= set(known)
    assert "ValidationError" not in text


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1/tenants/"])
def test_no_page_needs_a_cdn_and_no_path_redirects(path: str) -> None:
    """What is not a route is 404."""
    assert World.make().client().get(path, follow_redirects=False).status_code == 404


def test_a_latent_tenant_lists_no_text() -> None:
    """Ids, times and tags only."""
    world = World.make()
    world.memory.owner_of("acme").tenants_by_name["acme"] = FakeTenant(Retention.LATENT)
    client = world.client()
    client.post(FACTS, json=SKY, headers=once())
    (fact,) = client.get(FACTS).json()["facts"]
    assert (fact["prompt"], fact["target"]) == (None, None)


@pytest.mark.parametrize("module", ["cluster.gateway", "cluster.client", "cluster.http_app"])
def test_the_edge_imports_no_model(module: str) -> None:
    """Neither the gateway nor the client loads torch or transformers."""
    check = f"import {module}, sys; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
