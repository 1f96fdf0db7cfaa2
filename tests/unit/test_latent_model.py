"""The latent codec's modules, on a tiny encoder and a tiny decoder: what a readout changes, and what it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from workers.latent_model import LatentDecoder, LatentEncoder, LatentPlan
from workers.slot_reader import AdapterPlan, slot_reader

PLAN = LatentPlan(latent_size=24, slots=4, attention_heads=2, width=32)


TABLE = torch.nn.Embedding(50, 32)


@pytest.fixture(scope="module")
def encoder() -> LatentEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return LatentEncoder(BertModel(config, add_pooling_layer=False), TABLE, PLAN).eval()


def decoder(plan: LatentPlan = PLAN) -> LatentDecoder:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    speaking = LlamaForCausalLM(config).eval()
    return LatentDecoder(speaking, slot_reader(speaking, AdapterPlan(rank=4)), plan)


TOKENS = torch.tensor([[1, 7, 9, 12, 3], [1, 8, 4, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SPELLED = torch.tensor([[7, 9, 12, 3], [8, 4, 3, 3]])


@torch.inference_mode()
def test_a_latent_of_zero_is_the_model_itself() -> None:
    """Same logits as without slots: they are masked, and text begins at position 0 either way."""
    ours = decoder()
    plain = ours.decoder(input_ids=TOKENS, attention_mask=MASK).logits
    found = ours(TOKENS, MASK, torch.zeros(2, 24))
    assert torch.allclose(found[MASK == 1], plain[MASK == 1], atol=1e-5)


@torch.inference_mode()
def test_only_the_row_with_a_readout_is_conditioned() -> None:
    """In one batch, a row of zeros stays the model's own and the other one does not."""
    ours = decoder()
    torch.manual_seed(2)
    readouts = torch.stack([torch.randn(24), torch.zeros(24)])
    plain = ours.decoder(input_ids=TOKENS, attention_mask=MASK).logits
    found = ours(TOKENS, MASK, readouts)
    assert torch.allclose(found[1, :3], plain[1, :3], atol=1e-5)
    assert (found[0] - plain[0]).abs().max() > 1e-3


@torch.inference_mode()
def test_adapters_change_what_is_said_of_a_readout_and_nothing_else() -> None:
    """With adapters far from zero: the row without a readout stays the model's own, the other one moves."""
    ours = decoder()
    torch.manual_seed(2)
    readouts = torch.stack([torch.randn(24), torch.zeros(24)])
    before = ours(TOKENS, MASK, readouts)
    for name, adapter in ours.reader.named_parameters():
        if "lora_B" in name:
            adapter.add_(torch.randn_like(adapter) * 0.1)
    after = ours(TOKENS, MASK, readouts)
    assert torch.allclose(after[1, :3], before[1, :3], atol=1e-5)
    assert (after[0] - before[0]).abs().max() > 1e-4


@torch.inference_mode()
def test_padding_changes_neither_latents_nor_logits(encoder: LatentEncoder) -> None:
    """A text alone and beside a longer one: the same latent, the same logits where it has tokens."""
    ours = decoder()
    alone_tokens, alone_mask = TOKENS[1:, :3], MASK[1:, :3]
    latents, keys = encoder(TOKENS, MASK, SPELLED)
    alone, key = encoder(alone_tokens, alone_mask, SPELLED[1:])
    assert torch.allclose(latents[1], alone[0], atol=1e-5)
    assert torch.allclose(keys[1], key[0], atol=1e-5)
    together = ours(TOKENS, MASK, latents)[1, :3]
    assert torch.allclose(together, ours(alone_tokens, alone_mask, latents[1:])[0], atol=1e-5)


@torch.inference_mode()
def test_latents_are_standardised_and_know_order_words_and_spelling(encoder: LatentEncoder) -> None:
    """Either half moves the latent alone: what the encoder reads, and how the decoder spells it."""
    read = torch.tensor([[1, 7, 9, 3], [1, 9, 7, 3], [1, 7, 9, 3]])
    spelled = torch.tensor([[7, 9, 3, 3], [7, 9, 3, 3], [9, 7, 3, 3]])
    latents, keys = encoder(read, torch.ones_like(read), spelled)
    assert latents.shape == (3, 24)
    assert torch.allclose(latents.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(latents.var(1, unbiased=False), torch.ones(3), atol=1e-2)
    assert torch.allclose(keys.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (latents[0] - latents[1]).abs().max() > 1e-4
    assert (latents[0] - latents[2]).abs().max() > 1e-2


def test_gradients_reach_all_that_is_new_and_nothing_of_the_encoder(encoder: LatentEncoder) -> None:
    """From the logits back through the slots to the encoder's queries; the key encoder stays."""
    ours = decoder(replace(PLAN, embedding=True))
    latents, _ = encoder(TOKENS, MASK, SPELLED)
    ours(TOKENS, MASK, latents).square().mean().backward()
    for name, parameter in [*ours.slots.named_parameters(), *encoder.named_parameters()]:
        assert (parameter.grad is not None) == ("backbone" not in name and name != "sharpness"), name
    assert ours.embedding.weight.grad.abs().max() > 0
    encoder.zero_grad()


@torch.inference_mode()
def test_slots_have_keys_and_values_of_their_own_in_every_layer() -> None:
    """(N, heads, m, head size) for each layer, and keys that are not the values."""
    ours = decoder()
    cache = ours.prefix(ours.slots(torch.randn(2, 24)))
    assert len(cache.layers) == 2
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (2, 2, 4, 8)
        assert not torch.allclose(layer.keys, layer.values)


def test_a_reader_shares_all_but_its_adapters() -> None:
    """Same storage for every weight that is frozen; trained in full, it shares nothing and leaves the decoder alone."""
    ours = decoder()
    held = {parameter.data_ptr() for parameter in ours.decoder.parameters()}
    for name, parameter in ours.reader.named_parameters():
        assert parameter.requires_grad == ("lora_" in name) == (parameter.data_ptr() not in held), name
    full = slot_reader(ours.decoder, AdapterPlan(rank=0))
    assert all(one.requires_grad and one.data_ptr() not in held for one in full.parameters())
    assert not any(one.requires_grad for one in ours.decoder.parameters())
    with pytest.raises(ValueError, match="rank must be 0 or more"):
        AdapterPlan(rank=-1)


@torch.inference_mode()
def test_a_state_that_is_an_embedding_stands_for_its_token() -> None:
    ours = decoder()
    states = ours.decoder.get_input_embeddings()(torch.tensor([[5, 7, 49]]))
    assert ours.slots.spelled(states).argmax(-1).tolist() == [[5, 7, 49]]


def test_shapes_that_do_not_fit_are_refused(encoder: LatentEncoder) -> None:
    with pytest.raises(ValueError, match="multiple of slots"):
        LatentPlan(latent_size=10, slots=4)
    with pytest.raises(ValueError, match=r"must be \(N, 24\)"):
        decoder().slots(torch.zeros(2, 23))
    with pytest.raises(ValueError, match="do not fit"):
        decoder()(TOKENS, MASK, torch.zeros(3, 24))
    with pytest.raises(ValueError, match=r"must both be \(N, T\)"):
        encoder(TOKENS, MASK[:1], SPELLED)
    with pytest.raises(ValueError, match=r"spelled must be \(2, 4\)"):
        encoder(TOKENS, MASK, SPELLED[:, :3])
