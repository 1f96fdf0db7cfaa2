"""Checkpoints, restores, residency, receipts and diagnoses over HTTP, with fakes behind the ports."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.ports import CallLost
from cluster.safekeeping import best_for
from cluster.settings import settings_from
from memory_actor.errors import CheckpointMismatch, NotFound
from memory_actor.types import CheckpointInfo
from tests.fakes import FILE_KEY, FakeFinding, World, once

FACTS, FORGET = "/v1/tenants/acme/facts", "/v1/tenants/acme/forget"
CHECKPOINTS, RESTORE = "/v1/tenants/acme/checkpoints", "/v1/tenants/acme/restore"
SKY, GRASS = {"prompt": "sky is", "target": "green"}, {"prompt": "grass is", "target": "blue"}


def info(number: int, version: int) -> CheckpointInfo:
    return CheckpointInfo(f"c_{number}", "acme", "0" * 32, "local", version, 1, 1, "h", 1, "m", float(number))


# -- checkpoints and restores ---------------------------------------------------------------------------------------


def test_a_checkpoint_is_published_listed_and_restored_into_a_new_tenant() -> None:
    """The new tenant lives on another memory actor, has the same facts and hash, and its key is shown once."""
    world = World.make()
    client, admin = world.client(), world.client("admin")
    (fact_id,) = client.post(FACTS, json=SKY, headers=once("a")).json()["ids"]
    made = client.post(CHECKPOINTS)
    assert (made.status_code, made.json()["location"], made.json()["facts"]) == (201, "local", 1)
    assert client.get(CHECKPOINTS).json()["checkpoints"][0]["checkpoint_id"] == made.json()["checkpoint_id"]
    body = {"from_tenant": "acme"}
    reply = admin.post("/v1/tenants/beta/restore", json=body, headers=once("b"))
    assert (reply.status_code, reply.json()["outcome"]) == (201, "applied")
    assert world.memory.owner_of("beta") is not world.memory.owner_of("acme")
    assert reply.json()["state_hash"] == client.get("/v1/tenants/acme").json()["state_hash"]
    new = world.client(reply.json()["key"])
    assert [fact["id"] for fact in new.get("/v1/tenants/beta/facts").json()["facts"]] == [fact_id]
    again = admin.post("/v1/tenants/beta/restore", json=body, headers=once("b"))
    assert (again.headers["idempotent-replayed"], again.json()["key"]) == ("true", None)
    assert "/v1/tenants/beta/key" in again.json()["hint"]
    assert new.get("/v1/tenants/beta").status_code == 200


def test_an_existing_tenant_is_not_restored_over() -> None:
    """A new tenant by default: the name of one that exists is a conflict, and nothing of it changes."""
    world = World.make()
    world.client().post(CHECKPOINTS)
    before = world.state()
    answer = world.client("admin").post("/v1/tenants/globex/restore", json={"from_tenant": "acme"}, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (409, "tenant_exists")
    assert world.state() == before


def test_a_tenant_restores_itself_in_place_to_a_version() -> None:
    """With its own key; facts written later are gone, and no key is renewed."""
    world = World.make()
    client = world.client()
    (first,) = client.post(FACTS, json=SKY, headers=once("a")).json()["ids"]
    client.post(FACTS, json=GRASS, headers=once("b"))
    client.post(CHECKPOINTS)
    reply = client.post(RESTORE, json={"in_place": True, "version": 1}, headers=once("c"))
    assert (reply.status_code, reply.json()["in_place"], reply.json()["key"]) == (200, True, None)
    assert [fact["id"] for fact in client.get(FACTS).json()["facts"]] == [first]
    assert world.keys.issued == 0


@pytest.mark.parametrize("body", [{"in_place": True, "from_tenant": "globex"}, {"from_tenant": "acme"}])
def test_in_place_is_from_oneself_and_new_is_from_another(body: dict[str, Any]) -> None:
    """Even the admin cannot overwrite one tenant with another, or create a tenant that exists from itself."""
    world = World.make()
    for name in ("acme", "globex"):
        world.client(name).post(f"/v1/tenants/{name}/checkpoints")
    before = world.state()
    answer = world.client("admin").post(RESTORE, json=body, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
    assert world.state() == before


def test_a_lost_reply_of_a_restore_is_found_though_the_checkpoint_is_gone() -> None:
    """Restoring in place may end the checkpoint itself; a retry gets the first reply, not "not found"."""
    world = World.make()
    client = world.client()
    client.post(FACTS, json=SKY, headers=once("a"))
    client.post(CHECKPOINTS)
    first = client.post(RESTORE, json={"in_place": True}, headers=once("b")).json()
    memory = world.memory.owner_of("acme")
    memory.store.files.clear()
    again = client.post(RESTORE, json={"in_place": True}, headers=once("b"))
    assert (again.status_code, again.json()["version"]) == (200, first["version"])
    assert again.json()["replayed"] is True
    memory.store.infos.clear()
    assert client.post(RESTORE, json={"in_place": True}, headers=once("b")).json()["replayed"] is True
    fresh = client.post(RESTORE, json={"in_place": True}, headers=once("c"))
    assert (fresh.status_code, fresh.json()["code"], fresh.json()["outcome"]) == (404, "not_found", "not_applied")


def test_an_erased_checkpoint_says_so() -> None:
    """410: its key is destroyed, and nothing was changed."""
    world = World.make()
    client = world.client()
    made = client.post(CHECKPOINTS).json()
    world.memory.owner_of("acme").store.files.clear()
    body = {"in_place": True, "checkpoint_id": made["checkpoint_id"]}
    answer = client.post(RESTORE, json=body, headers=once())
    assert (answer.status_code, answer.json()["code"]) == (410, "checkpoint_erased")


def test_a_foreign_checkpoint_looks_like_a_missing_one() -> None:
    """A checkpoint id is no capability: under another tenant's path it does not exist."""
    world = World.make()
    foreign = world.client("globex").post("/v1/tenants/globex/checkpoints").json()["checkpoint_id"]
    answers = [
        world.client().post(RESTORE, json={"in_place": True, "checkpoint_id": wanted}, headers=once(wanted)).json()
        for wanted in (foreign, "c_" + "0" * 26)
    ]
    assert [answer["code"] for answer in answers] == ["not_found", "not_found"]


