"""Training of the latent codec on tiny models: it learns to rebuild what was written, and can be stopped."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from jobs.codec.reconstruction import reconstruction
from jobs.codec.rows import Row
from jobs.codec.training import Batch, CodecPlan, CodecTrainer
from workers.latent_model import LatentDecoder, LatentEncoder, LatentPlan
from workers.slot_reader import AdapterPlan, slot_reader

SHAPE = LatentPlan(latent_size=96, slots=8, attention_heads=2, width=64)
PLAN = CodecPlan(
    steps=150, episode=10, episodes=1, spelling_episodes=2, learning_rate=3e-3, warmup_steps=5, bfloat16=False,
    language_model=0.1,
)  # fmt: skip
ADAPTERS = AdapterPlan(rank=0)
KEY_SIZE, START, END = 32, 1, 2


def corpus(count: int = 50) -> list[Row]:
    """Sentences of 4 to 8 words out of 40."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        words = [rng.randrange(3, 43) for _ in range(rng.randint(4, 8))]
        rows.append(Row(tuple(words), (START, *words, END)))
    return rows


def batch(rows: list[Row]) -> Batch:
    return Batch.of(rows, SHAPE.slots)


def addressing(keys: torch.Tensor) -> torch.Tensor:
    """Random Fourier features of the keys, as the service has them."""
    frequencies = torch.randn(KEY_SIZE, 32, generator=torch.Generator().manual_seed(4)) * 2
    phase = keys @ frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1) / 32**0.5


def trainer(plan: CodecPlan = PLAN) -> CodecTrainer:
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=43, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=43, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=96, max_position_embeddings=32,
        )
    )  # fmt: skip
    codec = (
        LatentEncoder(encoder, decoder.get_input_embeddings(), SHAPE),
        LatentDecoder(decoder, slot_reader(decoder, ADAPTERS), SHAPE),
    )
    return CodecTrainer(*codec, addressing, corpus(), plan)


def test_fifty_sentences_are_memorised_and_rebuilt_through_the_memory():
    """The loss falls, and what ten sentences wrote into one memory is read back, nearly every token."""
    one = trainer(replace(PLAN, steps=220, auto_encoding=0.0, language_model=0.0))
    losses = []
    for _ in one.run(lambda _share, loss: losses.append(loss)):
        pass
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    shares = reconstruction(one, one.rows, sizes=(10, 64))
    assert list(shares) == ["10"]  # there are not 64
    assert shares["10"]["token"] > 0.9
    assert shares["10"]["spelled"] > 0.9
    assert "nearest" not in shares["10"]
    one.finish()
    finished = reconstruction(one, one.rows, sizes=(10,))["10"]
    assert finished["nearest"] > 0.98
    assert finished["token"] == pytest.approx(shares["10"]["token"], abs=0.02)  # half precision is enough
    assert {"speller.scale", "speller.offsets", "speller.variance"} <= one.tensors().keys()
    blind = one.decoder(*_decoder_input(one), torch.zeros(50, 96))
    assert blind[:, :-1].argmax(-1).ne(batch(one.rows).decoder_ids[:, 1:]).float().mean() > 0.3


@torch.no_grad()
def _decoder_input(one: CodecTrainer):
    all_rows = batch(one.rows)
    return all_rows.decoder_ids, all_rows.decoder_mask


def test_padding_and_order_do_not_change_the_loss():
    """An episode in another order, and beside a sentence that makes all others longer by padding."""
    one = trainer()
    rows = corpus(10)
    straight = one.losses(batch(rows))
    turned = one.losses(batch(rows[::-1]))
    wide = batch(rows)
    padded = Batch(*(_widened(ids) for ids in (wide.encoder_ids, wide.encoder_mask)),
                   *(_widened(ids) for ids in (wide.decoder_ids, wide.decoder_mask)), wide.spelled)  # fmt: skip
    for other in (turned, one.losses(padded)):
        for name, value in straight.items():
            assert float(other[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name


def _widened(ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, 5))


def test_a_resumed_run_gives_the_same_curve(tmp_path):
    straight = trainer()
    curve = [straight.step() for _ in range(5)]
    stopped = trainer()
    stopped.step(), stopped.step()
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = trainer()
    resumed.resume(tmp_path / "checkpoint.pt")
    assert [resumed.step() for _ in range(3)] == pytest.approx(curve[2:], rel=1e-4)


def test_a_run_can_begin_with_what_another_has_trained():
    """Weights alone: steps and optimizer begin anew. Tensors of other sizes or names are refused, and nothing taken."""
    first, second = trainer(), trainer()
    first.step()
    second.begin_with(first.tensors())
    assert second.steps_done == 0
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())
    for wrong in (
        {**first.tensors(), "encoder.places": torch.zeros(3)},
        {name: one for name, one in first.tensors().items() if name != "encoder.places"},
    ):
        fresh = trainer()
        before = {name: one.clone() for name, one in fresh.tensors().items()}
        with pytest.raises(ValueError, match=r"tensor encoder\.places is \(8, 32\) in this run and (\(3,\)|None)"):
            fresh.begin_with(wrong)
        assert all(torch.equal(one, before[name]) for name, one in fresh.tensors().items())


def test_terms_with_and_without_divergence():
    """Four terms by default; beta brings the fifth. A term of weight 0 is not computed."""
    ten = batch(corpus(10))
    assert set(trainer().losses(ten)) == {"reconstruction", "auto_encoding", "language_model", "spelling"}
    assert set(trainer(replace(PLAN, language_model=0.0)).losses(ten)) == {
        "reconstruction",
        "auto_encoding",
        "spelling",
    }
    assert float(trainer(replace(PLAN, divergence=0.5)).losses(ten)["divergence"].detach()) > 0


def test_what_is_frozen_stays():
    """A decoder that needs no gradient is not trained; slots and queries are."""
    torch.manual_seed(0)
    source = trainer()
    source.decoder.decoder.requires_grad_(False)
    one = CodecTrainer(source.encoder, source.decoder, addressing, corpus(), PLAN)
    before = {name: tensor.clone() for name, tensor in one.decoder.decoder.state_dict().items()}
    one.step(), one.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.decoder.decoder.state_dict().items())
    assert any(name.startswith("decoder.slots.") for name in one.tensors())


def test_too_few_sentences_are_refused():
    one = trainer()
    with pytest.raises(ValueError, match="a step draws 20 sentences, there are 9"):
        CodecTrainer(one.encoder, one.decoder, addressing, corpus(9), PLAN)
