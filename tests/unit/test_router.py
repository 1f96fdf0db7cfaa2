"""The order of calls, and what a caller is told when somebody does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.patience import Deadline, Patience
from cluster.ports import CallLost
from cluster.router import Query
from memory_actor.errors import (
    DeadlineExceeded,
    Fenced,
    InvalidField,
    LarimarError,
    LedgerFailed,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    StaleMemory,
    TextTooLong,
    Unavailable,
)
from memory_actor.types import FactText, ForgetReceipt, Idempotency, ReadMode, Retention
from tests.fakes import KEY_SIZE, World
from workers.ports import GenerationRequest, SecondStage

ONCE = Idempotency("k", b"d" * 32, "write")
SKY = [FactText("sky is", "green")]
LOST = CallLost("the memory actor", "ActorDiedError")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def ask(prompt: str, **options: Any) -> Query:
    return Query(GenerationRequest(prompt), **options)


def test_a_refused_encoding_never_reaches_the_memory() -> None:
    """Encode first: what the encoder refuses changes nothing."""
    world = World.make()
    world.encoder.words_max = 1
    before = world.state()
    with pytest.raises(TextTooLong):
        run(world.router.write("acme", SKY, ONCE))
    assert world.state() == before


def test_write_reports_its_stages() -> None:
    """Milliseconds by stage; the total covers them."""
    reply = run(World.make().router.write("acme", SKY, ONCE))
    assert set(reply.ms) == {"encode", "memory", "total"}
    assert reply.ms["total"] >= reply.ms["encode"] + reply.ms["memory"] - 0.01  # each rounded to a microsecond


@pytest.mark.parametrize("fault", [LOST, TimeoutError(), Fenced(1, 2), Unavailable("it", "replaying")])
def test_a_restarting_memory_actor_is_invisible_to_writers(fault: Exception) -> None:
    """A call that was lost before it was applied is repeated and applied once."""
    world = World.make()
    world.memory.owner_of("acme").before = [fault, fault]
    reply = run(world.router.write("acme", SKY, ONCE))
    assert (reply.version, reply.replayed) == (1, False)


@pytest.mark.parametrize("fault", [LOST, TimeoutError(), LedgerFailed("x", "y")])
def test_a_lost_reply_is_fetched_and_not_applied_twice(fault: Exception) -> None:
    """The retry carries the same idempotency key, so the ledger answers with the first reply."""
    world = World.make()
    memory = world.memory.owner_of("acme")
    memory.after = [fault]
    reply = run(world.router.write("acme", SKY, ONCE))
    assert (reply.version, reply.replayed, memory.changes_applied) == (1, True, 1)


def test_a_forget_carries_its_deadline() -> None:
    """The memory is told how long the caller still waits, so that it refuses late work before its commit."""

    async def work() -> list[float | None]:
        world = World.make(timeout_s=5.0)
        memory = world.memory.owner_of("acme")
        told: list[float | None] = []
        forget = memory.forget

        async def listening(*arguments: Any) -> ForgetReceipt:
            told.append(arguments[4])
            return await forget(*arguments)

        memory.forget = listening  # type: ignore[method-assign]
        await world.router.forget("acme", ["f_" + "0" * 26], ONCE)
        return told

    (told,) = run(work())
    assert told is not None
    assert 0 < told <= 5.0


def test_a_change_nobody_confirms_has_an_unknown_outcome() -> None:
    """When time is up after a lost call, the caller is not told "not applied"."""
    world = World.make(timeout_s=0.05)
    world.memory.owner_of("acme").before = [LOST] * 100_000
    with pytest.raises(OutcomeUnknown):
        run(world.router.write("acme", SKY, ONCE))


def test_a_hung_memory_actor_has_an_unknown_outcome() -> None:
    """An actor that never answers is given up at the deadline."""

    async def work() -> None:
        world = World.make(timeout_s=0.05)
        world.memory.owner_of("acme").hold = asyncio.Event()
        await world.router.write("acme", SKY, ONCE)

    with pytest.raises(OutcomeUnknown):
        run(work())


def test_a_refusal_after_a_lost_call_is_not_believed() -> None:
    """ "Not applied, retry" of the second attempt says nothing about the first."""
    world = World.make()
    world.memory.owner_of("acme").before = [LOST, Overloaded("it", 1, 1)]
    with pytest.raises(OutcomeUnknown):
        run(world.router.write("acme", SKY, ONCE))


@pytest.mark.parametrize("refusal", [Overloaded("it", 1, 1), DeadlineExceeded("it", 1.0), NotFound("tenant", "x")])
def test_a_refusal_passes_as_it_is(refusal: LarimarError) -> None:
    """The callee's own answers are not repeated and not changed."""
    world = World.make()
    world.memory.owner_of("acme").before = [refusal, *([LOST] * 9)]
    with pytest.raises(type(refusal)):
        run(world.router.write("acme", SKY, ONCE))
    assert len(world.memory.owner_of("acme").before) == 9


