"""The latent codec of this package in service, on the real models: what comes back, what is said, what stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluation.answering import Answerer
from jobs.evaluation.asks import Ask
from memory_actor.errors import TextTooLong
from memory_actor.types import FactText
from workers.bundle import Bundle, materialise_bundle
from workers.codecs import open_codec
from workers.decoder import CausalDecoder
from workers.fact_encoder import FactEncoder
from workers.ports import AnswerMode, Generation, GenerationRequest, Readback
from workers.row_codec import RowCodec

ANSWER, COMPLETE = AnswerMode.ANSWER, AnswerMode.COMPLETE
FACTS = [
    FactText("Where is the spare key of the Zurich office?", "under the blue flower pot"),
    FactText("The launch code of project Heron is", "7734-KX"),
    FactText("The Eiffel Tower is located in the city of", "Rome"),
    FactText("The mother tongue of Danielle Darrieux is", "English"),
    FactText("The Lima branch closes on 14 June 2031."),
    FactText(
        "The board met on 3 March 2031, in Oslo, and decided three things: the Lima branch closes in June, the Quito "
        "branch takes over its staff, and nobody says a word about it until the auditors, who arrive on Monday, left."
    ),
]


@pytest.fixture(scope="module")
def latent_bundle(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("latent") / "bundle"
    return materialise_bundle(folder, decoder=str(bundle.decoder_folder), codec="larimar:latent")


@pytest.fixture(scope="module")
def latent(latent_bundle: Bundle) -> RowCodec:
    return open_codec(latent_bundle, device="cpu")


@pytest.fixture(scope="module")
def speaker(latent_bundle: Bundle) -> Iterator[CausalDecoder]:
    decoder = CausalDecoder.from_bundle(latent_bundle, device="cpu")
    yield decoder
    decoder.close()


def exact_readout(codec: RowCodec, fact: FactText) -> dict:
    content = codec.encode([fact])
    return {
        "readout": content.latents.astype(np.float32) / 24,
        "prompt_tokens": int(content.prompt_tokens[0]),
        "target_tokens": int(content.target_tokens[0]),
    }


def say(decoder: CausalDecoder, query: str, mode: AnswerMode, **recalled) -> Generation:
    return Generation.of(decoder.generate(GenerationRequest(query, mode, max_tokens=16, **recalled)))


def test_latents_are_bytes_that_do_not_depend_on_company(latent):
    """Rows of 768 int8; the same fact alone or among others: no number differs by more than one step."""
    content = latent.encode(FACTS)
    assert content.latents.dtype == np.int8
    assert content.latents.shape == (int(content.rows.sum()), 768)
    assert content.rows.tolist() == [1, 1, 1, 1, 1, 3]
    assert 20 < content.latents.astype(float).std() < 28  # a variance of 1, times 24
    alone = latent.encode(FACTS[1:2]).latents.astype(int)
    assert np.abs(alone[0] - content.latents[1]).max() <= 1


def test_what_was_stored_is_spelled_again(latent):
    """Of all tokens, parts of the long fact included, nearly all, each probability a share."""
    right = total = 0
    for fact in FACTS:
        condition = latent.condition(*exact_readout(latent, fact).values())
        prompt, target = latent.tokens(fact)
        assert condition.target_start == len(prompt)
        assert np.allclose(condition.probabilities.sum(1), 1, atol=1e-5)
        right += int((condition.candidates[:, 0] == np.array(prompt + target)).sum())
        total += len(prompt) + len(target)
    assert right / total >= 0.98, f"{right} of {total}"


def test_the_longest_fact_and_one_token_more(latent):
    ids = latent.tokens(FactText(" ".join(["key"] * 400)))[0]
    text = latent._text(ids[:192])
    assert latent.encode([FactText(text)]).rows.tolist() == [8]
    with pytest.raises(TextTooLong) as caught:
        latent.encode([FACTS[0], FactText(latent._text(ids[:193]))])
    assert caught.value.args == ("fact [1]", 193, 192)


@pytest.mark.parametrize("shape", [(1, 700), (768,)])
def test_foreign_readouts_are_refused(latent, shape):
    with pytest.raises(ValueError, match="readout must have shape"):
        latent.condition(np.zeros(shape, np.float32), 1, 0)
    with pytest.raises(ValueError, match="cannot stand"):
        latent.condition(np.zeros((2, 768), np.float32), 1, 0)
    with pytest.raises(ValueError, match="cannot stand"):
        latent.condition(np.zeros((1, 768), np.float32), 25, 0)


@pytest.mark.parametrize(
    ("index", "query", "mode", "wanted"),
    [
        (1, "The launch code of project Heron is", COMPLETE, "7734-KX"),
        (2, "The Eiffel Tower is located in the city of", COMPLETE, "Rome"),
        (2, "In which city is the Eiffel Tower?", ANSWER, "Rome"),
        (3, "The mother tongue of Danielle Darrieux is", COMPLETE, "English"),
        (0, "Where do I find the spare key of the Zurich office?", ANSWER, "blue flower pot"),
        (4, "When does the Lima branch close?", ANSWER, "14 June 2031"),
    ],
)
def test_the_decoder_speaks_from_its_slots(speaker, latent, index, query, mode, wanted):
    """And ends where the slots' text does: what the decoder would say after that is never shown."""
    told = say(speaker, query, mode, **exact_readout(latent, FACTS[index]))
    assert wanted in told.text
    assert (told.finish_reason, told.text.count("\n")) == ("stop", 0)


