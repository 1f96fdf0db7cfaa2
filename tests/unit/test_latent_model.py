"""The latent codec's modules, on a tiny encoder and a tiny decoder: what a readout changes, and what it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from workers.latent_model import Connector, LatentDecoder, LatentEncoder, LatentPlan

PLAN = LatentPlan(latent_size=24, queries=4, attention_heads=2, slots=3, rank=8)


@pytest.fixture(scope="module")
def encoder() -> LatentEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return LatentEncoder(BertModel(config, add_pooling_layer=False), PLAN).eval()


def decoder(plan: LatentPlan = PLAN) -> LatentDecoder:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    return LatentDecoder(LlamaForCausalLM(config).eval(), plan)


TOKENS = torch.tensor([[1, 7, 9, 12, 3], [1, 8, 4, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@torch.inference_mode()
def test_a_latent_of_zero_is_the_model_itself():
    """Same logits as without slots: they are masked, and text begins at position 0 either way."""
    ours = decoder()
    plain = ours.decoder(input_ids=TOKENS, attention_mask=MASK).logits
    found = ours(TOKENS, MASK, torch.zeros(2, 24))
    assert torch.allclose(found[MASK == 1], plain[MASK == 1], atol=1e-5)


@torch.inference_mode()
def test_only_the_row_with_a_readout_is_conditioned():
    """In one batch, a row of zeros stays the model's own and the other one does not."""
    ours = decoder()
    torch.manual_seed(2)
    readouts = torch.stack([torch.randn(24), torch.zeros(24)])
    plain = ours.decoder(input_ids=TOKENS, attention_mask=MASK).logits
    found = ours(TOKENS, MASK, readouts)
    assert torch.allclose(found[1, :3], plain[1, :3], atol=1e-5)
    assert (found[0] - plain[0]).abs().max() > 1e-3


@torch.inference_mode()
def test_padding_changes_neither_latents_nor_logits(encoder):
    """A text alone and beside a longer one: the same latent, the same logits where it has tokens."""
    ours = decoder()
    alone_tokens, alone_mask = TOKENS[1:, :3], MASK[1:, :3]
    latents = encoder(TOKENS, MASK)
    assert torch.allclose(latents[1], encoder(alone_tokens, alone_mask)[0], atol=1e-5)
    together = ours(TOKENS, MASK, latents)[1, :3]
    assert torch.allclose(together, ours(alone_tokens, alone_mask, latents[1:])[0], atol=1e-5)


@torch.inference_mode()
def test_latents_are_standardised_and_know_the_order_of_words(encoder):
    latents = encoder(torch.tensor([[1, 7, 9, 3], [1, 9, 7, 3]]), torch.ones(2, 4, dtype=torch.long))
    assert latents.shape == (2, 24)
    assert torch.allclose(latents.mean(1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(latents.var(1, unbiased=False), torch.ones(2), atol=1e-2)
    assert (latents[0] - latents[1]).abs().max() > 1e-3


def test_gradients_reach_every_part(encoder):
    """From the logits back through slots and embedding to the encoder's queries."""
    ours = decoder()
    latents = encoder(TOKENS, MASK)
    ours(TOKENS, MASK, latents).square().mean().backward()
    for name, parameter in [*ours.connector.named_parameters(), *encoder.named_parameters()]:
        if name != "embedding.weight" and "backbone" not in name:
            assert parameter.grad is not None, name
    assert ours.connector.embedding.weight.grad.abs().max() > 0
    encoder.zero_grad()


def test_keys_and_values_have_maps_of_their_own():
    """(N, heads, slots, head size) for each layer, and keys that are not the values."""
    connector = Connector(decoder().decoder.config, replace(PLAN, embedding=False))
    pairs = connector(torch.randn(2, 24))
    assert len(pairs) == 2
    for keys, values in pairs:
        assert keys.shape == values.shape == (2, 2, 3, 8)
        assert not torch.allclose(keys, values)
    assert connector.embedding is None


def test_shapes_that_do_not_fit_are_refused(encoder):
    with pytest.raises(ValueError, match="multiple of queries"):
        LatentPlan(latent_size=10, queries=4)
    with pytest.raises(ValueError, match=r"must be \(N, 24\)"):
        decoder().connector(torch.zeros(2, 23))
    with pytest.raises(ValueError, match="do not fit"):
        decoder()(TOKENS, MASK, torch.zeros(3, 24))
    with pytest.raises(ValueError, match=r"must both be \(N, T\)"):
        encoder(TOKENS, MASK[:1])