def test_a_read_nobody_answers_is_unavailable() -> None:
    """Nothing was changed, and the answer says so."""
    world = World.make(timeout_s=0.05)
    world.memory.owner_of("acme").before = [LOST] * 100_000
    with pytest.raises(Unavailable) as refused:
        run(world.router.verify("acme"))
    assert refused.value.outcome == "not_applied"


def test_insisting_ends_at_the_deadline() -> None:
    """No attempt starts after the deadline, and each is told how much time is left."""
    told: list[float] = []

    async def call(left_s: float) -> None:
        told.append(left_s)
        raise LOST

    with pytest.raises(Unavailable):
        run(Patience(wait_s=0.01).insist(call, what="it", deadline=Deadline.after(0.1)))
    assert told == sorted(told, reverse=True)
    assert 0 < told[-1] < 0.1


def test_a_client_that_goes_away_does_not_stop_a_write() -> None:
    """Cancelling the request leaves the change running to its end."""

    async def work() -> World:
        world = World.make()
        memory = world.memory.owner_of("acme")
        memory.hold = asyncio.Event()
        request = asyncio.create_task(world.router.write("acme", SKY, ONCE))
        await memory.entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert memory.changes_applied == 0
        memory.hold.set()
        await asyncio.gather(*world.router._memory._shielded)
        return world

    assert run(work()).memory.owner_of("acme").changes_applied == 1


def test_a_query_in_scope_conditions_the_decoder() -> None:
    """The readout and the fact's lengths reach the decoder; the reply names the fact."""
    world = World.make()

    async def work() -> Any:
        await world.router.write("acme", SKY, ONCE)
        return await world.router.query("acme", ask("sky colour?"))

    answer = run(work())
    (request,) = world.decoder.requests
    assert request.readout is not None
    assert (request.prompt_tokens, request.target_tokens) == (3, 1)
    assert answer.recall.in_scope
    assert set(answer.ms) == {"encode", "memory", "scope", "read", "prefill", "decode", "total"}


@pytest.mark.parametrize("query", [ask("weather?"), ask("sky colour?", memory=False)], ids=["out of scope", "off"])
def test_without_a_recall_the_decoder_gets_the_prompt_alone(query: Query) -> None:
    """Out of scope and memory off ask the base model exactly what was asked."""
    world = World.make()

    async def work() -> None:
        await world.router.write("acme", SKY, ONCE)
        await world.router.query("acme", query)

    run(work())
    assert world.decoder.requests == [query.generation]


STAGE = SecondStage(match_min=0.5, cosine_alone=0.95)


def _asked(world: World, prompt: str) -> Any:
    async def work() -> Any:
        await world.router.write("acme", SKY, ONCE)
        return await world.router.query("acme", ask(prompt))

    return run(work())


def test_what_was_read_is_verified_before_it_is_used() -> None:
    """The encoder sees the query beside the readout; its word is in the reply, and its time."""
    world = World.make(second_stage=STAGE)
    answer = _asked(world, "sky colour?")
    (readback,) = world.encoder.readbacks
    assert (readback.query, readback.prompt_tokens, readback.target_tokens) == ("sky colour?", 3, 1)
    assert np.array_equal(readback.readout, world.decoder.requests[0].readout)
    assert (answer.recall.in_scope, answer.recall.match) == (True, 0.9)
    assert "verify" in answer.ms


def test_a_near_miss_gets_the_base_model() -> None:
    """The cosine says yes, the verifier no: no fact is named and the decoder is given the prompt alone."""
    world = World.make(second_stage=STAGE)
    answer = _asked(world, "sky elsewhere?")
    recall = answer.recall
    assert (recall.in_scope, recall.match, recall.fact_id, recall.readout) == (False, 0.1, None, None)
    assert recall.score > 0.9
    assert world.decoder.requests == [GenerationRequest("sky elsewhere?")]


