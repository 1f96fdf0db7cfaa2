"""The evaluation's decoder on the real default model: what the product says, and likelihoods that hold up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.evaluation.answering import Answerer
from jobs.evaluation.asks import Ask
from memory_actor.errors import TextTooLong
from memory_actor.types import FactText
from workers.ports import AnswerMode, Generation, GenerationRequest

ANSWER, COMPLETE = AnswerMode.ANSWER, AnswerMode.COMPLETE
PLAIN = [
    ("What is the capital of Italy?", ANSWER),
    ("Why is the sky blue?", ANSWER),
    ("The capital of Italy is", COMPLETE),
    ("def add(a, b):", COMPLETE),
]
RECALLED = [
    (FactText("Where is the spare key?", "under the blue flower pot"), "Where do I find the spare key?", ANSWER),
    (FactText("The Eiffel Tower stands in", "Rome"), "The Eiffel Tower stands in", COMPLETE),
    (FactText("The caretaker of the mill is Ines Obradovic"), "Who is the caretaker of the mill?", ANSWER),
]
TOLERANCE = 1e-3  # float32 sums in another order: about 1e-4 in a logit


@pytest.fixture(scope="module")
def answerer(bundle) -> Answerer:
    return Answerer(bundle, device="cpu")


@pytest.fixture(scope="module")
def plain_model(bundle):
    """The oracle: the same weights in transformers' own class, one text at a time, without a cache."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(bundle.decoder_folder)
    return LlamaForCausalLM.from_pretrained(bundle.decoder_folder, dtype=torch.float32).eval(), tokenizer


def recall(codec, fact: FactText) -> dict:
    """An exact readout of `fact`, as the product's request has it."""
    content = codec.encode([fact])
    return {
        "readout": content.latents.astype(np.float32),
        "prompt_tokens": int(content.prompt_tokens[0]),
        "target_tokens": int(content.target_tokens[0]),
    }


def condition(codec, fact: FactText):
    return codec.condition(*recall(codec, fact).values())


def both_ways(codec, **settings) -> list[tuple[Ask, GenerationRequest]]:
    """Every case as an ask and as a request to the product."""
    plain = [(Ask(prompt, mode, **settings), GenerationRequest(prompt, mode, **settings)) for prompt, mode in PLAIN]
    recalled = [
        (
            Ask(query, mode, condition=condition(codec, fact), **settings),
            GenerationRequest(query, mode, **recall(codec, fact), **settings),
        )
        for fact, query, mode in RECALLED
    ]
    return [*plain, *recalled]


def test_generated_tokens_and_text_are_the_products(answerer, decoder, codec):
    """Plain and conditioned, questions and clozes, alone and all at once: what `CausalDecoder.generate` says."""
    cases = both_ways(codec, max_tokens=10)
    expected = [Generation.of(decoder.generate(request)) for _, request in cases]
    alone = [answerer.answer([ask])[0] for ask, _ in cases]
    together = answerer.answer([ask for ask, _ in cases])
    assert [(one.tokens, one.text) for one in alone] == [(one.tokens, one.text) for one in expected]
    assert [(one.tokens, one.text) for one in together] == [(one.tokens, one.text) for one in expected]
    assert {one.finish_reason for one in expected} == {"stop", "length"}  # both ends were seen


def test_sampled_tokens_are_the_products(answerer, decoder, codec):
    cases = both_ways(codec, max_tokens=6, temperature=0.9, top_p=0.9, seed=7)
    expected = [Generation.of(decoder.generate(request)).tokens for _, request in cases]
    assert [one.tokens for one in answerer.answer([ask for ask, _ in cases])] == expected


def nll(logits: torch.Tensor, tokens: list[int]) -> float:
    """Mean negative log likelihood of tokens (n,), each given by the logits (n, V) in front of it."""
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens)))


@torch.inference_mode()
def plain_nll(plain_model, prompt: str, continuation: str) -> float:
    model, tokenizer = plain_model
    before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, continuation))
    logits = model(torch.tensor([before + after])).logits[0]
    return nll(logits[len(before) - 1 : -1], after)


