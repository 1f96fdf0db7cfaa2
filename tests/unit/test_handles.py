"""Ray's failures as ours. No Ray is started: its exceptions and handles are made by hand."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray import cloudpickle
from ray import exceptions as ray_errors
from ray.serve import exceptions as serve_errors

from cluster.gateway import Gateway, GatewayReplica
from cluster.handles import RayMemory, RayMemoryDirectory, ServeDecoder, ServeEncoder, translated
from cluster.ports import CallLost
from memory_actor.actor import MemoryActor
from memory_actor.directory import actor_name, actor_of, virtual_shard
from memory_actor.errors import LarimarError, NotFound, Overloaded, StaleMemory
from memory_actor.types import FactText, Idempotency
from workers.ports import GenerationChunk, GenerationRequest


def task_error(cause: Exception) -> ray_errors.RayTaskError:
    """What a caller of a remote method gets when it raised `cause`."""
    wrapped = ray_errors.RayTaskError("write", "Traceback: secret", cause, proctitle="x", pid=1, ip="127.0.0.1")
    return wrapped.as_instanceof_cause()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ray_errors.ActorDiedError(), CallLost),
        (ray_errors.ActorUnavailableError("gone", b"\0" * 16), CallLost),
        (ray_errors.GetTimeoutError("late"), CallLost),
        (ray_errors.WorkerCrashedError(), CallLost),
        (task_error(ray_errors.ActorDiedError()), CallLost),
        (serve_errors.BackPressureError(3, 2), Overloaded),
        (task_error(NotFound("fact", "f_1")), NotFound),
        (task_error(KeyError("bug")), KeyError),
        (NotFound("fact", "f_1"), NotFound),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_ray_errors_become_ours(raised: Exception, expected: type[Exception]) -> None:
    """A typed refusal, a lost call, or a bug: nothing of Ray's own reaches the router."""
    with pytest.raises(expected) as caught, translated("it"):
        raise raised
    if isinstance(caught.value, LarimarError):
        assert not isinstance(caught.value, ray_errors.RayTaskError)
        assert "secret" not in str(caught.value)


class Method:
    """A remote method that answers `replies` in turn."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.calls: list[tuple[Any, ...]] = []

    def remote(self, *args: Any) -> Any:
        self.calls.append(args)
        reply = self.replies.pop(0)

        async def answer() -> Any:
            if isinstance(reply, Exception):
                raise reply
            return reply

        return answer()


class Handle:
    """An actor or deployment handle with the given methods."""

    def __init__(self, **methods: Method) -> None:
        self.__dict__.update(methods)

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self


class NamedMemory(RayMemory):
    """A RayMemory whose name leads to the given handles, one after the other."""

    def __init__(self, *handles: Handle) -> None:
        super().__init__(0, "larimar")
        self.handles = list(handles)

    async def _find(self) -> Any:
        self._actor = self.handles.pop(0)
        return self._actor


@pytest.mark.parametrize("failure", [ray_errors.ActorDiedError(), task_error(StaleMemory("acme", 1, 2))])
def test_after_a_lost_or_stale_answer_the_name_is_looked_up_anew(failure: Exception) -> None:
    """A remembered address is trusted only while it answers, and answers freshly."""
    old, new = Method("a", failure), Method("b", "c")
    memory = NamedMemory(Handle(tenant=old), Handle(tenant=new))

    async def work() -> list[Any]:
        seen: list[Any] = [await memory.tenant("acme")]
        with pytest.raises((CallLost, StaleMemory)):
            await memory.tenant("acme")
        return [*seen, await memory.tenant("acme"), await memory.tenant("acme")]

    assert asyncio.run(work()) == ["a", "b", "c"]
    assert memory.handles == []


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("sleep", ("acme",)),
        ("wake", ("acme",)),
        ("checkpoint", ("acme", "local")),
        ("checkpoints", ("acme",)),
        ("grant", ("acme", "c_1")),
        ("restore", ("acme", None, 7, True, Idempotency("k", bytes(32), "restore"))),
        ("erasure", ("r_1",)),
        ("doctor", (None,)),
    ],
)
def test_calls_of_safekeeping_reach_the_actors_method_of_that_name(method: str, arguments: tuple[Any, ...]) -> None:
    """The same arguments in the same order, by position, as the actor takes them."""
    remote = Method("reply")
    reply = asyncio.run(getattr(NamedMemory(Handle(**{method: remote})), method)(*arguments))
    assert (reply, remote.calls) == ("reply", [arguments])
    taken = inspect.signature(getattr(MemoryActor.__ray_metadata__.modified_class, method)).parameters
    assert len([name for name in taken if name not in ("self", "_ray_trace_ctx")]) == len(arguments)


def test_tenants_go_to_the_actor_that_placement_names() -> None:
    """The directory follows the pure placement function."""
    directory = RayMemoryDirectory(3, "larimar")
    for name in ("acme", "globex", "initech"):
        owner = directory.owner_of(name)
        index = actor_of(virtual_shard(name), 3)
        assert owner is directory.everyone()[index]
        assert owner._name == actor_name(index)  # type: ignore[attr-defined]


class Chunks:
    """Like a Serve response generator: an async iterator that can be cancelled."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


class Stream(Method):
    def remote(self, *args: Any) -> Any:
        return self.replies[0]


def test_a_stream_is_passed_on_and_cancelled_when_closed() -> None:
    """Chunks as they come; closing early cancels the request at the decoder."""
    chunks = Chunks(GenerationChunk("a"), GenerationChunk("b"))
    decoder = ServeDecoder(Handle(stream=Stream(chunks)))

    async def work() -> str:
        stream = decoder.stream(GenerationRequest("x"))
        first = await anext(stream)
        await stream.aclose()
        return first.text

    assert asyncio.run(work()) == "a"
    assert chunks.cancelled


def test_a_stream_that_breaks_is_a_lost_call() -> None:
    """The same translation inside a stream."""
    decoder = ServeDecoder(Handle(stream=Stream(Chunks(GenerationChunk("a"), ray_errors.ActorDiedError()))))

    async def work() -> list[str]:
        return [chunk.text async for chunk in decoder.stream(GenerationRequest("x"))]

    with pytest.raises(CallLost):
        asyncio.run(work())


def test_a_full_encoder_is_overloaded() -> None:
    """Backpressure keeps its numbers."""
    encoder = ServeEncoder(Handle(encode_facts=Method(serve_errors.BackPressureError(7, 5))))
    with pytest.raises(Overloaded) as refused:
        asyncio.run(encoder.encode_facts([FactText("a")]))
    assert refused.value.args[1:] == (7, 5)


def test_the_deployment_travels_by_pickle_and_builds_its_application_late() -> None:
    """Serve sends the class to the replica; the application is made there."""
    assert cloudpickle.loads(cloudpickle.dumps(Gateway.func_or_class)).__name__ == "GatewayReplica"
    assert hasattr(GatewayReplica, "__serve_build_asgi_app__")
