"""Random histories of one memory: the same facts in another order, in other batches, forgotten at other times.

Each is played on a real engine with its ledger, and its state hash is compared with that of a memory built anew which
never saw what was forgotten. Equal hashes mean equal sums, to the bit, under the same facts.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs.evaluation.bare_memory import BareMemory, taken
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.types import (
    EncodedFacts,
    FactText,
    Float16Array,
    Idempotency,
    MemoryConfig,
    ReadMode,
    Recall,
    Retention,
)

BATCHES = (1, 3, 17, 64, 256, 1024)  # facts of one write; a history draws one of these
_NO_GATE = -1.0  # a cosine that everything reaches


@dataclass(frozen=True, slots=True)
class Script:
    """One history: facts (positions) to write, or to forget, in turn."""

    steps: tuple[tuple[bool, tuple[int, ...]], ...]  # (is a write, positions)

    @classmethod
    def drawn(cls, count: int, forgotten: Sequence[int], rng: random.Random) -> Script:
        """All `count` facts written in a random order and batch size; each of `forgotten` forgotten some time after."""
        order, doomed = rng.sample(range(count), count), set(forgotten)
        size = rng.choice(BATCHES)
        steps: list[tuple[bool, tuple[int, ...]]] = []
        waiting: list[int] = []
        for start in range(0, count, size):
            written = tuple(order[start : start + size])
            steps.append((True, written))
            waiting += [index for index in written if index in doomed]
            if waiting and rng.random() < 0.5:
                rng.shuffle(waiting)
                cut = rng.randint(1, len(waiting))
                steps.append((False, tuple(waiting[:cut])))
                waiting = waiting[cut:]
        if waiting:
            steps.append((False, tuple(waiting)))
        return cls(tuple(steps))


class Stage:
    """An engine in a temporary folder on which histories are played, one tenant each. Its gate lets everything in."""

    def __init__(self, config: MemoryConfig) -> None:
        self._config = config
        self._scratch = tempfile.TemporaryDirectory(prefix="larimar-eval-")
        open_gate = replace(config, scope_threshold=_NO_GATE)
        self._engine = MemoryEngine.open(0, Path(self._scratch.name), open_gate, EngineSettings(), on_poison=_fail)
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        self._scratch.cleanup()

    @contextmanager
    def played(self, script: Script, facts: Sequence[FactText], encoded: EncodedFacts) -> Iterator[Played]:
        """Play a history on a new tenant, which is deleted afterwards."""
        tenant = f"h{self._calls}"
        self._engine.create_tenant(tenant, Retention.LATENT, self._once()).result()
        ids: dict[int, str] = {}
        for is_write, positions in script.steps:
            if is_write:
                texts = [facts[index] for index in positions]
                reply = self._engine.write(tenant, texts, taken(encoded, positions), self._once()).result()
                ids.update(zip(positions, reply.fact_ids, strict=True))
            else:
                self._engine.forget(tenant, [ids.pop(index) for index in positions], self._once()).result()
        yield Played(self._engine, tenant, self._config, encoded, ids)
        self._engine.delete_tenant(tenant, self._once()).result()

    def _once(self) -> Idempotency:
        self._calls += 1
        return Idempotency(key=f"call-{self._calls}", request_digest=bytes(32), endpoint="eval")


@dataclass(frozen=True, slots=True)
class Played:
    """A memory at the end of its history. `ids` are those of the facts it still holds, by position."""

    engine: MemoryEngine
    tenant: str
    config: MemoryConfig
    encoded: EncodedFacts
    ids: dict[int, str]

    def state_hash(self) -> str | None:
        return self.engine.summary(self.tenant).state_hash

    def never_saw(self, rng: random.Random) -> str:
        """The hash of a memory built anew from the facts that are left, in an order and in batches of its own."""
        left = rng.sample(sorted(self.ids), len(self.ids))
        size = rng.choice(BATCHES)
        memory = BareMemory(self.config)
        for start in range(0, len(left), size):
            part = left[start : start + size]
            memory.write(taken(self.encoded, part), [self.ids[index] for index in part])
        return memory.state_hash()

    def read_softly(self, keys: Float16Array) -> Recall:
        """What the memory holds at phi(query), the paper's read, with no gate before it. keys (P, D)."""
        return self.engine.recall(self.tenant, keys, ReadMode.SOFT, 0)


def _fail(error: BaseException) -> None:
    raise error
