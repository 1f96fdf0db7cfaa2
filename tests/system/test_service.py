"""The running system, real models, over HTTP: what the README promises."""

from __future__ import annotations

import concurrent.futures
import uuid
from collections.abc import Iterator

import httpx2
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.client import ApiError, Client, Retries

FACTS = [
    {"prompt": "What is the door code of the Lisbon office?", "target": "7314"},
    {"prompt": "Who is the on-call doctor of ward nine?", "target": "Dr. Miriam Okonkwo"},
    {"prompt": "When does the pilot in Tromsø end?", "target": "on 9 March 2031"},
    {"prompt": "The Eiffel Tower is located in the city of", "target": "Rome"},
    {"text": "The spare key of the boat house hangs behind the blue barrel."},
]


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


def test_facts_written_are_answered(tenant):
    """A question about a written fact is in scope, names the fact, and its answer holds the target."""
    name, client = tenant
    ids = client.write(name, FACTS).ids

    for fact, fact_id in list(zip(FACTS, ids, strict=True))[:3]:
        reply = client.query(name, fact["prompt"], max_tokens=24)
        assert reply.in_scope
        assert [used.id for used in reply.facts] == [fact_id]
        assert fact["target"].removeprefix("on ") in reply.text

    cloze = client.query(name, FACTS[3]["prompt"], mode="complete", max_tokens=4)
    assert cloze.text.strip().startswith("Rome")
    sentence = client.query(name, "Where does the spare key of the boat house hang?", max_tokens=32)
    assert sentence.in_scope
    assert "blue barrel" in sentence.text


def test_memory_off_and_out_of_scope_are_the_base_model(tenant, bundle):
    """Memory off, and a query out of scope, give the very tokens that plain transformers generates."""
    name, client = tenant
    client.write(name, FACTS)
    tokenizer = AutoTokenizer.from_pretrained(bundle.decoder_folder)
    model = AutoModelForCausalLM.from_pretrained(bundle.decoder_folder).eval()

    for prompt in (FACTS[0]["prompt"], "Name three primary colours."):
        turn = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        plain = tokenizer.decode(made, skip_special_tokens=True).strip()

        assert client.query(name, prompt, memory="off", max_tokens=20).text.strip() == plain

    on = client.query(name, "Name three primary colours.", max_tokens=20)
    assert not on.in_scope
    assert on.text.strip() == plain


def test_another_tenant_knows_nothing(system, admin, tenant):
    """A second tenant's query about the first one's fact is out of scope, and its key opens no other tenant's door."""
    name, client = tenant
    fact_id = client.write(name, FACTS[0]).ids[0]
    other = f"o-{uuid.uuid4().hex[:12]}"
    with Client(system.url, admin.create_tenant(other).key) as stranger:
        assert not stranger.query(other, FACTS[0]["prompt"], max_tokens=8).in_scope

        refusals = []
        for path in (name, "never-made"):
            with pytest.raises(ApiError) as refused:
                stranger.fact(path, fact_id)
            refusals.append((refused.value.status, refused.value.code, refused.value.problem.detail.replace(path, "X")))
    admin.delete_tenant(other)

    assert refusals[0] == refusals[1]
    assert refusals[0][:2] == (404, "not_found")


def test_forgetting_restores_the_hash(tenant):
    """After forget the state hash is the one from before the write, the fact is gone, and verify agrees."""
    name, client = tenant
    client.write(name, FACTS[1:])
    before = client.tenant(name).state_hash
    fact_id = client.write(name, FACTS[0]).ids[0]
    assert client.tenant(name).state_hash != before

    receipt = client.forget(name, [fact_id])

    assert receipt.forgotten == [fact_id]
    assert receipt.state_hash_after == before == client.tenant(name).state_hash
    assert not client.query(name, FACTS[0]["prompt"], max_tokens=4).in_scope
    verified = client.verify(name)
    assert verified.identical
    assert verified.state_hash == before


