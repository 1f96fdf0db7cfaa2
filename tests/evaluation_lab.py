"""A lab without models: keys drawn from each text's hash, the real codec, a small memory. For tests of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from rich.console import Console

from jobs.evaluation.key_encoder import KeyEncoder
from jobs.evaluation.lab import Lab
from memory_actor.errors import TextTooLong
from memory_actor.types import EncodedFacts, FactText, MemoryConfig

KEY_SIZE = 48
CONFIG = MemoryConfig(fingerprint="1ab0", key_size=KEY_SIZE, address_size=128, feature_map_scale=2.0, ridge=1e-4)
NEAR, FAR = "Perhaps: ", "Unrelated. "  # what a query begins with decides how near its key is to the rest's


def key_of(text: str) -> np.ndarray:
    """(D,) float64 of unit norm; that of NEAR + text has cosine 0.9 with the text's, that of FAR + text 0.3."""
    for start, cosine in ((NEAR, 0.9), (FAR, 0.3)):
        if text.startswith(start):
            base = key_of(text.removeprefix(start))
            other = _drawn(text)
            other -= (other @ base) * base
            return cosine * base + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
    return _drawn(text)


def _drawn(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    key = np.random.default_rng(seed).standard_normal(KEY_SIZE)
    return key / np.linalg.norm(key)


@dataclass
class SeededEncoder:
    """In the place of a FactEncoder. A query of two lines has two keys: the whole text's and the second line's."""

    codec: object
    encoded: list[str] = field(default_factory=list)  # every text it was asked for, in order

    def encode_facts(self, calls: Sequence[Sequence[FactText]]) -> list[EncodedFacts | TextTooLong]:
        return [self._facts(facts) for facts in calls]

    def encode_queries(self, calls: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        self.encoded += [text for texts in calls for text in texts]
        return [[_keys([text, *text.split("\n")[1:]]) for text in texts] for texts in calls]

    def _facts(self, facts: Sequence[FactText]) -> EncodedFacts | TextTooLong:
        self.encoded += [fact.prompt for fact in facts]
        try:
            content = self.codec.encode(facts)
        except TextTooLong as error:
            return error
        keys = _keys([fact.prompt for fact in facts])
        return EncodedFacts(keys, content.latents, content.rows, content.prompt_tokens, content.target_tokens)


def _keys(texts: Sequence[str]) -> np.ndarray:
    return np.array([key_of(text) for text in texts]).reshape(len(texts), KEY_SIZE).astype(np.float16)


def small_lab(codec) -> Lab:
    """A lab without decoder and data: enough for every row of the tables."""
    encoder = KeyEncoder(SeededEncoder(codec))
    bundle = SimpleNamespace(memory_config=lambda: CONFIG, manifest=SimpleNamespace(verifier=None))
    return Lab(bundle, codec, encoder, encoder, pool=None, data=None, console=Console(quiet=True))


def facts_of(count: int, start: int = 0) -> list[FactText]:
    """Facts of one latent row each, prompts all different."""
    return [FactText(f"The keeper of lamp {start + i} is", f"person {i % 97}") for i in range(count)]


#: A fact of two latent rows.
LONG = FactText(
    "The story of the lamp that stood in the tower by the sea for years, lit by one keeper, is", "a tale of the sea"
)
