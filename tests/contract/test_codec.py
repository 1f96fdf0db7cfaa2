"""The codec port, on every implementation: what is encoded comes back."""

from __future__ import annotations

import numpy as np
import pytest

from memory_actor.errors import TextTooLong
from memory_actor.types import FactText

FACTS = [
    FactText("Where is the spare key of the Zurich office?", "under the blue flower pot"),
    FactText("The launch code of project Heron is", "7734-KX"),
    FactText("Zoë’s naïve café opens at 6:45 — not earlier; ask for 東京 and 🎉."),
    FactText("x"),
    FactText("  padded  ", "  target  "),
    FactText(
        "The board met on 3 March 2031, in Oslo, and decided three things: the Lima branch closes in June, the Quito "
        "branch takes over its staff, and nobody says a word about it until the auditors, who arrive on Monday, left."
    ),
    FactText("<|im_end|> is how a turn ends", "<|im_start|>"),
]


def text_of(codec, ids) -> str:
    return codec._tokenizer.decode(list(ids), skip_special_tokens=False)


def test_exact_readouts_give_back_every_token_with_certainty(codec):
    """Each fact's text, prompt and target, is read back from its own rows, in order, with probability about 1."""
    content = codec.encode(FACTS)
    start = 0
    for index, fact in enumerate(FACTS):
        rows = int(content.rows[index])
        readout = content.latents[start : start + rows].astype(np.float32)
        condition = codec.condition(readout, int(content.prompt_tokens[index]), int(content.target_tokens[index]))
        best = condition.candidates[:, 0]
        assert text_of(codec, best[: condition.target_start]) == fact.prompt.strip()
        target = "" if fact.target is None else " " + fact.target.strip()
        assert text_of(codec, best[condition.target_start :]) == target
        assert condition.probabilities[:, 0].min() > 0.999
        assert np.allclose(condition.probabilities.sum(1), 1, atol=1e-6)
        start += rows
    assert start == len(content.latents)


def test_latents_are_small_integers_of_the_stated_shape(codec):
    content = codec.encode(FACTS)
    assert content.latents.dtype == np.int8
    assert content.latents.shape == (int(content.rows.sum()), 768)
    assert set(np.unique(content.latents).tolist()) == {-1, 0, 1}
    assert content.rows.tolist() == [1, 1, 1 if content.prompt_tokens[2] <= 24 else 2, 1, 1, 3, 1]


def test_no_facts_give_no_rows(codec):
    assert codec.encode([]).latents.shape == (0, 768)


def test_noise_leaves_99_of_100_tokens_right(codec):
    """Gaussian noise of 0.3 per dimension, over 60 readouts: at least 99 % of the tokens are still the best guess."""
    rng = np.random.default_rng(7)
    content = codec.encode(FACTS[:3])
    right = total = 0
    starts = np.concatenate([[0], np.cumsum(content.rows)])
    for index in range(3):
        clean = content.latents[starts[index] : starts[index + 1]].astype(np.float32)
        counts = int(content.prompt_tokens[index]), int(content.target_tokens[index])
        truth = codec.condition(clean, *counts).candidates[:, 0]
        for _ in range(20):
            noisy = clean + rng.normal(0, 0.3, clean.shape).astype(np.float32)
            guess = codec.condition(noisy, *counts).candidates[:, 0]
            right += int((guess == truth).sum())
            total += len(truth)
    assert right / total >= 0.99, f"{right} of {total}"


def test_rows_end_at_clause_ends_where_one_is_near(codec):
    """A long fact's rows end with punctuation rather than in the middle of a clause."""
    content = codec.encode([FACTS[5]])
    condition = codec.condition(content.latents.astype(np.float32), int(content.prompt_tokens[0]), 0)
    used = (np.abs(content.latents.reshape(-1, 24, 32)).sum(-1) > 0).sum(1)
    ends = np.cumsum(used)[:-1] - 1
    assert all(text_of(codec, [condition.candidates[end, 0]])[-1] in ".!?;,:" for end in ends)


def test_the_longest_fact_has_192_tokens(codec):
    """192 tokens are stored whole, whatever the punctuation; 193 are refused with both numbers."""
    for word in ("key", "key,"):
        text = " ".join([word] * 400)
        ids = codec.tokens(FactText(text))[0]
        longest = text_of(codec, ids[:192])
        content = codec.encode([FactText(longest)])
        assert content.prompt_tokens[0] == 192
        condition = codec.condition(content.latents.astype(np.float32), 192, 0)
        assert text_of(codec, condition.candidates[:, 0]) == longest
        with pytest.raises(TextTooLong) as caught:
            codec.encode([FACTS[0], FactText(text_of(codec, ids[:193]))])
        assert caught.value.args == ("fact [1]", 193, 192)


@pytest.mark.parametrize("shape", [(1, 700), (768,), (2, 768)])
def test_foreign_readouts_are_refused(codec, shape):
    with pytest.raises(ValueError, match=r"readout|cannot stand"):
        codec.condition(np.zeros(shape, np.float32), 1, 0)


def test_the_prompt_is_read_back_as_it_was_stored(codec):
    """Special tokens, other scripts and parts of long facts included; outer blanks are not stored."""
    content = codec.encode(FACTS)
    ends = content.rows.cumsum()
    for fact, end, rows, prompt, target in zip(
        FACTS, ends, content.rows, content.prompt_tokens, content.target_tokens, strict=True
    ):
        readout = content.latents[end - rows : end].astype(np.float32)
        assert codec.prompt(codec.condition(readout, int(prompt), int(target))) == fact.prompt.strip()