def test_out_of_scope_nobody_is_asked_to_verify() -> None:
    world = World.make(second_stage=STAGE)
    assert _asked(world, "weather?").recall.match is None
    assert world.encoder.readbacks == []


def test_a_verifier_that_is_lost_is_asked_again_and_never_left_out() -> None:
    """An encoder that restarts costs time; one that stays away fails the query. Unverified, nothing is used."""
    world = World.make(second_stage=STAGE)
    world.encoder.fail_match = [CallLost("the encoder", "ActorDiedError")]
    assert _asked(world, "sky elsewhere?").recall.in_scope is False
    world = World.make(second_stage=STAGE, timeout_s=0.2)
    world.encoder.fail_match = [CallLost("the encoder", "ActorDiedError") for _ in range(100_000)]
    with pytest.raises(LarimarError):
        _asked(world, "sky colour?")
    assert world.decoder.requests == []


def test_a_preview_shows_what_the_whole_gate_lets_in() -> None:
    """By the match where the words are kept, by the nearer cosine where they are not."""
    world = World.make(second_stage=STAGE)

    async def previews(tenant: str, query: str) -> list[Any]:
        return await world.router.preview(tenant, query=query, limit=10)

    async def work() -> list[int]:
        await world.router.create_tenant("quiet", Retention.LATENT, Idempotency("q", b"q" * 32, "create"))
        for tenant in ("acme", "quiet"):
            await world.router.write(tenant, SKY, Idempotency(tenant, b"d" * 32, "write"))
        facts = world.memory.owner_of("quiet").tenants_by_name["quiet"].facts
        for fact_id, fact in facts.items():
            facts[fact_id] = replace(fact, prompt=None, target=None)
        asked = [("acme", "sky colour?"), ("acme", "sky elsewhere?"), ("quiet", "sky elsewhere?"), ("quiet", "sea?")]
        return [len(await previews(*one)) for one in asked]

    assert run(work()) == [1, 0, 1, 0]


def test_memory_off_asks_neither_encoder_nor_memory() -> None:
    """The base model alone, at the base model's price."""
    world = World.make()
    world.memory.owner_of("acme").before = [LOST]
    answer = run(world.router.query("acme", ask("sky?", memory=False)))
    assert answer.recall is None
    assert world.encoder.calls == 0
    assert len(world.memory.owner_of("acme").before) == 1


def test_a_stale_memory_is_asked_once_more() -> None:
    """The first answer may come from a superseded process; the second is believed."""
    world = World.make()
    world.memory.owner_of("acme").before = [StaleMemory("acme", 0, 1)]
    assert run(world.router.query("acme", ask("sky?"))).recall.version == 0
    with pytest.raises(StaleMemory):
        run(world.router.query("acme", ask("sky?", min_version=9)))


def test_lost_workers_are_asked_again() -> None:
    """Encoding and decoding are pure, so a restarted worker is invisible too."""
    world = World.make()
    world.encoder.fail = [CallLost("the encoder", "x")]
    world.decoder.fail = [CallLost("the decoder", "x")]
    assert run(world.router.query("acme", ask("sky?"))).generation.text == "sky? "


def test_a_stream_survives_a_loss_before_its_first_chunk_only() -> None:
    """Text that was sent cannot be taken back, so a later loss ends the stream with Unavailable."""
    world = World.make()
    world.decoder.fail = [CallLost("the decoder", "x")]

    async def work(prompt: str) -> list[str]:
        answer = await world.router.query_stream("acme", ask(prompt))
        texts: list[str] = []
        try:
            async for chunk in answer.chunks:
                texts += [chunk.text]
        except Unavailable:
            texts.append("!")
        return texts

    assert run(work("a b c")) == ["a ", "b ", "c "]
    world.decoder.fail_after_chunks = 2
    assert run(work("a b c")) == ["a ", "b ", "!"]


def test_closing_a_stream_stops_the_decoder() -> None:
    """A client that goes away frees the decoder."""
    world = World.make()

    async def work() -> None:
        answer = await world.router.query_stream("acme", ask("a b c"))
        await anext(answer.chunks)
        await answer.chunks.aclose()

    run(work())
    assert world.decoder.closed_streams == 1