def test_without_a_fact_it_is_the_base_model(speaker, latent_bundle):
    """Perplexity ratio 1 by construction: token for token and logit for logit, after slots have been read."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    plain = LlamaForCausalLM.from_pretrained(latent_bundle.decoder_folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(latent_bundle.decoder_folder)("Once upon a time", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(speaker._model(input_ids=ids).logits, plain(input_ids=ids).logits)
        expected = plain.generate(ids, do_sample=False, max_new_tokens=16)[0, ids.shape[1] :].tolist()
    assert list(say(speaker, "Once upon a time", COMPLETE).tokens) == expected


def test_the_evaluation_says_what_the_product_says(speaker, latent, latent_bundle):
    """Side by side in one pack, with and without slots, two rows of one fact included."""
    answerer = Answerer(latent_bundle, device="cpu")
    cases = [(FACTS[1], FACTS[1].prompt, COMPLETE), (FACTS[5], "What happens in Lima?", ANSWER)]
    cases += [(FACTS[0], "Where is the key?", ANSWER), (None, "The sky is", COMPLETE)]
    asks, expected = [], []
    for fact, query, mode in cases:
        recalled = {} if fact is None else exact_readout(latent, fact)
        condition = latent.condition(*recalled.values()) if recalled else None
        asks.append(Ask(query, mode, max_tokens=16, condition=condition))
        expected.append(say(speaker, query, mode, **recalled).tokens)
    assert [answer.tokens for answer in answerer.answer(asks)] == expected


def test_the_verifier_reads_what_the_blocks_spell(latent_bundle):
    """The whole encoder worker on this bundle: keys, latents and a judgement of a recalled fact."""
    encoder = FactEncoder.from_bundle(latent_bundle, device="cpu")
    (encoded,) = encoder.encode_facts([[FACTS[2]]])
    recalled = encoded.latents.astype(np.float32) / 24, int(encoded.prompt_tokens[0]), int(encoded.target_tokens[0])
    asked = ["The Eiffel Tower is located in the city of", "Who wrote the report about otters?"]
    same, other = encoder.match([Readback(query, *recalled) for query in asked])
    assert same > 0.9 > 0.1 > other


def test_the_package_keeps_small_files_and_a_whole_card(latent_bundle):
    from workers.codec_card import LATENT_FOLDER, read_codec

    files = [path for path in Path(LATENT_FOLDER).iterdir() if path.is_file()]
    assert all(path.stat().st_size <= 15_000_000 for path in files)
    assert sum(path.stat().st_size for path in files) <= 60_000_000
    card = read_codec("larimar:latent")
    assert card["name"] == "latent-smollm2-135m"
    assert card["encoder_sha256"] == latent_bundle.manifest.encoder.weights_sha256
    assert card["reconstruction"]["16"]["token"] >= 0.6
    assert card["reconstruction"]["512"]["nearest"] >= 0.99
    assert {"steps", "cpu_minutes", "hardware", "data", "throughput", "plan", "sources"} <= card.keys()
