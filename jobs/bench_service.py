"""Benchmarks of the running service over HTTP, beside the bare encoder and the bare decoder in the same run.

Overheads are differences: what a caller waits for, less what the models alone take on the same texts on this machine
in the same minute, service and bare model taken in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from cluster.client import Client
from memory_actor.types import FactText
from workers.bundle import Bundle
from workers.decoder import CausalDecoder
from workers.fact_encoder import FactEncoder
from workers.ports import AnswerMode, GenerationRequest

Advance = Callable[[int], None]

TENANT = "bench"
_TURN = 20
_PLACES = ("kitchen", "garage", "attic", "cellar", "garden shed", "boiler room", "reception", "server room")
_THINGS = ("spare key", "fuse box", "ladder", "first aid kit", "projector", "label printer", "guest badge", "tool box")


def fact(number: int) -> FactText:
    """The number-th synthetic fact; texts repeat only after tens of thousands."""
    thing, place = _THINGS[number % 8], _PLACES[(number // 8) % 8]
    return FactText(f"Where does team {number} keep the {thing} of building {number // 64}?", f"in the {place}")


@dataclass(frozen=True, slots=True)
class WriteTimes:
    """Single writes at concurrency 1, milliseconds."""

    p50_ms: float
    p99_ms: float
    overhead_p50_ms: float  # p50 over HTTP less p50 of the bare encoder


def single_writes(client: Client, encoder: FactEncoder, count: int, advance: Advance) -> WriteTimes:
    """`count` writes of one fact each, in turns of 20 with the bare encoder on facts like them.

    Turns rather than pairs: each side runs in the state that a steady caller finds it in.
    """
    over_http, bare = [], []
    for start in range(0, count + _TURN, _TURN):
        served = [_write_ms(client, fact(start + i)) for i in range(_TURN)]
        alone = [_encode_ms(encoder, fact(1_000_000 + start + i)) for i in range(_TURN)]
        if start:  # the first turn warms both up
            over_http += served
            bare += alone
        advance(_TURN)
    p50 = statistics.median(over_http)
    p99 = statistics.quantiles(over_http, n=100)[98]
    return WriteTimes(p50, p99, p50 - statistics.median(bare))


def batch_write_ratio(client: Client, encoder: FactEncoder, rounds: int, advance: Advance) -> float:
    """Facts per second written over HTTP in batches of 100, over those the bare encoder encodes in such batches."""
    over_http, bare = [], []
    for turn in range(rounds + 1):
        served = [fact(2_000_000 + turn * 100 + i) for i in range(100)]
        alone = [fact(3_000_000 + turn * 100 + i) for i in range(100)]
        body = [{"prompt": item.prompt, "target": item.target} for item in served]
        http_ms = _ms(lambda: client.write(TENANT, body))  # noqa: B023 - run now
        bare_ms = _ms(lambda: encoder.encode_facts([alone]))  # noqa: B023 - run now
        if turn:
            over_http.append(http_ms)
            bare.append(bare_ms)
        advance(1)
    return statistics.median(bare) / statistics.median(over_http)


def query_overhead_ms(client: Client, bundle: Bundle, rounds: int, advance: Advance) -> float:
    """Milliseconds to the first token of an in-scope query over HTTP, less the bare decoder's on the same text."""
    decoder = CausalDecoder.from_bundle(bundle)
    template = bundle.manifest.prompt.answer_template
    over_http, bare = [], []
    for turn in range(rounds + 3):
        known = fact(10 + turn)
        text = template.format(fact=f"{known.prompt} {known.target}", prompt=known.prompt)
        http_ms = _first_token_over_http(client, known.prompt)
        bare_ms = _first_token_alone(decoder, text)
        if turn >= 3:
            over_http.append(http_ms)
            bare.append(bare_ms)
        advance(1)
    decoder.close()
    return statistics.median(over_http) - statistics.median(bare)


def resident_gb(pid: int) -> float:
    """Resident memory of a process and everything it started, in GB. Shared pages count once per process."""
    supervisor = psutil.Process(pid)
    total = 0
    for process in (supervisor, *supervisor.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e9


def _first_token_over_http(client: Client, prompt: str) -> float:
    started = time.perf_counter()
    elapsed = 0.0
    for event in client.query_stream(TENANT, prompt, max_tokens=4):
        if event.kind == "recall" and not event.fields["in_scope"]:
            raise RuntimeError(f"the benchmark's own fact is out of scope: {prompt!r}")
        if event.kind == "token" and not elapsed:
            elapsed = (time.perf_counter() - started) * 1e3
    return elapsed


def _first_token_alone(decoder: CausalDecoder, text: str) -> float:
    started = time.perf_counter()
    elapsed = 0.0
    for chunk in decoder.generate(GenerationRequest(text, AnswerMode.ANSWER, max_tokens=4)):
        if not elapsed and (chunk.text or chunk.tokens):
            elapsed = (time.perf_counter() - started) * 1e3
    return elapsed


def _write_ms(client: Client, written: FactText) -> float:
    return _ms(lambda: client.write(TENANT, {"prompt": written.prompt, "target": written.target}))


def _encode_ms(encoder: FactEncoder, encoded: FactText) -> float:
    return _ms(lambda: encoder.encode_facts([[encoded]]))


def _ms(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3
