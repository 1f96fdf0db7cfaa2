"""Training of the latent codec: encoder, memory and decoder jointly, by the paper's loss (sec. 3, eq. 1).

A batch is one or more episodes; the sentences of each are written into one memory and read back from it.

    loss = a reconstruction from the readout + b auto-encoding past the memory + c language model alone (readout 0)
           + beta KL(reading weights || prior) + spelling

A step decodes each sentence once, from the readout, from the latent itself or from nothing, drawn in the ratio a : b :
c: in the mean that is the gradient of the sum, for a third of its cost. Spelling asks that the slots' states stand for
the sentence's tokens. It needs no decoder and comes alone at first: a decoder that is shown states it cannot read
learns nothing from them.

Dimension legend: N sentences of a batch, T tokens of the longest, m slots, K addresses, C latent size, D key size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jobs.codec.episode import quantise, read, weights_divergence, write
from jobs.codec.rows import Row
from jobs.company import Company
from jobs.timed_training import TimedTrainer, precision
from workers.block_speller import BlockSpeller
from workers.latent_model import LatentDecoder, LatentEncoder

IGNORED = -100  # labels of padding
_FITTED_SENTENCES, _SIDE_BY_SIDE = 1024, 64  # for the speller


@dataclass(frozen=True, slots=True)
class CodecPlan:
    """Everything that decides the result, beside models and data."""

    seed: int = 0
    steps: int = 20_000
    minutes: float = 90.0  # of two cores
    episode: int = 16  # sentences of one memory
    episodes: int = 2  # of one step
    learning_rate: float = 5e-4
    warmup_steps: int = 50
    spelling_share: float = 0.2  # of the run, at its beginning, in which only spelling is trained
    spelling_episodes: int = 8  # of one step, then
    strange: float = 0.15  # share of the tokens that any other token replaces, then: so all of them are met
    ridge: float = 1e-4  # in units of an address's squared length
    latent_scale: float = 24.0  # stored latents are integers over this
    noise: float = 0.3  # largest standard deviation of what is added to readouts: as much as other facts may disturb
    drop: float = 0.02  # share of a latent's numbers that are dropped on the way past the memory
    reconstruction: float = 1.0
    auto_encoding: float = 0.25
    language_model: float = 0.0  # what is trained acts on the slots alone: without a readout nothing can change
    spelling: float = 0.2
    divergence: float = 0.0  # beta; the paper's ablation is best without
    deviation: float = 0.1  # s of the reading weights, only for the divergence
    bfloat16: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """Sentences as tensors: ids and masks (N, T), and for the encoder the decoder's tokens again, (N, m)."""

    encoder_ids: Tensor
    encoder_mask: Tensor
    decoder_ids: Tensor
    decoder_mask: Tensor
    spelled: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], slots: int) -> Batch:
        """Raises: ValueError for a sentence of more tokens than slots."""
        longest = max(len(row.decoder_ids) - 2 for row in rows)
        if longest > slots:
            raise ValueError(f"a sentence of {longest} tokens does not fit {slots} slots")
        encoder_ids, encoder_mask = _padded([row.encoder_ids for row in rows])
        decoder_ids, decoder_mask = _padded([row.decoder_ids for row in rows])
        spelled = [(row.decoder_ids[1:] + row.decoder_ids[-1:] * slots)[:slots] for row in rows]
        return cls(encoder_ids, encoder_mask, decoder_ids, decoder_mask, torch.tensor(spelled))

    def holds(self, fill: int = 0) -> Tensor:
        """Where slots hold tokens, (N, m), or one of the first `fill` end tokens behind them."""
        words = self.decoder_mask.sum(1, keepdim=True) - 2
        return torch.arange(self.spelled.shape[1], device=words.device) < words + fill

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        parts = (self.encoder_ids, self.encoder_mask, self.decoder_ids, self.decoder_mask, self.spelled)
        return Batch(*(part.to(device) for part in parts))


