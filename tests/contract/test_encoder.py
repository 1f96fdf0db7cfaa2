"""The encoder port, on every implementation: keys are unit, independent of company, and never of cut text."""

from __future__ import annotations

import numpy as np
import pytest

from memory_actor.errors import TextTooLong

TEXTS = [
    "Where is the spare key?",
    "The launch code of project Heron is 7734-KX, and only three people know it.",
    "東京 🎉",
    "a",
    "Who runs the Lima branch? " * 15,
]


def test_keys_are_unit_float32(encoder):
    keys = encoder.encode(TEXTS)
    assert keys.shape == (len(TEXTS), 384)
    assert keys.dtype == np.float32
    assert np.allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_keys(encoder):
    assert encoder.encode([]).shape == (0, 384)


def test_a_key_does_not_depend_on_its_company(encoder):
    """Alone, in a batch, in another order: within 1e-5, the tolerance stated by the encoder (order of GEMM sums)."""
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    reverse = encoder.encode(TEXTS[::-1])[::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together - reverse).max() < 1e-5


def test_equal_texts_alone_give_equal_bytes(encoder):
    assert encoder.encode([TEXTS[0]]).tobytes() == encoder.encode([TEXTS[0]]).tobytes()


def test_keys_are_the_models_own(encoder, bundle):
    """The oracle is the model's card: mean over real tokens of the last hidden state, then unit norm."""
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(bundle.encoder_folder)
    model = BertModel.from_pretrained(bundle.encoder_folder).eval()
    with torch.inference_mode():
        for text in TEXTS:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
            assert np.abs(encoder.encode([text])[0] - expected).max() < 1e-5


def test_paraphrases_are_nearer_than_strangers(encoder):
    near, same, far = encoder.encode(["Where is the spare key?", "Where do we keep the spare key?", "Who won in 1998?"])
    assert near @ same > 0.7 > 0.3 > near @ far


def test_long_text_is_refused_with_both_numbers(encoder):
    """254 words of one token and two special tokens fit exactly; one more is refused, and nothing is cut."""
    assert encoder.encode(["key " * 254]).shape == (1, 384)
    with pytest.raises(TextTooLong) as caught:
        encoder.encode(["short", "key " * 255])
    assert caught.value.args == ("text [1]", 257, 256)
