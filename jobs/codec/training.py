"""Training of the latent codec: encoder, memory and decoder jointly, by the paper's loss (sec. 3, eq. 1).

A batch is one episode: its sentences are written into one memory and read back from it.

    loss = reconstruction from the readout + auto-encoding past the memory + language model alone (readout 0)
           + beta KL(reading weights || prior)

Dimension legend: N sentences of an episode, T tokens of the longest, K addresses, C latent size, D key size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jobs.codec.episode import quantise, read, weights_divergence, write
from jobs.timed_training import TimedTrainer, precision
from workers.latent_model import LatentDecoder, LatentEncoder

IGNORED = -100  # labels of padding


@dataclass(frozen=True, slots=True)
class CodecPlan:
    """Everything that decides the result, beside models and data."""

    seed: int = 0
    steps: int = 2_000
    minutes: float = 180.0  # of two cores
    episode: int = 16  # N
    learning_rate: float = 2e-4  # of what is new: pooling, connector, adapters
    encoder_learning_rate: float = 5e-5  # of the encoder's own layers
    warmup_steps: int = 50
    ridge: float = 1e-4  # in units of an address's squared length
    latent_scale: float = 24.0  # stored latents are integers over this
    noise: float = 0.1  # largest standard deviation of what is added to readouts: as much as other facts may disturb
    drop: float = 0.05  # share of a latent's numbers that are dropped on the way past the memory
    reconstruction: float = 1.0
    auto_encoding: float = 1.0
    language_model: float = 1.0
    divergence: float = 0.0  # beta; the paper's ablation is best without
    deviation: float = 0.1  # s of the reading weights, only for the divergence
    bfloat16: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One sentence: token ids for encoder and decoder, special tokens included, and its key (D,) as the gate has it."""

    encoder_ids: tuple[int, ...]
    decoder_ids: tuple[int, ...]
    key: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """One episode as tensors: ids and masks (N, T), keys (N, D)."""

    encoder_ids: Tensor
    encoder_mask: Tensor
    decoder_ids: Tensor
    decoder_mask: Tensor
    keys: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        encoder_ids, encoder_mask = _padded([row.encoder_ids for row in rows])
        decoder_ids, decoder_mask = _padded([row.decoder_ids for row in rows])
        return cls(encoder_ids, encoder_mask, decoder_ids, decoder_mask, torch.tensor([row.key for row in rows]))


class CodecTrainer(TimedTrainer):
    """A latent codec in training. Every step draws one episode of distinct sentences."""

    def __init__(
        self,
        encoder: LatentEncoder,
        decoder: LatentDecoder,
        addressing: Callable[[Tensor], Tensor],
        rows: Sequence[Row],
        plan: CodecPlan,
    ) -> None:
        """`addressing` turns keys (N, D) into addresses (N, K). Parameters that need no gradient stay as they are.

        Raises: ValueError for fewer rows than an episode has.
        """
        if len(rows) < plan.episode:
            raise ValueError(f"an episode has {plan.episode} sentences, there are {len(rows)}")
        self.plan, self.rows = plan, rows
        self.encoder, self.decoder, self._addressing = encoder.eval(), decoder.eval(), addressing
        own = _trained(encoder.backbone, "encoder.backbone.")
        new = {name: one for name, one in _trained(encoder, "encoder.").items() if name not in own}
        new |= _trained(decoder, "decoder.")
        groups = {plan.encoder_learning_rate: own, plan.learning_rate: new}
        super().__init__(plan, {rate: group for rate, group in groups.items() if group})

    def losses(self, batch: Batch, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        """Each term of the loss that has a weight, in nats, of one episode. Without `noise` nothing is disturbed."""
        with precision(self.plan.bfloat16):
            latents = self.encoder(batch.encoder_ids, batch.encoder_mask)
        stored = quantise(latents.float(), self.plan.latent_scale)
        addresses = self._addressing(batch.keys).float()
        readouts = read(addresses, write(addresses, stored, self.plan.ridge))  # the algebra stays in float32
        if noise is not None:
            deviation = self.plan.noise * torch.rand(len(readouts), 1, generator=noise)
            readouts = readouts + deviation * torch.randn(readouts.shape, generator=noise)
            stored = stored * (torch.rand(stored.shape, generator=noise) >= self.plan.drop)
        seen = {
            "reconstruction": readouts,
            "auto_encoding": stored,
            "language_model": torch.zeros_like(readouts),
        }
        terms = {name: self._decoded(batch, given) for name, given in seen.items() if getattr(self.plan, name)}
        if self.plan.divergence:
            terms["divergence"] = weights_divergence(addresses, self.plan.deviation)
        return terms

    @torch.inference_mode()
    def rebuilt(self, batch: Batch) -> tuple[float, float]:
        """Of one episode read back undisturbed: the share of tokens that are likeliest, and of sentences whole."""
        addresses = self._addressing(batch.keys).float()
        stored = quantise(self.encoder(batch.encoder_ids, batch.encoder_mask).float(), self.plan.latent_scale)
        readouts = read(addresses, write(addresses, stored, self.plan.ridge))
        logits = self.decoder(batch.decoder_ids, batch.decoder_mask, readouts)
        right = logits[:, :-1].argmax(-1) == batch.decoder_ids[:, 1:]
        counted = batch.decoder_mask[:, 1:].bool()
        return float(right[counted].float().mean()), float((right | ~counted).all(1).float().mean())

    def finish(self) -> None:
        """Nothing to do: what was trained is what is stored."""

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, by name."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def _loss(self, rng: random.Random) -> Tensor:
        batch = Batch.of(rng.sample(self.rows, self.plan.episode))
        terms = self.losses(batch, torch.Generator().manual_seed(rng.getrandbits(63)))
        weights = {name: getattr(self.plan, name) for name in terms}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def _decoded(self, batch: Batch, readouts: Tensor) -> Tensor:
        """Mean negative log likelihood of the tokens after the first; padding is left out."""
        with precision(self.plan.bfloat16):
            logits = self.decoder(batch.decoder_ids, batch.decoder_mask, readouts)
        labels = batch.decoder_ids.masked_fill(batch.decoder_mask == 0, IGNORED)
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Trained tensors in half precision, as safetensors."""
    from safetensors.torch import save_file  # noqa: PLC0415 - only here

    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids as (N, T), zero where there is none, and the mask of what there is."""
    tokens = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return tokens, mask


def _trained(module: nn.Module | Any, prefix: str) -> dict[str, nn.Parameter]:
    return {f"{prefix}{name}": parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