class CodecTrainer(TimedTrainer):
    """A latent codec in training. Every step draws episodes of distinct sentences."""

    def __init__(
        self,
        encoder: LatentEncoder,
        decoder: LatentDecoder,
        addressing: Callable[[Tensor], Tensor],
        rows: Sequence[Row],
        plan: CodecPlan,
        *,
        company: Company | None = None,
    ) -> None:
        """`addressing` turns keys (N, D) into addresses (N, K). Parameters that need no gradient stay as they are.

        Batches go where the slots are; what is drawn does not depend on that.

        Raises: ValueError for fewer rows than a step draws.
        """
        drawn = plan.episode * max(plan.episodes, plan.spelling_episodes if plan.spelling_share else 0)
        if len(rows) < drawn:
            raise ValueError(f"a step draws {drawn} sentences, there are {len(rows)}")
        self.plan, self.rows = plan, rows
        self.encoder, self.decoder, self._addressing = encoder.eval(), decoder.eval(), addressing
        self.speller: BlockSpeller | None = None  # fitted at the end
        self.device = decoder.slots.narrow.weight.device
        trained = _trained(encoder, "encoder.") | _trained(decoder, "decoder.")
        super().__init__(plan, {plan.learning_rate: trained}, company)

    @property
    def spelling_only(self) -> bool:
        """Whether the run is in its first part."""
        return self.progress < self.plan.spelling_share

    def batch(self, rows: Sequence[Row]) -> Batch:
        """These sentences, for these models."""
        return Batch.of(rows, self.decoder.plan.slots).to(self.device)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss that has a weight, in nats, of one episode, undisturbed."""
        stored, readouts, addresses = self._read(batch)
        seen = {"reconstruction": readouts, "auto_encoding": stored, "language_model": torch.zeros_like(readouts)}
        terms = {
            name: self._decoded(batch, given, self.decoder.slots(given))
            for name, given in seen.items()
            if getattr(self.plan, name)
        }
        if self.plan.spelling:
            terms["spelling"] = self._spelled(batch, self.decoder.slots(readouts))
        if self.plan.divergence:
            terms["divergence"] = weights_divergence(addresses, self.plan.deviation)
        return terms

    @torch.inference_mode()
    def rebuilt(self, episode: Sequence[Row], side_by_side: int = 64) -> dict[str, float]:
        """Sentences of one memory, read back undisturbed.

        Shares: `token`, of tokens that are the likeliest after the true ones before them; `exact`, of sentences whose
        tokens all are; `spelled`, of tokens that their slots stand for; after `finish` also `nearest`, of tokens that
        the speller names.
        """
        _, readouts, _ = self._read(self.batch(episode))
        right = exact = spelled = nearest = tokens = words = 0
        for start in range(0, len(episode), side_by_side):
            part, given = episode[start : start + side_by_side], readouts[start : start + side_by_side]
            batch, states = self.batch(part), self.decoder.slots(given)
            with self._precision():
                logits = self.decoder.speak(batch.decoder_ids, batch.decoder_mask, given, states)
            said = logits[:, :-1].argmax(-1) == batch.decoder_ids[:, 1:]
            counted = batch.decoder_mask[:, 1:].bool()
            used = batch.holds()
            stands_for = self.decoder.slots.spelled(states[used]).argmax(-1)
            right += int(said[counted].sum())
            exact += int((said | ~counted).all(1).sum())
            spelled += int((stands_for == batch.spelled[used]).sum())
            if self.speller is not None:
                nearest += int((self.speller(given).argmax(-1) == batch.spelled)[used].sum())
            tokens, words = tokens + int(counted.sum()), words + int(used.sum())
        shares = {"token": right / tokens, "exact": exact / len(episode), "spelled": spelled / words}
        return shares if self.speller is None else shares | {"nearest": nearest / words}

    @torch.no_grad()
    def finish(self) -> None:
        """Fit the speller to sentences that were trained on, and round all to half precision, as it is shipped."""
        for parameter in self._parameters.values():
            parameter.copy_(parameter.half())
        chosen = random.Random(self.plan.seed).sample(self.rows, min(_FITTED_SENTENCES, len(self.rows)))  # noqa: S311
        batches = [self.batch(chosen[start : start + _SIDE_BY_SIDE]) for start in range(0, len(chosen), _SIDE_BY_SIDE)]
        stored = torch.cat([self._stored(batch)[0] for batch in batches])
        spelled = torch.cat([batch.spelled for batch in batches])
        # The first of the fill is counted: it tells where a sentence ends.
        counted = torch.cat([batch.holds(fill=1) for batch in batches])
        encoder = self.encoder
        maps = encoder.spelling.weight.detach(), encoder.project.weight.detach()
        speller = BlockSpeller(self.decoder.decoder.get_input_embeddings(), *maps, encoder.plan).to(self.device)
        speller.fit(stored, spelled, counted, self.plan.noise)
        self.speller = speller

    def tensors(self) -> dict[str, Tensor]:
        """What was trained and, after `finish`, what was fitted, by name."""
        fitted = {} if self.speller is None else _trained(self.speller, "speller.")
        return {name: parameter.detach() for name, parameter in (self._parameters | fitted).items()}

    def _loss(self, rng: random.Random) -> Tensor:
        episodes = self.plan.spelling_episodes if self.spelling_only else self.plan.episodes
        batch = self.batch(rng.sample(self.rows, self.plan.episode * episodes))
        draw = torch.Generator().manual_seed(rng.getrandbits(63))
        if self.spelling_only:
            return self._spelling_loss(batch, draw)
        stored, readouts, addresses = self._read(batch, episodes)
        readouts = readouts + self._disturbance(readouts.shape, draw)
        past = stored * (torch.rand(stored.shape, generator=draw) >= self.plan.drop).to(self.device)
        weights = torch.tensor([self.plan.reconstruction, self.plan.auto_encoding, self.plan.language_model])
        drawn = torch.multinomial(weights, len(readouts), replacement=True, generator=draw)
        drawn = drawn.unsqueeze(1).to(self.device)  # (N, 1)
        given = torch.where(drawn == 0, readouts, torch.where(drawn == 1, past, torch.zeros_like(past)))
        states = self.decoder.slots(given)
        loss = float(weights.sum()) * self._decoded(batch, given, states)
        if self.plan.spelling:
            loss = loss + self.plan.spelling * self._spelled(batch, states, (drawn < 2).expand_as(batch.spelled))
        if self.plan.divergence:
            loss = loss + self.plan.divergence * weights_divergence(addresses, self.plan.deviation)
        return loss

    def _spelling_loss(self, batch: Batch, draw: torch.Generator) -> Tensor:
        """Spelling past the memory, of sentences in which some tokens are any tokens."""
        table = self.decoder.decoder.get_input_embeddings()
        strange = (torch.rand(batch.spelled.shape, generator=draw) < self.plan.strange).to(self.device)
        strange &= batch.holds()  # the fill stays
        others = torch.randint(table.num_embeddings, batch.spelled.shape, generator=draw).to(self.device)
        spelled = torch.where(strange, others, batch.spelled)
        changed = Batch(batch.encoder_ids, batch.encoder_mask, batch.decoder_ids, batch.decoder_mask, spelled)
        with self._precision():
            latents, _ = self.encoder(batch.encoder_ids, batch.encoder_mask, spelled)
        given = quantise(latents.float(), self.plan.latent_scale)
        states = self.decoder.slots(given + self._disturbance(given.shape, draw))
        wished = table(spelled).detach().float()
        distance: Tensor = (states - wished).square().mean() / self.decoder.slots.size.square()
        return self._spelled(changed, states) + distance

    def _disturbance(self, shape: torch.Size, draw: torch.Generator) -> Tensor:
        """Gaussian noise (N, C), of each sentence another deviation: what other facts in a memory do to a readout."""
        deviation = self.plan.noise * torch.rand(shape[0], 1, generator=draw)
        return (deviation * torch.randn(shape, generator=draw)).to(self.device)

    def _precision(self) -> AbstractContextManager[None]:
        return precision(self.plan.bfloat16, self.device.type)

    def _read(self, batch: Batch, episodes: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """What is stored of each sentence (N, C), what its episode's memory returns for it, and addresses (N, K)."""
        stored, keys = self._stored(batch)
        addresses = self._addressing(keys).float()
        pairs = zip(addresses.chunk(episodes), stored.chunk(episodes), strict=True)
        readouts = [read(own, write(own, latent, self.plan.ridge)) for own, latent in pairs]
        return stored, torch.cat(readouts), addresses  # the algebra stays in float32

    def _stored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is stored of each sentence (N, C), and keys (N, D)."""
        with self._precision():
            latents, keys = self.encoder(batch.encoder_ids, batch.encoder_mask, batch.spelled)
        return quantise(latents.float(), self.plan.latent_scale), keys

    def _decoded(self, batch: Batch, given: Tensor, states: Tensor) -> Tensor:
        """Mean negative log likelihood of the tokens after the first; padding is left out."""
        with self._precision():
            logits = self.decoder.speak(batch.decoder_ids, batch.decoder_mask, given, states)
        labels = batch.decoder_ids.masked_fill(batch.decoder_mask == 0, IGNORED)
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)

    def _spelled(self, batch: Batch, states: Tensor, counted: Tensor | None = None) -> Tensor:
        """Mean negative log likelihood that each state stands for its token; of the fill, only the first counts."""
        kept = batch.holds(fill=1) if counted is None else batch.holds(fill=1) & counted
        loss: Tensor = cross_entropy(self.decoder.slots.spelled(states[kept]), batch.spelled[kept])
        return loss


def _padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids as (N, T), zero where there is none, and the mask of what there is."""
    tokens = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return tokens, mask


def _trained(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return {f"{prefix}{name}": parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