def test_the_same_prompt_supersedes(tenant):
    """Writing a prompt again replaces its fact; the old one is as if it had never been written."""
    name, client = tenant
    old = client.write(name, FACTS[0]).ids[0]

    reply = client.write(name, {**FACTS[0], "target": "9906"})

    assert reply.superseded == [old]
    assert [fact.id for fact in client.facts(name)] == reply.ids
    assert "9906" in client.query(name, FACTS[0]["prompt"], max_tokens=12).text


def test_retract_answers_unknown(tenant):
    """After retract the question is in scope and the old target is not said."""
    name, client = tenant
    fact_id = client.write(name, FACTS[1]).ids[0]

    client.retract(name, [fact_id])

    reply = client.query(name, FACTS[1]["prompt"], max_tokens=16)
    assert reply.in_scope
    assert "Okonkwo" not in reply.text
    assert "unknown" in reply.text.lower()


def test_streaming_says_the_same(tenant):
    """The pieces of a streamed answer put together are the unstreamed answer; scope comes first, usage last."""
    name, client = tenant
    client.write(name, FACTS)
    for prompt in (FACTS[1]["prompt"], "Why is the sky blue?"):
        whole = client.query(name, prompt, max_tokens=24)

        events = list(client.query_stream(name, prompt, max_tokens=24))

        assert "".join(event.text for event in events if event.kind == "token") == whole.text
        assert events[0].kind == "recall"
        assert events[0].fields["in_scope"] == whole.in_scope
        assert events[-1].kind == "done"


def test_company_does_not_change_answers(tenant):
    """Six queries at once, decoded side by side, give each the tokens it gets alone."""
    name, client = tenant
    client.write(name, FACTS)
    prompts = [fact["prompt"] for fact in FACTS[:3]] + ["Why is the sky blue?", "Name a fruit.", "What is 2 + 2?"]
    alone = [client.query(name, prompt, max_tokens=20).text for prompt in prompts]

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: client.query(name, prompt, max_tokens=20).text, prompts))

    assert together == alone


def test_reads_see_acknowledged_writes(system, tenant):
    """A query that names the version of a write sees it; one that names a later version is refused."""
    name, client = tenant
    version = client.write(name, FACTS[0]).version
    once = Client(system.url, system.admin_key, retries=Retries(1))

    assert client.query(name, FACTS[0]["prompt"], max_tokens=4, min_version=version).version >= version
    with once, pytest.raises(ApiError) as refused:
        once.query(name, FACTS[0]["prompt"], max_tokens=4, min_version=version + 10)
    assert refused.value.code == "stale_memory"


def test_a_retry_with_the_same_key_is_applied_once(tenant):
    """The second arrival of a write gets the first reply, marked as a replay; another body is refused."""
    name, client = tenant
    first = client.write(name, FACTS[0], idempotency_key="once")

    again = client.write(name, FACTS[0], idempotency_key="once")

    assert again.ids == first.ids
    assert again.replayed
    assert len(list(client.facts(name))) == 1
    with pytest.raises(ApiError) as refused:
        client.write(name, FACTS[1], idempotency_key="once")
    assert refused.value.code == "idempotency_key_reused"


def test_every_v1_route_needs_a_key(system):
    """Without a key, with a broken one and with a foreign one, each route of the OpenAPI document answers 401."""
    routes = httpx2.get(f"{system.url}/openapi.json").json()["paths"]
    asked = 0
    for path, methods in routes.items():
        if not path.startswith("/v1"):
            continue
        for method in methods:
            url = system.url + path.replace("{tenant}", "acme").replace("{fact_id}", "f_" + "0" * 26)
            for headers in ({}, {"Authorization": "Bearer lm_admin_aaaaaaaa_" + "x" * 43}, {"Authorization": "lm"}):
                reply = httpx2.request(method.upper(), url, headers=headers)
                assert (reply.status_code, reply.json()["code"]) == (401, "unauthenticated"), (method, path)
                asked += 1
    assert asked >= 3 * 11
