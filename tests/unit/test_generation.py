"""The batch state, sampling and text stream on a tiny random model: no weights are needed to test bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from workers.generation import DecodingBatch
from workers.ports import Generation, GenerationChunk, GenerationRequest
from workers.sampling import TargetBias, TokenChoice
from workers.text_stream import TextStream

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [18]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def recomputed(model, tokens) -> torch.Tensor:
    """The oracle: next-token logits of the whole sequence in one pass, without any cache."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def admit(batch, prompt) -> torch.Tensor:
    return batch.admit({"input_ids": torch.tensor([prompt])})


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_each_row_runs_as_if_alone(model, data):
    """Any order of admissions, steps and evictions: each live row's logits are those of its own tokens alone.

    The tolerance covers float32 sums in another order; a wrong mask or position moves these logits by over 1e-2.
    """
    batch, rows = DecodingBatch(model), []
    for _ in range(data.draw(st.integers(4, 14))):
        action = data.draw(st.sampled_from(["admit", "step", "step", "evict"]))
        if action == "admit" and len(rows) < 4:
            prompt = data.draw(st.sampled_from(PROMPTS))
            assert torch.allclose(admit(batch, prompt), recomputed(model, prompt), atol=1e-4)
            rows.append(list(prompt))
        elif action == "step" and rows:
            tokens = [data.draw(st.integers(1, 63)) for _ in rows]
            logits = batch.step(tokens)
            for row, token in enumerate(tokens):
                rows[row].append(token)
                assert torch.allclose(logits[row], recomputed(model, rows[row]), atol=1e-4)
        elif action == "evict" and rows:
            gone = data.draw(st.sets(st.integers(0, len(rows) - 1)))
            batch.evict(gone)
            rows = [row for index, row in enumerate(rows) if index not in gone]
        assert len(batch) == len(rows)


def test_a_shared_head_stands_for_the_tokens_it_was_made_of(model):
    """Rows that start from one head get the logits of the whole prompt, and using a head does not change it."""
    batch = DecodingBatch(model)
    head = batch.head(PROMPTS[0])
    for prompt in (PROMPTS[1], PROMPTS[2], PROMPTS[1]):
        logits = batch.admit({"input_ids": torch.tensor([prompt])}, head)
        assert torch.allclose(logits, recomputed(model, PROMPTS[0] + prompt), atol=1e-5)
    stepped = batch.step([21, 22, 23])
    for row, (prompt, token) in enumerate(zip((PROMPTS[1], PROMPTS[2], PROMPTS[1]), (21, 22, 23), strict=True)):
        assert torch.allclose(stepped[row], recomputed(model, [*PROMPTS[0], *prompt, token]), atol=1e-5)
    assert head.get_seq_length() == len(PROMPTS[0])


def test_shared_padding_is_cut_off(model):
    """When the longest row leaves, the others stop paying for its length."""
    batch = DecodingBatch(model)
    for prompt in PROMPTS[:3]:
        admit(batch, prompt)
    assert batch._padding == [0, 5, 3]
    batch.evict([0])
    assert batch._padding == [2, 0]
    batch.evict([0, 1])
    assert len(batch) == 0


def test_stepping_with_the_wrong_number_of_tokens_is_refused(model):
    batch = DecodingBatch(model)
    with pytest.raises(ValueError, match="1 tokens for 0 live rows"):
        batch.step([1])


def choice(bias=None, **settings_) -> TokenChoice:
    return TokenChoice(GenerationRequest("p", **settings_), bias)


def test_greedy_takes_the_largest_logit():
    assert choice().next_token(torch.tensor([0.0, 3.0, 1.0])) == 1


def test_sampling_is_repeatable_by_seed_and_follows_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))

    def draw(seed: int) -> list[int]:
        sampler = choice(temperature=1.0, seed=seed)
        return [sampler.next_token(logits) for _ in range(2000)]

    assert draw(1) == draw(1) != draw(2)
    share = np.bincount(draw(1), minlength=3) / 2000
    assert np.abs(share - [0.5, 0.3, 0.2]).max() < 0.05  # 4.5 standard deviations of a share of 2,000 draws


@pytest.mark.parametrize(("top_p", "allowed"), [(0.4, {0}), (0.5, {0}), (0.7, {0, 1}), (1.0, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, allowed):
    sampler = choice(temperature=1.0, top_p=top_p)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    assert {sampler.next_token(logits) for _ in range(200)} == allowed


def bias(strength=10.0) -> TargetBias:
    candidates = torch.tensor([[3, 1], [4, 1]])
    return TargetBias(candidates, torch.tensor([[0.9, 0.1], [1.0, 0.0]]), strength, end_tokens=(2,), end_strength=5.0)


def test_bias_walks_along_the_target_and_then_ends_the_turn_once():
    sampler = choice(bias())
    logits = torch.tensor([4.0, 0.0, 0.0, 0.0, 0.0])
    assert [sampler.next_token(logits) for _ in range(4)] == [3, 4, 2, 0]
    assert logits.tolist() == [4.0, 0.0, 0.0, 0.0, 0.0]


def test_bias_ends_when_the_model_insists_on_something_else():
    sampler = choice(bias())
    assert sampler.next_token(torch.tensor([50.0, 0.0, 0.0, 0.0, 0.0])) == 0
    assert sampler.next_token(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])) == 0


def test_bias_is_in_proportion_to_probability():
    assert torch.allclose(bias().add_to(torch.zeros(5)), torch.tensor([0.0, 1.0, 0.0, 9.0, 0.0]))


def decode_bytes(tokens) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


@settings(max_examples=100, deadline=None)
@given(text=st.text(), strip=st.booleans())
def test_streamed_pieces_add_up_and_hold_no_half_characters(text, strip):
    """One token per byte, the hardest tokenizer there is: pieces are whole characters and add up to the text."""
    stream = TextStream(decode_bytes, strip_start=strip)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join([*pieces, stream.finish()]) == (text.lstrip() if strip else text)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_cut_character_comes_out_at_the_end_only():
    stream = TextStream(decode_bytes, strip_start=False)
    assert [stream.push(byte) for byte in "é".encode()[:1]] == [""]
    assert stream.finish() == "\ufffd"


def test_chunks_join_into_one_generation():
    chunks = [GenerationChunk("a", (1,)), GenerationChunk("", (2,)), GenerationChunk("b", (), "stop", {"queue": 1.0})]
    assert Generation.of(chunks) == Generation("ab", (1, 2), "stop", {"queue": 1.0})
