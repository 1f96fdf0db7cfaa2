"""The cross-encoder and the verifier over it, on a tiny BERT: what a pair scores depends on nothing but the pair."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_bert import tiny_bert
from workers.cross_encoder import TOKENS_MAX, CrossEncoder
from workers.scope_verifier import ScopeVerifier, same_text
from workers.trained_scope import HEAD_FILE

PAIRS = [
    ("Where is the key?", "The spare key is"),
    ("Who?", "The owner of the long boat in the harbour is"),
    ("a", "b"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def network(folder):
    return CrossEncoder(folder).eval()


@torch.inference_mode()
def test_company_and_order_do_not_change_a_logit(network):
    """Padding and the order of passes leave each pair its own logit."""
    together = network.logits(PAIRS * 40)
    alone = torch.cat([network.logits([pair]) for pair in PAIRS])
    assert torch.allclose(together, alone.repeat(40), atol=1e-5)
    assert together.shape == (120,)
    assert network.logits([]).shape == (0,)


@torch.inference_mode()
def test_query_and_prompt_are_told_apart_and_both_are_read(network):
    """Exchanged, or with either text changed, a pair has another logit."""
    query, prompt = PAIRS[0]
    scores = network.logits([(query, prompt), (prompt, query), (query, "The spare tyre is"), ("Where am I?", prompt)])
    assert len({round(float(score), 5) for score in scores}) == 4


@torch.inference_mode()
def test_a_fresh_head_scores_by_the_cosine_of_the_two_means(network, folder):
    """10 cos(u, v) - 6, with u and v the means of hidden states over the query's tokens and the prompt's."""
    ((asked, stored),) = network.tokenize(PAIRS[:1])
    ids = torch.tensor([asked + stored])
    kinds = torch.tensor([[0] * len(asked) + [1] * len(stored)])
    hidden = network.model(input_ids=ids, token_type_ids=kinds).last_hidden_state[0]
    u, v = hidden[: len(asked)].mean(0), hidden[len(asked) :].mean(0)
    expected = 10 * torch.cosine_similarity(u, v, dim=0) - 6
    assert float(network.logits(PAIRS[:1])) == pytest.approx(float(expected), abs=1e-4)


def test_a_long_pair_keeps_all_of_a_query_that_fits(network):
    """Half the positions are the query's; a prompt that does not fit is read from its beginning."""
    ((asked, stored), (short, long)) = network.tokenize([("q" * 400, "p" * 400), ("q" * 10, "p" * 600)])
    assert (len(asked), len(stored)) == (TOKENS_MAX // 2, TOKENS_MAX // 2)
    assert (len(short), len(long)) == (12, TOKENS_MAX - 12)
    with torch.inference_mode():
        assert network.logits([("q" * 400, "p" * 400)]).isfinite().all()


def test_a_stored_head_is_used(folder, tmp_path):
    """With a head file of zeros every pair scores nothing."""
    tiny_bert(tmp_path)
    save_file({"weight": torch.zeros(1, 96), "bias": torch.zeros(1)}, tmp_path / HEAD_FILE)
    assert ScopeVerifier.open(tmp_path, device="cpu").match(PAIRS).tolist() == [0.5] * 3


def test_the_prompt_itself_always_matches(network):
    """White space, case and a full stop do not make another text; a word more does."""
    verifier = ScopeVerifier(network)
    found = verifier.match(
        [("the spare  key is", "The spare key is."), ("The spare key is", "The spare key was"), PAIRS[0]]
    )
    assert found[0] == 1.0
    assert 0 < found[1] < 1
    assert found[2] == pytest.approx(float(torch.sigmoid(network.logits(PAIRS[:1]).detach())), abs=1e-5)
    assert same_text("Ist das\nGRÖSSE?") == same_text("ist das grösse")


def test_of_two_texts_of_a_query_the_better_counts(network):
    """A sentence in front cannot make a query worse than its asked sentence alone."""
    verifier = ScopeVerifier(network)
    asked, prompt = "Where is the key?", "The spare key is"
    whole, part = verifier.match([(f"It rained. {asked}", prompt), (asked, prompt)]).tolist()
    assert verifier.match_queries([f"It rained. {asked}", asked], [prompt] * 2) == pytest.approx(
        [max(whole, part), part]
    )
