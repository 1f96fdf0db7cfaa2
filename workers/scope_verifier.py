"""Does a query ask for the fact that was found for it? The second half of the gate, after the memory was read.

The first half, a cosine of keys, finds the nearest of any number of facts. The verifier reads one of them beside the
query. It is given the prompt as the memory gave it back, so that it needs no store of texts, and what is forgotten is
forgotten for it too. Why: docs/decisions/0009-scope-verifier.md. Dimension legend: N pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from memory_actor.types import Float32Array
from workers.asked_sentence import key_texts
from workers.bundle import Bundle
from workers.cross_encoder import CrossEncoder, Pair
from workers.runtime import resolve_device, threads_for

_TOKENS_PER_PAIR = 24  # about; only to choose the number of threads


class ScopeVerifier:
    """Pairs of a query and a stored prompt to the probability that the one asks for the other's fact."""

    def __init__(self, network: CrossEncoder) -> None:
        self._network = network.eval()

    @classmethod
    def open(cls, folder: Path, *, device: str = "auto") -> ScopeVerifier:
        """From the weights in `folder`."""
        return cls(CrossEncoder(folder).to(resolve_device(device)))

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "auto") -> ScopeVerifier | None:
        """The bundle's verifier, None if it has none: then the cosine of keys decides alone."""
        return None if bundle.manifest.verifier is None else cls.open(bundle.verifier_folder, device=device)

    def match_queries(self, queries: Sequence[str], prompts: Sequence[str]) -> list[float]:
        """N queries, each beside the prompt that was found for it, to N matches.

        As with keys, of the whole text and the asked sentence the one that fits better counts.
        """
        texts, rows = key_texts(queries)
        pairs = [(texts[row], prompt) for own, prompt in zip(rows, prompts, strict=True) for row in own]
        found = iter(self.match(pairs).tolist())
        return [max(next(found) for _ in own) for own in rows]

    @torch.inference_mode()
    def match(self, pairs: Sequence[Pair]) -> Float32Array:
        """N pairs (query, stored prompt) to (N,) float32 in [0, 1]; 1 for a query that is the prompt itself."""
        found = np.ones(len(pairs), np.float32)
        unlike = [index for index, (query, prompt) in enumerate(pairs) if same_text(query) != same_text(prompt)]
        with threads_for(len(unlike) * _TOKENS_PER_PAIR):
            logits = self._network.logits([pairs[index] for index in unlike])
        found[unlike] = torch.sigmoid(logits).cpu().numpy()
        return found


def same_text(text: str) -> str:
    """A text without case, and without white space and punctuation at its ends: what counts as the same words."""
    return re.sub(r"^\W+|\W+$", "", " ".join(text.split())).casefold()