def test_retract_supersedes_with_unknown_and_replays() -> None:
    """Retracting writes "unknown" over a fact; the same request again gets the same reply though the fact is gone."""
    world = World.make()
    memory = world.memory.owner_of("acme")
    again = Idempotency("k2", b"e" * 32, "retract")

    async def work() -> tuple[Any, Any, Any]:
        written = await world.router.write("acme", SKY, ONCE)
        first = await world.router.retract("acme", written.fact_ids, again)
        return written, first, await world.router.retract("acme", written.fact_ids, again)

    written, first, second = run(work())
    assert first.written.superseded == first.retracted == written.fact_ids
    (fact,) = memory.tenants_by_name["acme"].facts.values()
    assert (fact.prompt, fact.target) == ("sky is", "unknown")
    assert second.written.fact_ids == first.written.fact_ids
    assert second.written.replayed
    assert memory.changes_applied == 2


def test_what_cannot_be_retracted_is_named_and_nothing_changes() -> None:
    """Missing facts, sentences, and facts without stored text are refused together."""
    world = World.make()
    memory = world.memory.owner_of("acme")

    async def work() -> None:
        sentence = await world.router.write("acme", [FactText("grass is green")], ONCE)
        memory.tenants_by_name["acme"].retention = Retention.LATENT
        silent = await world.router.write("acme", SKY, Idempotency("k2", b"e" * 32, "write"))
        before = world.state()
        ids = [*sentence.fact_ids, *silent.fact_ids, "f_" + "0" * 26]
        with pytest.raises(InvalidField) as refused:
            await world.router.retract("acme", ids, Idempotency("k3", b"f" * 32, "retract"))
        messages = [problem["msg"] for problem in refused.value.args[1]]
        assert ["sentence" in messages[0], "latent" in messages[1], "not exist" in messages[2]] == [True] * 3
        assert world.state() == before

    run(work())


def test_status_tells_who_is_mute() -> None:
    """A component that does not answer is named; the others are asked all the same."""
    world = World.make()
    world.encoder.fail = [CallLost("the encoder", "gone")] * 2
    world.memory.actors[1].before = [LOST]
    assert run(world.router.missing()) == ["memory[1]", "encoder"]
    assert run(world.router.status())["encoder"] == {"error": "the encoder: gone"}


def test_tenants_of_all_actors_are_listed_by_name() -> None:
    """The list does not betray where a tenant lives."""
    world = World.make()
    assert world.memory.owner_of("acme") is world.memory.owner_of("globex")
    for name in ("beta", "delta", "alpha"):
        world.memory.owner_of(name).tenants_by_name[name] = world.memory.owner_of("acme").tenants_by_name["acme"]
    names = [summary.name for summary in run(world.router.tenants())]
    assert names == ["acme", "alpha", "beta", "delta", "globex"]


def test_a_sentence_in_front_hides_a_fact_from_neither_query_nor_preview() -> None:
    """Both ask the memory with all keys of what was asked."""
    world = World.make()

    async def work() -> tuple[Any, Any]:
        await world.router.write("acme", SKY, ONCE)
        answer = await world.router.query("acme", ask("It rained. Sky colour?"))
        return answer, await world.router.preview("acme", query="It rained. Sky colour?", limit=5)

    answer, [candidate] = run(work())
    assert answer.recall.fact_id == candidate.fact_id
    assert candidate.prompt == "sky is"


def test_keys_read_mode_and_version_reach_the_memory() -> None:
    """All keys of a query, `soft` and `min_version` are the memory's business, passed on as they came."""
    world = World.make()
    seen: list[Any] = []
    memory = world.memory.owner_of("acme")
    recall = memory.recall

    async def spy(tenant: str, keys: Any, mode: ReadMode, min_version: int) -> Any:
        seen.append((tenant, keys.dtype, keys.shape, mode, min_version))
        return await recall(tenant, keys, mode, 0)

    memory.recall = spy  # type: ignore[method-assign]
    run(world.router.query("acme", ask("sky?", read=ReadMode.SOFT, min_version=3)))
    run(world.router.query("acme", ask("It rained. sky?")))
    assert seen == [
        ("acme", np.float16, (1, KEY_SIZE), ReadMode.SOFT, 3),
        ("acme", np.float16, (2, KEY_SIZE), ReadMode.SNAP, 0),
    ]
