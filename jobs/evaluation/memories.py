"""Memories of edits: the product's own, and what it has to be compared with on the same decoder.

Each is written facts and says for a query which fact it recalls and what the decoder gets to see of it. The gate, where
there is one, decides once per query and from the query alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jobs.evaluation.asks import Ask
from jobs.evaluation.gate_scores import nearest
from jobs.evaluation.key_encoder import KeyEncoder
from jobs.evaluation.lab import Lab
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.types import FactText, Float16Array, Idempotency, ReadMode, Retention, Verification
from workers.ports import Condition
from workers.row_codec import RowCodec

NEAREST_THRESHOLD = 0.70  # the paper's detector: plain MiniLM, cosine distance 0.3
PROMPT_TOKENS_MAX = 1536  # of facts in the prompt; the default decoder's context is 2,048

_REQUEST_FACTS_MAX = 256


@dataclass(frozen=True, slots=True)
class Recollection:
    """What a memory recalls for one query.

    index: the matched fact's position in writing order; None where no fact is named. score: its cosine. The decoder
    gets `condition` (a readout through the codec) or `facts` (plain text), or neither: then it answers alone.
    """

    index: int | None
    score: float
    condition: Condition | None
    facts: tuple[str, ...] = ()


class EditedMemory(Protocol):
    """One row of the tables."""

    name: str

    def clear(self) -> None:
        """Forget everything: the next fact written has position 0."""
        ...

    def write(self, facts: Sequence[FactText]) -> None: ...

    def recall(self, queries: Sequence[str]) -> list[Recollection]: ...

    def close(self) -> None: ...


class LarimarMemory:
    """The product: a memory engine with ledger and vault on disk, snap reads, its own scope gate, both halves of it."""

    name = "larimar"

    def __init__(self, lab: Lab) -> None:
        self._encoder, self._codec, self._matches = lab.encoder, lab.codec, lab.matches
        self._match_threshold = lab.match_threshold if lab.matches else 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="larimar-eval-", ignore_cleanup_errors=True)
        place = Path(self._folder.name)
        self._engine = MemoryEngine.open(0, place, lab.bundle.memory_config(), EngineSettings(), on_poison=_fail)
        self._requests = count()
        self._tenant = ""
        self._begin()

    def clear(self) -> None:
        if self.fact_ids:
            self._engine.delete_tenant(self._tenant, self._once()).result()
            self._begin()

    def write(self, facts: Sequence[FactText]) -> None:
        """Durable and visible on return. A fact with the prompt of an earlier one supersedes it."""
        for start in range(0, len(facts), _REQUEST_FACTS_MAX):
            part = list(facts[start : start + _REQUEST_FACTS_MAX])
            reply = self._engine.write(self._tenant, part, self._encoder.facts(part), self._once()).result()
            self._positions |= {one: len(self.fact_ids) + i for i, one in enumerate(reply.fact_ids)}
            self.fact_ids += reply.fact_ids

    def forget(self, positions: Sequence[int]) -> None:
        """Forget the facts at these positions; those of the others stay what they are."""
        fact_ids = [self.fact_ids[position] for position in positions]
        for start in range(0, len(fact_ids), _REQUEST_FACTS_MAX):
            part = fact_ids[start : start + _REQUEST_FACTS_MAX]
            self._engine.forget(self._tenant, part, self._once()).result()

    def recall(self, queries: Sequence[str]) -> list[Recollection]:
        """Read with each query's keys; a verifier, where the bundle has one, decides on what was read."""
        found = [self.recall_key(keys) for keys in self._encoder.queries(queries)]
        if self._matches is None:
            return found
        read = [index for index, one in enumerate(found) if one.condition is not None]
        prompts = [self._codec.prompt(one.condition) for one in found if one.condition is not None]
        matches = self._matches([queries[index] for index in read], prompts)
        for index, match in zip(read, matches, strict=True):
            if match < self._match_threshold:
                found[index] = Recollection(None, found[index].score, None)
        return found

    def recall_key(self, keys: Float16Array, mode: ReadMode = ReadMode.SNAP) -> Recollection:
        """What the memory gives for one query's keys (P, D) float16, not verified."""
        found = self._engine.recall(self._tenant, keys, mode, 0)
        if not found.in_scope or found.readout is None or found.fact_id is None:
            return Recollection(None, found.score, None)
        condition = self._codec.condition(found.readout, found.prompt_tokens, found.target_tokens)
        return Recollection(self._positions[found.fact_id], found.score, condition)

    def state_hash(self) -> str:
        """See `memory_actor/state_hash.py`."""
        return self._engine.summary(self._tenant).state_hash or ""

    def verify(self) -> Verification:
        """The memory against one rebuilt from the ledger's surviving facts alone."""
        return self._engine.verify(self._tenant)

    def close(self) -> None:
        self._engine.close()
        self._folder.cleanup()

    def _begin(self) -> None:
        self._tenant = f"t{next(self._requests)}"
        self._engine.create_tenant(self._tenant, Retention.LATENT, self._once()).result()
        #: Ids of all facts ever written, in writing order; forgotten ones keep their place.
        self.fact_ids: list[str] = []
        self._positions: dict[str, int] = {}

    def _once(self) -> Idempotency:
        return Idempotency(key=str(next(self._requests)), request_digest=bytes(32), endpoint="eval")


