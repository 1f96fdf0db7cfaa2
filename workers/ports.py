"""The three ports of this layer. An implementation is a plain object; the Serve deployments are shells over them.

Dimension legend: N facts or texts, R rows (parts of facts), P parts of one fact, D key size, C latent size, L tokens
per row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_actor.types import FactText, Float32Array, Int8Array, Int32Array


class AnswerMode(StrEnum):
    """`answer`: a question, put through the chat template. `complete`: a cloze prompt, continued as it stands."""

    ANSWER = "answer"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class EncodedContent:
    """Latents of N facts: latents (R, C) int8; rows, prompt_tokens, target_tokens (N,) int32 as in EncodedFacts."""

    latents: Int8Array
    rows: Int32Array
    prompt_tokens: Int32Array
    target_tokens: Int32Array


@dataclass(frozen=True, slots=True)
class Condition:
    """What a codec makes of a readout for the decoder: T token positions as probabilities over few candidates.

    candidates (T, B) int64 token ids, best first; probabilities (T, B) float32, rows sum to 1.
    target_start: the position of the first target token; equals T when the fact has no target.
    readout (P, C) float32: what a codec with slots puts in front of the decoder; None puts the candidates there.
    """

    candidates: NDArray[np.int64]
    probabilities: Float32Array
    target_start: int
    readout: Float32Array | None = None


@dataclass(frozen=True, slots=True)
class SecondStage:
    """The gate behind the cosine, of a bundle with a verifier: from which match on a fact is what was asked for.

    Facts whose words are not kept cannot be verified before they are read: for these `cosine_alone` decides.
    """

    match_min: float
    cosine_alone: float

    def lets_in(self, match: float | None, cosine: float) -> bool:
        """Whether a fact of this match, None if it could not be verified, and this cosine is what was asked for."""
        return cosine >= self.cosine_alone if match is None else match >= self.match_min


@dataclass(frozen=True, slots=True)
class Readback:
    """A query and the fact that was read for it: `readout` (P, C) float32, and how many tokens it holds."""

    query: str
    readout: Float32Array
    prompt_tokens: int
    target_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One decoding job. `readout` (P, C) float32 conditions it; None means the base model alone."""

    prompt: str
    mode: AnswerMode = AnswerMode.ANSWER
    max_tokens: int = 48
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0
    readout: Float32Array | None = None
    prompt_tokens: int = 0  # of the recalled fact
    target_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """A piece of generated text. The last chunk of a generation has `finish_reason` set ("stop" or "length")."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    ms: dict[str, float] = field(default_factory=dict)  # on the last chunk: queue, prefill, decode


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole generation: all its chunks in one."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    ms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, chunks: Iterable[GenerationChunk]) -> Generation:
        """Join the chunks of one generation; the last one has the finish reason and the times."""
        parts = list(chunks)
        last = parts[-1]
        tokens = tuple(token for part in parts for token in part.tokens)
        return cls("".join(part.text for part in parts), tokens, last.finish_reason or "stop", last.ms)


class Encoder(Protocol):
    """Texts to keys."""

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """N texts to (N, D) float32 keys of unit norm. Raises TextTooLong; never cuts silently."""
        ...


class Codec(Protocol):
    """Facts to latents, readouts to what conditions the decoder."""

    def encode(self, facts: Sequence[FactText]) -> EncodedContent:
        """N facts to latents. Raises TextTooLong with both numbers."""
        ...

    def condition(self, readout: Float32Array, prompt_tokens: int, target_tokens: int) -> Condition:
        """Readout (P, C) float32 to token probabilities over the fact's prompt_tokens + target_tokens positions."""
        ...

    def prompt(self, condition: Condition) -> str:
        """The likeliest text of a recalled fact's prompt."""
        ...


class Decoder(Protocol):
    """Prompts, conditioned or not, to text."""

    def generate(self, request: GenerationRequest) -> Iterator[GenerationChunk]:
        """Generate until end of turn or max_tokens; chunks arrive as they are made."""
        ...
