"""Texts to keys and latents by the product's own path, each text once however many memories ask for it.

Dimension legend: N facts, P keys of one query (1 or 2), D key size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from memory_actor.errors import LarimarError
from memory_actor.types import EncodedFacts, FactText, Float16Array
from workers.fact_encoder import FactEncoder

_CALL_TEXTS = 512

T = TypeVar("T")


class KeyEncoder:
    """A `FactEncoder` with a cache. Raises: TextTooLong as it does."""

    def __init__(self, encoder: FactEncoder) -> None:
        self._encoder = encoder
        self._facts: dict[tuple[str, str | None], EncodedFacts] = {}
        self._queries: dict[str, Float16Array] = {}

    def facts(self, facts: Sequence[FactText]) -> EncodedFacts:
        """N facts to keys and latents; see `EncodedFacts`."""
        missing = {(fact.prompt, fact.target): fact for fact in facts if (fact.prompt, fact.target) not in self._facts}
        texts = list(missing.values())
        for start in range(0, len(texts), _CALL_TEXTS):
            part = texts[start : start + _CALL_TEXTS]
            (encoded,) = self._encoder.encode_facts([part])
            for fact, one in zip(part, _apart(_sound(encoded)), strict=True):
                self._facts[fact.prompt, fact.target] = one
        if not facts:
            return _sound(self._encoder.encode_facts([[]])[0])
        return _together([self._facts[fact.prompt, fact.target] for fact in facts])

    def queries(self, texts: Sequence[str]) -> list[Float16Array]:
        """The keys (P, D) of each query: the whole text's, and the asked sentence's where there are several."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._queries))
        for start in range(0, len(missing), _CALL_TEXTS):
            part = missing[start : start + _CALL_TEXTS]
            (keys,) = self._encoder.encode_queries([part])
            self._queries.update(zip(part, _sound(keys), strict=True))
        return [self._queries[text] for text in texts]


def _sound(result: T | LarimarError) -> T:
    if isinstance(result, LarimarError):
        raise result
    return result


def _apart(encoded: EncodedFacts) -> list[EncodedFacts]:
    """N facts as N times one."""
    ends = encoded.rows.cumsum()
    return [
        EncodedFacts(
            keys=encoded.keys[i : i + 1],
            latents=encoded.latents[end - rows : end],
            rows=encoded.rows[i : i + 1],
            prompt_tokens=encoded.prompt_tokens[i : i + 1],
            target_tokens=encoded.target_tokens[i : i + 1],
        )
        for i, (end, rows) in enumerate(zip(ends, encoded.rows, strict=True))
    ]


def _together(parts: Sequence[EncodedFacts]) -> EncodedFacts:
    """The facts of all parts, at least one, in order."""
    return EncodedFacts(
        keys=np.concatenate([part.keys for part in parts]),
        latents=np.concatenate([part.latents for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        target_tokens=np.concatenate([part.target_tokens for part in parts]),
    )