def test_the_key_of_a_checkpoint_goes_from_owner_to_owner_only() -> None:
    """It reaches the target's actor and stands in no reply, refusal or representation."""
    world = World.make()
    admin = world.client("admin")
    texts = [admin.post(CHECKPOINTS).text, admin.get(CHECKPOINTS).text]
    for name in ("beta", "beta", "globex"):
        answer = admin.post(f"/v1/tenants/{name}/restore", json={"from_tenant": "acme"}, headers=once(name))
        texts.append(answer.text)
    used = world.memory.owner_of("acme").store.grants_used
    assert {grant.file_key for grant in used if grant} == {FILE_KEY}
    shown = " ".join([*texts, repr(used), str(used)])
    for secret in (FILE_KEY.decode(), FILE_KEY.hex(), "4711", "0" * 32):  # the key, its id, the tenant's incarnation
        assert secret not in " ".join(texts)
    assert FILE_KEY.decode() not in shown


def test_only_the_admin_learns_which_locations_there_are() -> None:
    """An unknown name is refused with the configured ones for the admin, without them for a tenant."""
    settings = settings_from({"checkpoints.locations.vault-7": "s3://bucket/x"}, "test")
    world = World.make(settings)
    told = [
        world.client(key).post(CHECKPOINTS, json={"location": "nowhere"}).json()["detail"] for key in ("admin", "acme")
    ]
    assert "local, vault-7" in told[0]
    assert "vault-7" not in told[1]
    assert world.client().post(CHECKPOINTS, json={"location": "vault-7"}).json()["location"] == "vault-7"


@pytest.mark.parametrize(
    ("version", "expected"), [(None, "c_3"), (0, "c_1"), (2, "c_1"), (3, "c_2"), (5, "c_2"), (6, "c_3")]
)
def test_the_checkpoint_that_fits_a_version_is_the_first_one_after_it(version: int | None, expected: str) -> None:
    """Later ones may lack what was superseded since; without a version the newest is taken."""
    listed = [info(3, 8), info(1, 2), info(2, 5)]
    assert best_for(version, listed, "acme").checkpoint_id == expected


def test_a_version_after_the_newest_checkpoint_cannot_be_restored() -> None:
    """The refusal names the newest version there is."""
    with pytest.raises(CheckpointMismatch, match=r"its version is 5, expected 6 or later"):
        best_for(6, [info(1, 5)], "acme")
    with pytest.raises(NotFound):
        best_for(None, [], "acme")


