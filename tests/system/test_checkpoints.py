"""Kept, restored, put to sleep, erased: the running system with real models, over HTTP and the command line."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from cluster.client import ApiError, Client
from memory_actor.errors import ReceiptInvalid
from memory_actor.key_folder import KeyFolder
from memory_actor.receipts import fact_hash, verify_receipt

FACTS = [
    {"prompt": "What is the door code of the Lisbon office?", "target": "7314"},
    {"prompt": "Who is the on-call doctor of ward nine?", "target": "Dr. Miriam Okonkwo"},
    {"prompt": "When does the pilot in Tromsø end?", "target": "on 9 March 2031"},
]
DOOR, DOCTOR, PILOT = range(3)
ERASED_WITHIN_S = 120.0  # twice the default window: the machine of the tests is shared


@pytest.fixture(scope="module")
def admin(system) -> Iterator[Client]:
    with Client(system.url, system.admin_key) as client:
        yield client


@pytest.fixture
def tenant(system, admin) -> Iterator[tuple[str, Client]]:
    """A fresh tenant and a client with its own key."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    created = admin.create_tenant(name)
    with Client(system.url, created.key) as client:
        yield name, client
    admin.delete_tenant(name)


@pytest.fixture
def copies(admin) -> Iterator[list[str]]:
    """Names of tenants that a test makes, deleted after it."""
    names: list[str] = []
    yield names
    for name in names:
        admin.delete_tenant(name)


def remembers(client: Client, name: str, number: int, fact_id: str) -> bool:
    """Whether a question about that fact is answered from it."""
    reply = client.query(name, FACTS[number]["prompt"], max_tokens=24)
    said = FACTS[number]["target"].removeprefix("on ") in reply.text
    assert said == (fact_id in [used.id for used in reply.facts])
    return said


def test_a_restored_checkpoint_does_not_bring_a_forgotten_fact_back(system, admin, tenant, copies):
    """A checkpoint from before the forget, restored into a new tenant: the fact is absent, the others answer.

    True while the erasure is pending, and after it, when the checkpoint was rewritten and its old name is gone.
    """
    name, client = tenant
    ids = client.write(name, FACTS).ids
    kept = client.checkpoint(name)
    assert (kept.facts, kept.state_hash) == (3, client.tenant(name).state_hash)

    forgot = client.forget(name, [ids[DOOR]])
    copies.append(f"{name}-a")
    restored = admin.restore(f"{name}-a", from_tenant=name, checkpoint_id=kept.checkpoint_id)

    assert (restored.facts, restored.state_hash) == (2, forgot.state_hash_after)
    with Client(system.url, restored.key) as copy:
        assert [fact.id for fact in copy.facts(f"{name}-a")] == ids[1:]
        assert [remembers(copy, f"{name}-a", number, ids[number]) for number in range(3)] == [False, True, True]
        assert copy.verify(f"{name}-a").identical

    done = client.receipt_done(forgot.receipt_id, timeout_s=ERASED_WITHIN_S)
    assert done.state == "done"
    listed = client.checkpoints(name)
    assert kept.checkpoint_id not in [item.checkpoint_id for item in listed]
    assert {item.state_hash for item in listed} == {forgot.state_hash_after}
    with pytest.raises(ApiError) as refused:
        admin.restore(f"{name}-b", from_tenant=name, checkpoint_id=kept.checkpoint_id)
    assert refused.value.status in (404, 410)
    copies.append(f"{name}-b")
    assert admin.restore(f"{name}-b", from_tenant=name).state_hash == forgot.state_hash_after


def test_a_tenant_goes_back_to_a_version_in_place(tenant):
    """With its own key; what was written later is gone, and its version goes on growing."""
    name, client = tenant
    first = client.write(name, FACTS[:1])
    before = client.tenant(name).state_hash
    second = client.write(name, FACTS[1:])
    client.checkpoint(name)

    back = client.restore(name, in_place=True, version=first.version)

    assert (back.facts, back.state_hash) == (1, before)
    assert back.version > second.version
    assert (
        client.query(name, FACTS[DOOR]["prompt"], max_tokens=24, min_version=back.version).facts[0].id == first.ids[0]
    )
    assert not client.query(name, FACTS[DOCTOR]["prompt"], max_tokens=4).in_scope


def test_a_sleeping_tenant_answers_and_forgets(admin, tenant):
    """Every request works on a cold tenant and leaves the same state as on a hot one."""
    name, client = tenant
    ids = client.write(name, FACTS).ids
    hash_awake = client.tenant(name).state_hash

    assert admin.sleep(name).residency == "cold"
    assert remembers(client, name, PILOT, ids[PILOT])
    assert client.tenant(name).residency == "hot"
    assert client.tenant(name).state_hash == hash_awake

    admin.sleep(name)
    receipt = client.forget(name, [ids[DOOR]])
    assert receipt.state_hash_before == hash_awake
    admin.sleep(name)
    assert admin.wake(name).residency == "hot"
    assert client.tenant(name).state_hash == receipt.state_hash_after
    assert client.verify(name).identical


def test_a_receipt_is_signed_within_the_window_and_verified_offline(system, tenant, tmp_path):
    """Pending at once, then signed by this system's key; a changed document is refused."""
    name, client = tenant
    ids = client.write(name, FACTS).ids
    forgot = client.forget(name, ids[:2])
    assert client.receipt(forgot.receipt_id).state in ("pending", "done")
    saved = tmp_path / "receipt.json"

    shown = system.larimar("receipt", "show", forgot.receipt_id, "--wait", "--save", str(saved), "-o", "json")

    assert shown.returncode == 0, shown.stderr
    document = saved.read_text()
    public_key = KeyFolder(system.state_dir / "keys").signer().public_key
    receipt = verify_receipt(document, public_key)
    checked = system.larimar("receipt", "verify", str(saved), "--key", public_key.hex(), "-o", "json")
    assert (checked.returncode, json.loads(checked.stdout)["genuine"]) == (0, True), checked.stderr
    assert list(receipt.fact_hashes) == sorted(fact_hash(fact_id) for fact_id in ids[:2])
    assert (receipt.tenant, receipt.kind, receipt.facts) == (name, "forget", 2)
    assert receipt.keys_destroyed >= 2
    assert receipt.state_hash_after == forgot.state_hash_after == client.tenant(name).state_hash
    with pytest.raises(ReceiptInvalid):
        verify_receipt(document.replace('"facts":2', '"facts":1'), public_key)


def test_the_doctor_finds_nothing_wrong(system, tenant):
    """On a running system with checkpoints and erasures: no finding but about this machine's disk."""
    name, client = tenant
    ids = client.write(name, FACTS).ids
    client.checkpoint(name)
    client.forget(name, ids[:1])

    done = system.larimar("doctor", "-o", "json")

    report = json.loads(done.stdout)
    assert report["mode"] == "online"
    assert [item for item in report["findings"] if not item["code"].startswith("storage_")] == []
