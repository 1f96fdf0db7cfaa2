"""Training of the scope verifier: a cross-encoder, taught to refuse what the scope encoder would let in.

It starts from the scope encoder's own layers. Every batch is drawn as the scope encoder's are; of the pairs in it the
ones are taken that the scope encoder finds nearest, since only such pairs are ever put before the verifier.
Dimension legend: N statements of a batch, Q pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from jobs.scope_pairs import Mix, PairSource
from jobs.scope_statements import relations_between
from jobs.timed_training import TimedTrainer, precision
from memory_actor.types import Float32Array
from workers.cross_encoder import CrossEncoder, Pair
from workers.sentence_encoder import SentenceEncoder

_TOKENS_MAX = 512
_NEAREST = (3.0, 2.0, 1.0)  # chances of the nearest, second and third wrong prompt to be the hard pair


@dataclass(frozen=True, slots=True)
class VerifierPlan:
    """Everything that decides the result, beside the data and the scope encoder."""

    seed: int = 0
    steps: int = 1000
    minutes: float = 28.0  # of two cores: training ends after twice as much CPU time
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    warmup_steps: int = 40
    right_weight: float = 1.5  # of a right pair in the loss: there are two wrong ones for each
    same_share: float = 0.05  # of right pairs: the query is the prompt
    bfloat16: bool = True
    mix: Mix = field(default_factory=lambda: Mix(world_blocks=3, domain_blocks=4, common_blocks=1, strangers=3))


class VerifierTrainer(TimedTrainer):
    """One cross-encoder in training: all of its transformer layers, segment embeddings and head."""

    def __init__(self, encoder_folder: Path, source: PairSource, plan: VerifierPlan) -> None:
        """`encoder_folder` holds the scope encoder that finds what is verified; training starts from its layers."""
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.source = source
        self._finder = SentenceEncoder(encoder_folder, tokens_max=_TOKENS_MAX, device="cpu")
        self.network = CrossEncoder(encoder_folder).eval()  # no dropout: batches are made of fresh texts
        layers = {
            name: parameter
            for name, parameter in self.network.model.named_parameters()
            if name.startswith("encoder.layer.") or name == "embeddings.token_type_embeddings.weight"
        }
        head = {f"head.{name}": parameter for name, parameter in self.network.head.named_parameters()}
        self.network.requires_grad_(False)
        for parameter in (*layers.values(), *head.values()):
            parameter.requires_grad_(True)
        self._layers = layers
        super().__init__(plan, {plan.learning_rate: layers, plan.head_learning_rate: head})

    def find(self, texts: Sequence[str]) -> Float32Array:
        """Keys (N, D) of the scope encoder, in training precision."""
        with torch.inference_mode(), precision(self.plan.bfloat16):
            return self._finder.encode(texts)

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors of the layers by name, in half precision: what is stored."""
        return {name: parameter.detach().half().contiguous() for name, parameter in self._layers.items()}

    def head(self) -> dict[str, Tensor]:
        """The head's tensors by name, in half precision."""
        return {name: tensor.half().contiguous() for name, tensor in self.network.head.state_dict().items()}

    def finish(self) -> None:
        """Round to what is stored: what is measured from here on is shipped."""
        with torch.no_grad():
            for parameter in self._parameters.values():
                parameter.copy_(parameter.half().float())

    def _loss(self, rng: random.Random) -> Tensor:
        pairs, right = draw_pairs(self.source, rng, self.plan, self.find)
        with precision(self.plan.bfloat16):
            logits = self.network.logits(pairs)
        wanted = torch.tensor(right, dtype=torch.float32)
        weights = torch.where(wanted > 0, self.plan.right_weight, 1.0)
        return binary_cross_entropy_with_logits(logits, wanted, weights)


def draw_pairs(
    source: PairSource, rng: random.Random, plan: VerifierPlan, find: Callable[[Sequence[str]], Float32Array]
) -> tuple[list[Pair], list[bool]]:
    """Q pairs (asked, stored), and which of them are right.

    Each asked text stands beside its own stored one; beside one of the three nearest others that surely mean something
    else, anywhere in the batch; and beside one of those about the same subject. Strangers only have wrong pairs.
    """
    statements = source.batch(rng, plan.mix)
    _, differ = relations_between(statements, source.wordings)
    blocks = len(statements) - plan.mix.strangers  # in blocks, stored and asked texts take turns; strangers come last
    stored, asked = range(0, blocks, 2), [*range(1, blocks, 2), *range(blocks, len(statements))]
    keys = find([statement.text for statement in statements])
    near = keys @ keys.T  # (N, N)
    pairs: list[Pair] = []
    right: list[bool] = []
    for query in asked:
        text = statements[query].text
        if query < blocks:
            own = statements[query - 1].text
            pairs.append((own if rng.random() < plan.same_share else text, own))
            right.append(True)
        others = [other for other in stored if differ[query, other]]
        if not others:
            continue
        nearest = sorted(others, key=lambda other: -near[query, other])[: len(_NEAREST)]
        chosen = {rng.choices(nearest, _NEAREST[: len(nearest)])[0]}
        companions = [other for other in others if statements[other].subject == statements[query].subject]
        chosen.add(rng.choice(companions or nearest))
        pairs += [(text, statements[other].text) for other in sorted(chosen)]
        right += [False] * len(chosen)
    return pairs, right
