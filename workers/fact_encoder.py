"""Facts to keys and latents, for several callers in one pass: the plain object behind the encoder deployment.

Dimension legend: N facts or texts of one call, P keys of one query (1 or 2), D key size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memory_actor.errors import LarimarError
from memory_actor.types import EncodedFacts, FactText, Float16Array
from workers.asked_sentence import key_texts
from workers.bundle import Bundle
from workers.codecs import open_codec
from workers.ports import Codec, EncodedContent, Readback
from workers.scope_verifier import ScopeVerifier
from workers.sentence_encoder import SentenceEncoder, TokenIds


class FactEncoder:
    """Encoder and codec of one bundle. The key of a fact is the key of its prompt; a sentence is its own prompt.

    A query has the key of its whole text and, if that is several sentences, the key of the one that asks: a sentence
    about something else would draw the key of the whole away from every fact.

    Each call gets its result or its own error; a text that is refused never fails the company it came in.
    """

    def __init__(self, encoder: SentenceEncoder, codec: Codec, verifier: ScopeVerifier | None = None) -> None:
        self._encoder = encoder
        self._codec = codec
        self._verifier = verifier

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "auto", batch_texts_max: int = 64) -> FactEncoder:
        encoder = SentenceEncoder.from_bundle(bundle, device=device, batch_texts_max=batch_texts_max)
        return cls(encoder, open_codec(bundle, device=device), ScopeVerifier.from_bundle(bundle, device=device))

    def encode_facts(self, calls: Sequence[Sequence[FactText]]) -> list[EncodedFacts | LarimarError]:
        """Each call's facts to keys float16 and latents. Errors: TextTooLong with the fact's index in its call."""
        contents: list[EncodedContent | LarimarError] = []
        for facts in calls:
            try:
                contents.append(self._codec.encode(facts))
            except LarimarError as error:
                contents.append(error)
        keys = self._keys([[fact.prompt for fact in facts] for facts in calls], "prompt of fact")
        return [_join(key, content) for key, content in zip(keys, contents, strict=True)]

    def encode_queries(self, calls: Sequence[Sequence[str]]) -> list[list[Float16Array] | LarimarError]:
        """Each call's N texts to the keys of each, (P, D) float16: the whole text's, then the asked sentence's.

        Errors: TextTooLong with the text's index in its call.
        """
        prepared = [key_texts(texts) for texts in calls]
        keys = self._keys([texts for texts, _ in prepared], "query")
        return [
            found if isinstance(found, LarimarError) else [found[of] for of in rows]
            for found, (_, rows) in zip(keys, prepared, strict=True)
        ]

    def match(self, calls: Sequence[Readback]) -> list[float]:
        """For each call in [0, 1], whether its query asks for the fact that was read; 1 without a verifier."""
        if self._verifier is None:
            return [1.0] * len(calls)
        prompts = [
            self._codec.prompt(self._codec.condition(call.readout, call.prompt_tokens, call.target_tokens))
            for call in calls
        ]
        return self._verifier.match_queries([call.query for call in calls], prompts)

    def match_prompts(self, query: str, prompts: Sequence[str]) -> list[float]:
        """The same for one query and stored prompts whose text is known."""
        if self._verifier is None:
            return [1.0] * len(prompts)
        return self._verifier.match_queries([query] * len(prompts), prompts)

    def _keys(self, calls: Sequence[Sequence[str]], what: str) -> list[Float16Array | LarimarError]:
        tokens: list[list[TokenIds] | LarimarError] = []
        for texts in calls:
            try:
                tokens.append(self._encoder.tokenize(texts, what))
            except LarimarError as error:
                tokens.append(error)
        flat = [ids for call in tokens if not isinstance(call, LarimarError) for ids in call]
        keys = self._encoder.embed(flat).astype(np.float16)
        results: list[Float16Array | LarimarError] = []
        start = 0
        for call in tokens:
            if isinstance(call, LarimarError):
                results.append(call)
            else:
                results.append(keys[start : start + len(call)])
                start += len(call)
        return results


def _join(key: Float16Array | LarimarError, content: EncodedContent | LarimarError) -> EncodedFacts | LarimarError:
    if isinstance(content, LarimarError):
        return content
    if isinstance(key, LarimarError):
        return key
    return EncodedFacts(
        keys=key,
        latents=content.latents,
        rows=content.rows,
        prompt_tokens=content.prompt_tokens,
        target_tokens=content.target_tokens,
    )