class Unedited:
    """No memory: the decoder alone."""

    name = "unedited"

    def __init__(self, lab: Lab) -> None:
        del lab  # every row is made from it

    def clear(self) -> None: ...

    def write(self, facts: Sequence[FactText]) -> None: ...

    def recall(self, queries: Sequence[str]) -> list[Recollection]:
        return [Recollection(None, 0.0, None) for _ in queries]

    def close(self) -> None: ...


class NearestFact:
    """The honest control: plain MiniLM finds the nearest fact, whose text is put before the decoder. No codec, no bias.

    Its queries get the same keys as ours (whole text and asked sentence).
    """

    name = "nearest"

    def __init__(self, lab: Lab, encoder: KeyEncoder | None = None, threshold: float = NEAREST_THRESHOLD) -> None:
        self._encoder, self._threshold = encoder or lab.plain, threshold
        self._facts = StoredFacts()

    def clear(self) -> None:
        self._facts = StoredFacts()

    def write(self, facts: Sequence[FactText]) -> None:
        self._facts.add(facts, self._encoder.facts(facts).keys)

    def recall(self, queries: Sequence[str]) -> list[Recollection]:
        if not self._facts.texts:
            return [Recollection(None, 0.0, None) for _ in queries]
        found = nearest(self._encoder.queries(queries), self._facts.keys())
        return [
            Recollection(index, score, None, (text_of(self._facts.texts[index]),))
            if score >= self._threshold
            else Recollection(None, score, None)
            for index, score in zip(found.positions.tolist(), found.scores.tolist(), strict=True)
        ]

    def close(self) -> None: ...


class AllFacts:
    """All facts in the prompt, the newest that fit into a budget of tokens. Every query sees them: there is no gate."""

    name = "all_facts"

    def __init__(self, lab: Lab, tokens_max: int = PROMPT_TOKENS_MAX) -> None:
        self._codec, self._tokens_max = lab.codec, tokens_max
        self._facts: list[FactText] = []

    def clear(self) -> None:
        self._facts = []

    def write(self, facts: Sequence[FactText]) -> None:
        self._facts += facts

    def recall(self, queries: Sequence[str]) -> list[Recollection]:
        chosen: list[str] = []
        left = self._tokens_max
        for fact in reversed(self._facts):
            left -= sum(map(len, self._codec.tokens(fact))) + 2  # the template ends each with a full stop and a line
            if left < 0:
                break
            chosen.insert(0, text_of(fact))
        return [Recollection(None, 1.0, None, tuple(chosen)) for _ in queries]

    def close(self) -> None: ...


class StoredFacts:
    """Facts with their keys (N, D), appended in blocks. A superseded fact's key is zero: no query finds it."""

    def __init__(self) -> None:
        self.texts: list[FactText] = []
        self._blocks: list[Float16Array] = []
        self._newest: dict[str, int] = {}
        self._superseded: list[int] = []
        self._keys: Float16Array | None = None

    def add(self, facts: Sequence[FactText], keys: Float16Array) -> None:
        """Append N facts with keys (N, D)."""
        for fact in facts:
            earlier = self._newest.get(fact.prompt)
            if earlier is not None:
                self._superseded.append(earlier)
            self._newest[fact.prompt] = len(self.texts)
            self.texts.append(fact)
        self._blocks.append(keys)
        self._keys = None

    def keys(self) -> Float16Array:
        if self._keys is None:
            self._keys = np.concatenate(self._blocks)
            self._keys[self._superseded] = 0
        return self._keys


def whole(recollection: Recollection, fact: FactText, codec: RowCodec) -> bool:
    """Whether every token of the fact's prompt and target came back."""
    if recollection.condition is None:
        return False
    prompt, target = codec.tokens(fact)
    best: list[int] = recollection.condition.candidates[:, 0].tolist()
    return best == prompt + target


def as_ask(recollection: Recollection, query: str, **fields: Any) -> Ask:
    """The query to the decoder, with what was recalled for it; `fields` are those of `Ask`."""
    return Ask(query, condition=recollection.condition, facts=recollection.facts, **fields)


def text_of(fact: FactText) -> str:
    """The fact as a sentence without its full stop."""
    return fact.prompt if fact.target is None else f"{fact.prompt} {fact.target}"


def _fail(error: BaseException) -> None:
    raise error
