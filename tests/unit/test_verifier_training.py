"""Training of the scope verifier, on a tiny one: the right pairs, a falling loss, a run that can be stopped."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from jobs.scope_domains import Templates
from jobs.scope_pairs import Mix, PairSource
from jobs.scope_relations import World
from jobs.verifier_training import VerifierPlan, VerifierTrainer, draw_pairs
from tests.tiny_bert import tiny_bert

MIX = Mix(world_blocks=0, domain_blocks=2, common_blocks=0, strangers=2, front_share=0.0)
FRONTS = ("The sky was blue that day.", "Nobody came to the meeting.")
PLAN = VerifierPlan(steps=12, mix=MIX, bfloat16=False, learning_rate=3e-3, warmup_steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def source():
    return PairSource(World((), ()), Templates(), FRONTS)


def test_right_pairs_are_about_one_thing_and_wrong_ones_are_not(source):
    """Every right pair is of one subject and relation; of wrong ones the nearest are taken, never a right one."""
    rng = random.Random(3)
    statements = source.batch(random.Random(3), MIX)
    meant = {one.text: (one.subject, one.relation) for one in statements}
    noise = np.random.default_rng(0)
    pairs, right = draw_pairs(source, rng, PLAN, lambda texts: noise.standard_normal((len(texts), 4)))
    assert sum(right) == 16  # two blocks of 4 subjects x 2 relations
    assert len(pairs) > 2.5 * 16
    for (query, prompt), is_right in zip(pairs, right, strict=True):
        assert (meant[query] == meant[prompt]) == is_right
    asked = {query for query, _ in pairs}
    assert set(FRONTS) & asked  # strangers are asked, beside wrong prompts only


def test_the_nearest_wrong_prompt_is_a_pair(source):
    """With a finder that places one stored text nearest to everything, most queries meet it."""
    rng = random.Random(5)
    favourite = source.batch(random.Random(5), MIX)[0].text

    def find(texts):
        return np.array([[2.0 if text == favourite else 1.0] for text in texts], np.float32)

    pairs, right = draw_pairs(source, rng, PLAN, find)
    met = [prompt == favourite for (_, prompt), is_right in zip(pairs, right, strict=True) if not is_right]
    assert sum(met) >= 5


def test_the_loss_falls(folder, source):
    one = VerifierTrainer(folder, source, PLAN)
    losses = []
    for _ in one.run(lambda _share, loss: losses.append(loss)):
        pass
    assert len(losses) == 12
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_resumed_run_is_the_same_run(folder, source, tmp_path):
    straight = VerifierTrainer(folder, source, PLAN)
    for _ in range(3):
        straight.step()
    stopped = VerifierTrainer(folder, source, PLAN)
    stopped.step()
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = VerifierTrainer(folder, source, PLAN)
    resumed.resume(tmp_path / "checkpoint.pt")
    resumed.step(), resumed.step()
    for name, tensor in (straight.tensors() | straight.head()).items():
        assert torch.equal(tensor, (resumed.tensors() | resumed.head())[name]), name


def test_layers_segments_and_head_are_trained_and_nothing_else(folder, source):
    """Word embeddings stay, so that only what changed is stored; the encoder that finds the pairs stays too."""
    one = VerifierTrainer(folder, source, PLAN)
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    keys = one.find(["a text"])
    one.step(), one.step()
    changed = {name for name, tensor in one.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("head.") for name in changed)
    assert "model.embeddings.token_type_embeddings.weight" in changed
    assert "model.embeddings.word_embeddings.weight" not in changed
    assert {name.removeprefix("model.") for name in changed if name.startswith("model.")} <= one.tensors().keys()
    assert np.array_equal(keys, one.find(["a text"]))
