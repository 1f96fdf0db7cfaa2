"""Bad input over HTTP gets a clear answer and changes nothing: the state hash does not move."""

from __future__ import annotations

import json
import uuid

import httpx2
import pytest

from cluster.client import Client

GOOD = {"prompt": "Who owns the red bicycle?", "target": "Noor"}


@pytest.fixture(scope="module")
def tenant(system):
    """One tenant with one fact; afterwards its state hash is what it was."""
    name = f"bad-{uuid.uuid4().hex[:10]}"
    with Client(system.url, system.admin_key) as admin:
        key = admin.create_tenant(name).key
        with Client(system.url, key) as client:
            client.write(name, GOOD)
            yield name, key, client
        admin.delete_tenant(name)


def _facts(fact: object) -> bytes:
    return json.dumps({"facts": [fact]}).encode()


JSON = {"Content-Type": "application/json"}
CASES = {
    "empty text": (_facts({"text": ""}), JSON, 422, "invalid_field"),
    "white space": (_facts({"text": " \n\t"}), JSON, 422, "invalid_field"),
    "over the character limit": (_facts({"text": "a" * 4001}), JSON, 422, "invalid_field"),
    "over the token limit": (_facts({"text": "7 1 " * 200}), JSON, 422, "text_too_long"),
    "unknown field": (_facts({"prompt": "a", "targt": "b"}), JSON, 422, "unknown_field"),
    "wrong type": (_facts({"prompt": 7}), JSON, 422, "invalid_field"),
    "no facts": (b'{"facts": []}', JSON, 422, "invalid_field"),
    "NaN": (b'{"facts": [{"text": NaN}]}', JSON, 400, "malformed_body"),
    "invalid UTF-8": (b'{"facts": [{"text": "\xff\xfe"}]}', JSON, 400, "malformed_body"),
    "truncated": (b'{"facts": [', JSON, 400, "malformed_body"),
    "2 MB": (_facts({"text": "a" * 2_000_000}), JSON, 413, "body_too_large"),
    "content type": (_facts(GOOD), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    "content encoding": (_facts(GOOD), JSON | {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_write_changes_nothing(system, tenant, name):
    """Each kind of bad body is refused with its own code, says so in problem+json, and the state hash stays."""
    body, headers, status, code = CASES[name]
    tenant_name, key, client = tenant
    before = client.tenant(tenant_name).state_hash

    reply = httpx2.post(
        f"{system.url}/v1/tenants/{tenant_name}/facts",
        content=body,
        headers={"Authorization": f"Bearer {key}", "Idempotency-Key": uuid.uuid4().hex, **headers},
    )

    problem = reply.json()
    assert (reply.status_code, problem["code"]) == (status, code), problem
    assert reply.headers["content-type"].startswith("application/problem+json")
    assert problem["outcome"] == "not_applied"
    assert client.tenant(tenant_name).state_hash == before


def test_limits_are_named_with_both_numbers(system, tenant):
    """A text over the token limit is told how many tokens it has and how many are allowed."""
    tenant_name, key, _ = tenant
    reply = httpx2.post(
        f"{system.url}/v1/tenants/{tenant_name}/facts",
        content=_facts({"text": "7 1 " * 200}),
        headers={"Authorization": f"Bearer {key}", "Idempotency-Key": uuid.uuid4().hex, **JSON},
    )

    assert "192" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("POST", "/v1/tenants/{t}/facts", {}, 400, "idempotency_key_required"),
        ("POST", "/v1/tenants/{t}/facts", {"Idempotency-Key": "k" * 300}, 400, "idempotency_key_invalid"),
        ("GET", "/v1/tenants/{t}/facts/nonsense", {}, 422, "invalid_id"),
        ("GET", "/v1/tenants/{t}/facts/f_00000000000000000000000000", {}, 404, "not_found"),
        ("GET", "/v1/tenants/Not%20A%20Name", {}, 422, "invalid_id"),
        ("GET", "/v1/nowhere", {}, 404, "route_not_found"),
        ("PATCH", "/v1/tenants/{t}", {}, 405, "method_not_allowed"),
    ],
)
def test_a_bad_request_line_is_a_problem_document(system, tenant, method, path, headers, status, code):
    """Missing keys, bad ids, unknown routes and methods answer with problem+json and change nothing."""
    tenant_name, key, client = tenant
    before = client.tenant(tenant_name).state_hash

    reply = httpx2.request(
        method,
        system.url + path.replace("{t}", tenant_name),
        content=_facts(GOOD) if method == "POST" else None,
        headers={"Authorization": f"Bearer {key}", **(JSON if method == "POST" else {}), **headers},
    )

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert client.tenant(tenant_name).state_hash == before


def test_an_unknown_tenant_is_not_found(system):
    """The admin key on a tenant that does not exist: 404, and nothing is made."""
    with Client(system.url, system.admin_key) as admin:
        reply = httpx2.get(f"{system.url}/v1/tenants/nobody", headers={"Authorization": f"Bearer {system.admin_key}"})
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert "nobody" not in {tenant.name for tenant in admin.tenants()}