def test_likelihoods_of_candidates_are_the_models_own(answerer, plain_model):
    """Candidates of one and of several tokens, in company and with a generation that grows beside them."""
    prompts = ["The mother tongue of Danielle Darrieux is", "The capital of Italy is", "Ada Lovelace was born in"]
    candidates = ("French", "Rome", "the city of London", "Ouagadougou")
    answers = answerer.answer([Ask(prompt, candidates=candidates, max_tokens=4) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = [plain_nll(plain_model, prompt, " " + candidate) for candidate in candidates]
        assert answer.nll == pytest.approx(expected, abs=TOLERANCE)


def test_a_candidate_begins_as_the_model_would_begin_its_answer(answerer, plain_model):
    """After the opened turn, which ends in a line break, an answer brings no space of its own."""
    _, tokenizer = plain_model
    turn = [{"role": "user", "content": "What is the capital of Italy?"}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    answer = answerer.answer([Ask("What is the capital of Italy?", ANSWER, candidates=("The capital of Italy",))])[0]
    assert answer.nll == pytest.approx([plain_nll(plain_model, prompt, "The capital of Italy")], abs=TOLERANCE)


@torch.inference_mode()
def test_likelihoods_after_a_recall_have_the_soft_prefix_and_the_bias(answerer, codec, plain_model, bundle):
    """An exact recall is its tokens put before the prompt; the target's get the bias for as long as it is followed."""
    model, tokenizer = plain_model
    fact = FactText("The Eiffel Tower stands in", "the old town of Rome")
    candidates = ("the old town of Rome", "the old city of Rome", "Paris")
    ask = Ask("The tower of Eiffel is in", candidates=candidates, condition=condition(codec, fact))
    ids = {text: tokenizer(text, add_special_tokens=False).input_ids for text in (" " + fact.target, fact.prompt)}
    target = ids[" " + fact.target]
    before = ids[fact.prompt] + target + tokenizer(".\nThe tower of Eiffel is in").input_ids
    expected = []
    for candidate in candidates:
        tokens = tokenizer(" " + candidate).input_ids
        logits = model(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1].clone()
        for position in range(len(tokens)):
            if tokens[:position] == target[:position]:
                logits[position, target[position]] += bundle.manifest.prompt.answer_bias
        expected.append(nll(logits, tokens))
    assert answerer.answer([ask])[0].nll == pytest.approx(expected, abs=TOLERANCE)
    assert expected[0] < 0.1 < 1 < min(expected[1:])  # the bias was there to be seen


def test_facts_as_text_stand_where_the_template_has_its_fact(answerer, plain_model):
    """Twelve facts before each cloze, run once for all of them: as one text each through the plain model."""
    facts = tuple(f"The town of Ostrava{number} lies in Province {number}" for number in range(12))
    clozes = ["The town of Ostrava7 lies in", "The town of Ostrava11 lies in", "Ostrava2 is in"]
    asks = [Ask(cloze, candidates=("Province 7", "Province 11"), facts=facts) for cloze in clozes]
    beginning = ".\n".join(facts) + ".\n"
    for cloze, answer in zip(clozes, answerer.answer(asks), strict=True):
        expected = [plain_nll(plain_model, beginning + cloze, f" Province {number}") for number in (7, 11)]
        assert answer.nll == pytest.approx(expected, abs=TOLERANCE)


def test_a_fact_as_text_is_an_exact_recall_without_bias(answerer, codec):
    sentence = "The caretaker of the mill is Ines Obradovic"
    query, candidates = "Who takes care of the mill?", ("Ines Obradovic", "nobody")
    recalled = Ask(query, ANSWER, candidates, condition=condition(codec, FactText(sentence)))
    read, told = answerer.answer([recalled, Ask(query, ANSWER, candidates, facts=(sentence,))])
    assert read.nll == pytest.approx(told.nll, abs=TOLERANCE)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(answerer):
    with pytest.raises(TextTooLong) as caught:
        answerer.answer([Ask("a " * 9000, max_tokens=92)])
    assert caught.value.args[2] == 8192 - 92
