"""The decoder port on the real default model: untouched without a fact, right with one, alone or in company."""

from __future__ import annotations

import json
import queue
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from memory_actor.errors import Overloaded, TextTooLong, Unavailable
from memory_actor.types import FactText
from workers.decoder import CausalDecoder
from workers.ports import AnswerMode, Generation, GenerationChunk, GenerationRequest

PRIVATE_FACTS = json.loads((Path(__file__).parents[1] / "model_fixtures" / "private_facts.json").read_bytes())
QUESTIONS = ["What is the capital of Italy?", "Say hello in French.", "Why is the sky blue?"]
CLOZES = ["The capital of Italy is", "Once upon a time, ", "def add(a, b):"]
PLAIN = [(text, AnswerMode.ANSWER) for text in QUESTIONS] + [(text, AnswerMode.COMPLETE) for text in CLOZES]


def request(codec, fact, query, mode=AnswerMode.ANSWER, **settings) -> GenerationRequest:
    content = codec.encode([fact])
    return GenerationRequest(
        query,
        mode,
        readout=content.latents.astype(np.float32),
        prompt_tokens=int(content.prompt_tokens[0]),
        target_tokens=int(content.target_tokens[0]),
        **settings,
    )


def run(decoder, wanted) -> Generation:
    return Generation.of(decoder.generate(wanted))


def run_all(decoder, wanted) -> list[Generation]:
    """All requests at once; the decoder runs four side by side."""
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda one: run(decoder, one), wanted))


@pytest.fixture(scope="module")
def plain_model(bundle):
    """The oracle: the same weights through transformers' own `generate`."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(bundle.decoder_folder)
    model = LlamaForCausalLM.from_pretrained(bundle.decoder_folder, dtype=torch.float32).eval()

    def generate(prompt: str, mode: AnswerMode, max_tokens: int) -> list[int]:
        if mode is AnswerMode.ANSWER:
            turn = [{"role": "user", "content": prompt}]
            inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
        else:
            inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids[:-1] if ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") else ids

    return generate


@pytest.mark.parametrize(("prompt", "mode"), PLAIN)
def test_without_a_fact_the_base_model_speaks(decoder, plain_model, prompt, mode):
    """Memory off: token for token what transformers' own greedy `generate` makes of the plain prompt."""
    assert list(run(decoder, GenerationRequest(prompt, mode, max_tokens=12)).tokens) == plain_model(prompt, mode, 12)


def test_the_converted_model_keeps_its_chat_format(decoder):
    """Template and special ids survive the conversion from GGUF: one system turn, one user turn, the opened answer."""
    conditioning = decoder._conditioning
    ids = conditioning.templates.plain("hi", AnswerMode.ANSWER)
    assert conditioning.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (ids[0], ids.count(2)) == (1, 2)
    assert conditioning.end_tokens == {2}


def test_company_does_not_change_greedy_tokens(decoder):
    """Six requests at once, more than there is room for side by side, each answer as if asked alone."""
    wanted = [GenerationRequest(prompt, mode, max_tokens=8) for prompt, mode in PLAIN]
    alone = [run(decoder, one) for one in wanted]
    together = run_all(decoder, wanted)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.text for one in together] == [one.text for one in alone]


def words(text: str) -> str:
    return re.sub(r"[^\w ]", "", text.lower().replace("-", " "))


@pytest.mark.parametrize(("mode", "floor"), [(AnswerMode.ANSWER, 0.85), (AnswerMode.COMPLETE, 0.85)])
def test_private_facts_are_told(decoder, codec, mode, floor):
    """With exact readouts, at least 85 % of the invented facts of all kinds are answered right, greedily."""
    cases = PRIVATE_FACTS[mode]
    facts = [FactText(case.get("text") or case["prompt"], case.get("target")) for case in cases]
    length = 16 if mode is AnswerMode.ANSWER else 8
    pairs = zip(facts, cases, strict=True)
    answers = run_all(decoder, [request(codec, fact, case["query"], mode, max_tokens=length) for fact, case in pairs])
    wrong = [
        (case["query"], answer.text)
        for case, answer in zip(cases, answers, strict=True)
        if not any(words(expected) in words(answer.text) for expected in case["expect"])
    ]
    assert len(wrong) <= (1 - floor) * len(PRIVATE_FACTS[mode]), wrong


def test_sampling_is_repeatable_by_seed(decoder):
    def story(seed: int) -> tuple[int, ...]:
        sampled = GenerationRequest(
            "Once upon a time", AnswerMode.COMPLETE, max_tokens=8, temperature=1.0, top_p=0.95, seed=seed
        )
        return run(decoder, sampled).tokens

    assert story(1) == story(1) != story(2)


def test_a_target_of_many_bytes_is_streamed_whole(decoder, codec):
    """A target of characters that take several tokens each comes out unbroken, and pieces hold no half characters."""
    wanted = request(codec, FactText("What is the sign of the inn?", "東京🎉é"), "What is the sign of the inn?")
    chunks = list(decoder.generate(wanted))
    assert Generation.of(chunks).text.startswith("東京🎉é")
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert set(chunks[-1].ms) == {"queue", "prefill", "decode"}


def test_max_tokens_is_kept_to(decoder):
    generation = run(decoder, GenerationRequest("Tell me everything.", max_tokens=3))
    assert len(generation.tokens) == 3
    assert generation.finish_reason == "length"


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(decoder):
    with pytest.raises(TextTooLong) as caught:
        run(decoder, GenerationRequest("a " * 9000, AnswerMode.COMPLETE, max_tokens=92))
    assert caught.value.args[2] == 8192 - 92


def test_the_queue_is_bounded_and_cancelled_requests_leave(bundle, codec):
    """With no room to wait, a request is refused; a dropped stream gives its place back; close ends the rest."""
    small = CausalDecoder(bundle, codec, batch_requests_max=1, queue_max=1)
    endless = GenerationRequest("Count to a million: 1, 2,", AnswerMode.COMPLETE, max_tokens=4000)
    first = small.generate(endless)
    next(first)  # it has the only place
    second: queue.SimpleQueue[object] = queue.SimpleQueue()
    small.submit(endless, second.put)
    with pytest.raises(Overloaded):
        small.submit(endless, second.put)
    first.close()  # cancels; the waiting one moves up
    assert isinstance(second.get(timeout=60), GenerationChunk)
    small.close()
    while isinstance(last := second.get(timeout=60), GenerationChunk):
        pass
    assert isinstance(last, Unavailable)
    with pytest.raises(Unavailable):
        run(small, endless)
