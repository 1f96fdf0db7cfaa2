"""What stands in front of the served decoder is what it was trained with, on tiny models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from memory_actor.errors import ModelMissing
from workers.generation import DecodingBatch
from workers.latent_model import LatentDecoder, LatentPlan, Slots
from workers.slot_head import SlotHead
from workers.slot_reader import AdapterPlan, slot_reader
from workers.trained_codec import READER, SLOTS, TrainedCodec
from workers.trained_scope import hash_files, tensor_files, write_tensors

SHAPE = LatentPlan(latent_size=24, slots=4, attention_heads=2, width=32)
ADAPTERS = AdapterPlan(rank=4)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def training(model) -> LatentDecoder:
    """As it looks at the end of a training run: no adapter is zero, all numbers fit half precision."""
    torch.manual_seed(2)
    ours = LatentDecoder(model, slot_reader(model, ADAPTERS), SHAPE)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.copy_((torch.randn_like(parameter) * 0.2).half())
    return ours.eval()


def write_codec(folder: Path, training: LatentDecoder) -> Path:
    trained = {f"decoder.{name}": one for name, one in training.named_parameters() if one.requires_grad}
    write_tensors({name: one.detach().half().numpy() for name, one in trained.items()}, folder)
    card = {
        "shape": asdict(SHAPE), "adapters": asdict(ADAPTERS), "latent_scale": 24, "answer_bias": 0.0, "end_token": 2,
        "encoder": "none", "encoder_sha256": "none", "decoder": "tiny", "decoder_tokenizer_sha256": "none",
        "tensors_sha256": hash_files(tensor_files(folder)),
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def trained(training, tmp_path) -> TrainedCodec:
    return TrainedCodec.open(write_codec(tmp_path / "codec", training))


def readout(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, SHAPE.latent_size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_the_served_decoder_says_what_the_trained_one_says(model, training, trained):
    """Same next-token logits, prompt and steps, from the stored tensors."""
    one = readout(1, 3)
    ids = torch.tensor([[5, 7, 9, 11]])
    expected = training(ids, torch.ones_like(ids), one)
    batch = DecodingBatch(model)
    found = [batch.admit({"input_ids": ids[:, :2]}, SlotHead(model, trained)([one.numpy()]))]
    found += [batch.step([token])[0] for token in ids[0, 2:].tolist()]
    assert torch.allclose(torch.stack(found), expected[0, 1:], atol=1e-4)


@torch.inference_mode()
def test_several_readouts_at_once_are_each_alone_in_a_row(model, trained):
    """Of two facts, one of two rows: keys and values stand one behind the other, as if each had been run alone."""
    head = SlotHead(model, trained)
    long, short = readout(2, 4).numpy(), readout(1, 5).numpy()
    assert (head.positions(long), head.positions(short)) == (8, 4)
    together, alone = head([long, short]), [head([long]), head([short])]
    for index, layer in enumerate(together.layers):
        assert layer.keys.shape == (1, 2, 12, 8)
        for part in ("keys", "values"):
            expected = torch.cat([getattr(one.layers[index], part) for one in alone], dim=2)
            assert torch.allclose(getattr(layer, part), expected, atol=1e-5)


@torch.inference_mode()
def test_the_decoder_itself_stays_to_the_bit(model, trained):
    ids = torch.tensor([[5, 7, 9, 11]])
    before = model(input_ids=ids, past_key_values=DynamicCache()).logits
    SlotHead(model, trained)([readout(1, 3).numpy()])
    assert torch.equal(model(input_ids=ids, past_key_values=DynamicCache()).logits, before)


def test_tensors_that_do_not_fit_are_refused(model, training, trained, tmp_path):
    """Another rank, another shape, a byte that changed: each is said, nothing is guessed."""
    reader = slot_reader(model, AdapterPlan(rank=2))
    with pytest.raises(ModelMissing, match="of a shape that fits"):
        trained.load_into(reader, READER)
    with pytest.raises(ModelMissing, match=r"tensor decoder\.slots\.\w+"):
        trained.load_into(torch.nn.Linear(2, 2), SLOTS)
    wider = Slots(model.get_input_embeddings(), LatentPlan(latent_size=24, slots=4, attention_heads=2, width=64))
    with pytest.raises(ModelMissing, match="of a shape that fits"):
        trained.load_into(wider, SLOTS)
    folder = write_codec(tmp_path / "damaged", training)
    (part,) = tensor_files(folder)
    part.write_bytes(part.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ModelMissing, match="intact tensors"):
        TrainedCodec.open(folder)