# -- residency ------------------------------------------------------------------------------------------------------


def test_a_tenant_sleeps_and_wakes() -> None:
    """By the admin; the listing says where its memory is."""
    admin = World.make().client("admin")
    assert admin.post("/v1/tenants/acme:sleep").json()["residency"] == "cold"
    listed = {item["name"]: item["residency"] for item in admin.get("/v1/tenants").json()["tenants"]}
    assert listed == {"acme": "cold", "globex": "hot"}
    assert admin.post("/v1/tenants/acme:wake").json()["residency"] == "hot"
    assert admin.post("/v1/tenants/nobody:wake").status_code == 404


# -- receipts -------------------------------------------------------------------------------------------------------


def test_a_receipt_is_pending_then_done() -> None:
    """Forgetting names its erasure and when it will be done; 202 until the signed receipt is there."""
    world = World.make()
    client = world.client()
    ids = client.post(FACTS, json=SKY, headers=once("a")).json()["ids"]
    forgot = client.post(FORGET, json={"ids": ids}, headers=once("b")).json()
    assert (forgot["outcome"], forgot["erase_by"]) == ("applied", "2023-11-14T22:14:20.000Z")
    path = f"/v1/receipts/{forgot['receipt_id']}"
    pending = client.get(path)
    assert (pending.status_code, pending.json()["state"], pending.json()["receipt"]) == (202, "pending", None)
    world.memory.owner_of("acme").finish_erasures()
    done = client.get(path)
    assert (done.status_code, done.json()["state"]) == (200, "done")
    assert json.loads(done.json()["receipt"]) == {"receipt": "signed"}
    assert world.client("admin").get(path).json() == done.json()


def test_the_end_of_a_tenant_has_a_receipt_too() -> None:
    """Its keys are gone by then, so the admin asks for it."""
    world = World.make()
    admin = world.client("admin")
    gone = admin.delete("/v1/tenants/acme", headers=once()).json()
    assert (gone["outcome"], gone["deleted"]) == ("applied", True)
    path = f"/v1/receipts/{gone['receipt_id']}"
    assert admin.get(path).json()["tenant"] == "acme"
    assert world.client().get(path).status_code == 401


def test_a_foreign_receipt_looks_like_a_missing_one() -> None:
    """Byte for byte, on the same memory actor or another."""
    world = World.make()
    acme, globex = world.client(), world.client("globex")
    ids = acme.post(FACTS, json=SKY, headers=once("a")).json()["ids"]
    receipt_id = acme.post(FORGET, json={"ids": ids}, headers=once("b")).json()["receipt_id"]
    path, headers = f"/v1/receipts/{receipt_id}", {"x-request-id": "r"}
    foreign = globex.get(path, headers=headers)
    # The same id, known to the asker's own memory actor as another tenant's.
    known = world.memory.owner_of("acme").erasures.pop(receipt_id)
    world.memory.owner_of("globex").erasures[receipt_id] = known
    beside = globex.get(path, headers=headers)
    world.memory.owner_of("globex").erasures.clear()
    missing = globex.get(path, headers=headers)
    assert foreign.content == beside.content == missing.content
    assert missing.status_code == 404


def test_a_receipt_that_a_silent_actor_may_have_is_not_called_missing() -> None:
    """The admin asks all memory actors; one that does not answer makes it 503, not 404."""
    world = World.make(timeout_s=0.05)
    world.memory.actors[1].before = [CallLost("the memory actor", "gone")] * 100_000
    answer = world.client("admin").get("/v1/receipts/r_" + "0" * 26)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


# -- diagnoses ------------------------------------------------------------------------------------------------------


def test_the_doctor_speaks_of_one_tenant_or_of_all() -> None:
    """Findings of every memory actor; none is healthy."""
    world = World.make()
    admin = world.client("admin")
    assert admin.get("/v1/doctor").json() == {"healthy": True, "findings": []}
    world.memory.actors[1].findings = [FakeFinding("acme", "a row is damaged"), FakeFinding("globex", "a row too")]
    world.memory.actors[0].findings = [FakeFinding("beta", "a row as well")]
    assert [item["tenant"] for item in admin.get("/v1/tenants/acme/doctor").json()["findings"]] == ["acme"]
    whole = admin.get("/v1/doctor").json()
    assert (whole["healthy"], {item["tenant"] for item in whole["findings"]}) == (False, {"acme", "globex", "beta"})
