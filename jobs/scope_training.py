"""Training of the scope encoder: MiniLM's layers, taught to place a fact's rephrasings within one cosine threshold and
everything else beyond it.

Dimension legend: N texts of a batch, T tokens of the longest of a pass, D key size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from jobs.scope_pairs import Mix, PairSource
from jobs.scope_statements import relations_between
from jobs.timed_training import TimedTrainer, precision
from memory_actor.types import Float32Array

_PASS_TEXTS = 32  # half as many padded tokens as 64; the products are large enough
LAYERS = {"head": 0, "top": 3, "all": 6}  # whole layers trained; `head` is the last output projection and its norm


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything that decides the result, beside the data."""

    seed: int = 0
    layers: str = "all"
    steps: int = 1200
    minutes: float = 30.0  # of two cores: training ends after twice as much CPU time
    learning_rate: float = 2e-4
    warmup_steps: int = 30
    temperature: float = 0.05
    boundary: float = 0.5  # cosine that positives are pushed above and negatives below
    boundary_weight: float = 1.0
    plain_share: float = 0.2  # of the final weights: what stays plain MiniLM keeps what it knew, see docs/lab_notes.md
    bfloat16: bool = True
    mix: Mix = field(default_factory=Mix)


def scope_loss(keys: Tensor, agree: Tensor, differ: Tensor, plan: TrainingPlan) -> Tensor:
    """Two losses of unit keys (N, D), with the masks (N, N) of `relations_between`.

    Contrast: each text against each of its positives among all its negatives (InfoNCE with several positives).
    Boundary: every pair on its side of one cosine, the same for all texts (the pairwise sigmoid loss of SigLIP), which
    is what one threshold needs. Both are means over texts.
    """
    scores = keys @ keys.T
    scaled = scores / plan.temperature
    against = scaled.masked_fill(~differ, -torch.inf).logsumexp(1, keepdim=True)  # (N, 1)
    contrast = torch.nn.functional.softplus(against - scaled)[agree].mean()
    distance = (scores - plan.boundary) / plan.temperature
    inside = torch.nn.functional.softplus(-distance)[agree].sum()
    outside = torch.nn.functional.softplus(distance)[differ].sum()
    boundary = (inside + outside) / agree.any(1).sum()
    return contrast + plan.boundary_weight * boundary


class ScopeTrainer(TimedTrainer):
    """One encoder in training."""

    def __init__(self, encoder_folder: Path, source: PairSource, plan: TrainingPlan) -> None:
        from transformers import AutoModel  # noqa: PLC0415 - slow import

        torch.manual_seed(plan.seed)
        self.plan = plan
        self.source = source
        self._tokenizer = Tokenizer.from_file(str(encoder_folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = AutoModel.from_pretrained(encoder_folder, dtype=torch.float32, attn_implementation="sdpa")
        model.pooler = None
        self.model = model.eval()  # no dropout: batches are made of fresh texts, and the threshold wants exact scores
        self._trained = trained_parameters(model, plan.layers)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        self._plain = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        super().__init__(plan, {plan.learning_rate: self._trained})

    def _loss(self, rng: random.Random) -> Tensor:
        statements = self.source.batch(rng, self.plan.mix)
        agree, differ = relations_between(statements, self.source.wordings)
        with precision(self.plan.bfloat16):
            keys = self._keys([statement.text for statement in statements])
        return scope_loss(keys, torch.from_numpy(agree), torch.from_numpy(differ), self.plan)

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """Unit keys (N, D) in float32, as the served encoder gives them."""
        with torch.inference_mode():
            return self._keys(texts).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, in half precision: what is stored."""
        return {name: parameter.detach().half().contiguous() for name, parameter in self._trained.items()}

    def finish(self) -> None:
        """Blend in the plain weights and round to what `tensors` stores: what is measured from here on is shipped."""
        share = self.plan.plain_share
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_((share * self._plain[name] + (1 - share) * parameter).half().float())

    def _keys(self, texts: Sequence[str]) -> Tensor:
        """Keys (N, D), in passes over texts of similar length: most are half as long as the longest."""
        ids = [encoding.ids[:256] for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        starts = range(0, len(order), _PASS_TEXTS)
        keys = [self._pass([ids[index] for index in order[start : start + _PASS_TEXTS]]) for start in starts]
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(keys)[back]

    def _pass(self, ids: Sequence[Sequence[int]]) -> Tensor:
        tokens = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)  # (N, T)
        mask = torch.zeros_like(tokens)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def trained_parameters(model: Any, layers: str) -> dict[str, torch.nn.Parameter]:
    """The parameters that `layers` trains, by their name in the model's file."""
    blocks = model.encoder.layer
    count = len(blocks)
    if layers == "head":
        prefixes: tuple[str, ...] = (f"encoder.layer.{count - 1}.output.",)
    else:
        prefixes = tuple(f"encoder.layer.{index}." for index in range(count - LAYERS[layers], count))
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)}
