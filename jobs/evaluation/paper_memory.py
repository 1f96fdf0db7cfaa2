"""The paper's own memory: one matrix, fixed reference keys, the recursion, plain MiniLM as the scope detector.

Das et al. 2024 (arXiv:2403.11901), secs. 3, 4 and app. E; the algebra is `memory_actor/paper.py`. What the paper does
with its trained encoder and decoder is done here with plain MiniLM's keys (D = 384) and the codec's latents, so this
row shows its addressing, its recursion and its gate, not its models. Where the paper leaves a choice the kinder one is
taken, and said.

Dimension legend: N facts, K rows of the memory, D key size, C latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.gate_scores import nearest, unit
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import NEAREST_THRESHOLD, Recollection, StoredFacts
from memory_actor.paper import RecursiveMemory, rescale_readout, sequential_update
from memory_actor.types import EncodedFacts, FactText, Float16Array

RIDGE = 1e-4  # of addresses of length one; the paper has none, and its Cov is singular below K facts
ALPHA = 1e-3  # of eq. (7), as in the paper's fig. 2b
_UPDATE_FACTS = 256  # of one update: the recursion gives the same memory for any split
_ZERO = 1e-12


class PaperMemory:
    """Keys are prompts, values whole facts (the paper's batch, sequential and forgetting experiments).

    `pinv`: w = z M_ref^+ with M_ref (K, D) drawn once from N(0, 1), as in the paper's Table 4; scaled to length one,
    which changes no exact solution and gives the ridge a unit. `gaussian`: eqs. (7)-(8) over rows that are the keys of
    the first K facts. Gate: cosine of plain MiniLM >= 0.70, on the query alone. The detector's nearest fact also says
    how many tokens the readout holds, which the paper's decoder had to find out itself.
    A fact of several latent rows is not stored (`skipped`): the paper's memory has one latent per fact.
    """

    def __init__(
        self,
        lab: Lab,
        addressing: Literal["pinv", "gaussian"] = "pinv",
        address_size: int = 512,
        *,
        rescale: bool = False,
    ) -> None:
        self.name = "paper" if addressing == "pinv" else "paper_gaussian"
        self._encoder, self._codec = lab.plain, lab.codec
        self._addressing, self._rescale = addressing, rescale
        none = self._encoder.facts([])
        self._latent_size = none.latents.shape[1]
        generator = torch.Generator().manual_seed(lab.seed)
        reference = torch.randn(address_size, none.keys.shape[1], generator=generator, dtype=torch.float64)
        self._inverse = torch.linalg.pinv(reference)  # (D, K)
        self._address_size = address_size
        self.clear()

    def clear(self) -> None:
        self._state = RecursiveMemory.empty(self._address_size, self._latent_size, RIDGE)
        self._facts = StoredFacts()
        #: Of each fact what the memory holds: prompt and target tokens, weights (K,) and value (C,).
        self._tokens: list[tuple[int, int]] = []
        self._weights: list[Tensor] = []
        self._values: list[Tensor] = []
        self._reference = torch.zeros(0, self._inverse.shape[0], dtype=torch.float64)  # rows of the Gaussian filter
        #: Facts that one latent cannot hold.
        self.skipped = 0

    def write(self, facts: Sequence[FactText]) -> None:
        """Eqs. (3)-(4) with alpha = +1."""
        for start in range(0, len(facts), _UPDATE_FACTS):
            part = facts[start : start + _UPDATE_FACTS]
            encoded = self._encoder.facts(part)
            self._facts.add(part, encoded.keys)
            self._grow_reference(encoded.keys)
            self._weights += self.addresses(encoded.keys).unbind()
            self._tokens += [(0, 0)] * len(part)
            self._values += torch.zeros(len(part), self._latent_size, dtype=torch.float64).unbind()
            first = len(self._weights) - len(part)
            self._hold(range(first, first + len(part)), encoded)

    def forget(self, positions: Sequence[int]) -> None:
        """Per fact alpha = -1, then alpha = +1 with "unknown" as its target (the paper's forgetting, Table 4).

        The detector keeps the prompt, or nothing would answer "unknown".
        """
        if not positions:
            return
        self._state = sequential_update(self._state, *self._held(positions), alpha=-1)
        unknown = [FactText(self._facts.texts[position].prompt, "unknown") for position in positions]
        self._hold(positions, self._encoder.facts(unknown))

    def _hold(self, positions: Sequence[int], encoded: EncodedFacts) -> None:
        """Write N values under the weights of the facts at these positions, each of which holds nothing yet."""
        values = _first_rows(encoded)
        counts = zip(encoded.prompt_tokens.tolist(), encoded.target_tokens.tolist(), strict=True)
        for turn, (position, tokens) in enumerate(zip(positions, counts, strict=True)):
            self._tokens[position], self._values[position] = tokens, values[turn]
            if encoded.rows[turn] > 1:
                self.skipped += 1
                self._weights[position] = torch.zeros_like(self._weights[position])  # adds nothing to the sums
        self._state = sequential_update(self._state, *self._held(positions), alpha=+1)

    def _held(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weights (N, K) and values (N, C) of the facts at these positions."""
        weights = torch.stack([self._weights[position] for position in positions])
        return weights, torch.stack([self._values[position] for position in positions])

    def recall(self, queries: Sequence[str]) -> list[Recollection]:
        if not self._facts.texts:
            return [Recollection(None, 0.0, None) for _ in queries]
        keys = self._encoder.queries(queries)
        stored = self._facts.keys()
        found = nearest(keys, stored)
        # Of a query's keys, the one that came nearest addresses the memory.
        chosen = np.stack(
            [
                own[int((unit(own) @ unit(stored[index : index + 1])[0]).argmax())]
                for own, index in zip(keys, found.positions.tolist(), strict=True)
            ]
        )
        readouts = self.read(chosen)
        return [
            self._recollection(position, score, readout)
            for position, score, readout in zip(
                found.positions.tolist(), found.scores.tolist(), readouts.float(), strict=True
            )
        ]

    def read(self, keys: Float16Array) -> Tensor:
        """Readouts (N, C) float64 = W M at the addresses of N keys (N, D), whatever the gate says."""
        readouts = self.addresses(keys) @ self._state.memory
        if not self._rescale:
            return readouts
        return rescale_readout(readouts, float(torch.stack(self._values).norm(dim=1).mean()))

    def addresses(self, keys: Float16Array) -> Tensor:
        """Keys (N, D) to addressing weights (N, K) float64."""
        z = torch.from_numpy(unit(keys).astype(np.float64))
        if self._addressing == "gaussian":
            return self._filter(z)
        weights = z @ self._inverse
        scaled: Tensor = weights / weights.norm(dim=1, keepdim=True).clamp_min(_ZERO)
        return scaled

    def close(self) -> None: ...

    def _recollection(self, position: int, score: float, readout: Tensor) -> Recollection:
        if score < NEAREST_THRESHOLD:
            return Recollection(None, score, None)
        prompt_tokens, target_tokens = self._tokens[position]
        if not self._weights[position].any():
            return Recollection(position, score, None)  # it was never stored
        condition = self._codec.condition(readout.unsqueeze(0).numpy(), prompt_tokens, target_tokens)
        return Recollection(position, score, condition)

    def _filter(self, z: Tensor) -> Tensor:
        """Eqs. (7)-(8): w_k ~ exp(-|z - m_k|^2 / (2 alpha sigma^2)), sigma the distance to the nearest row.

        A key that equals a row has sigma 0, where the equation is 0/0: its limit, one-hot, is used.
        """
        squared = torch.cdist(z, self._reference, compute_mode="donot_use_mm_for_euclid_dist").square()
        least = squared.min(dim=1, keepdim=True).values
        weights = torch.zeros(len(z), self._address_size, dtype=torch.float64)
        weights[:, : squared.shape[1]] = torch.softmax((least - squared) / (2 * ALPHA * least.clamp_min(_ZERO)), dim=1)
        return weights

    def _grow_reference(self, keys: Float16Array) -> None:
        """The rows of the Gaussian filter are the first K different keys; a row in use never changes.

        So a fact whose key is a row is addressed one-hot, now and later, and any other finds all K rows there.
        """
        if self._addressing == "gaussian" and len(self._reference) < self._address_size:
            rows = dict.fromkeys(tuple(row) for row in self._reference.tolist() + unit(keys).tolist())
            self._reference = torch.tensor(list(rows)[: self._address_size], dtype=torch.float64)


def _first_rows(encoded: EncodedFacts) -> Tensor:
    """The first latent row of each fact, (N, C) float64."""
    starts = encoded.rows.cumsum() - encoded.rows
    return torch.from_numpy(encoded.latents[starts].astype(np.float64))
