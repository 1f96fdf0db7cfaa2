"""Training of the scope encoder, on a tiny one: the loss falls, and a stopped run goes on as if it had not stopped."""

from __future__ import annotations

import pytest
import torch

from jobs.scope_domains import Templates
from jobs.scope_pairs import Mix, PairSource
from jobs.scope_relations import World
from jobs.scope_training import ScopeTrainer, TrainingPlan, scope_loss
from tests.tiny_bert import tiny_bert

MIX = Mix(world_blocks=0, domain_blocks=2, common_blocks=1, strangers=0, front_share=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def trainer(folder, **changes) -> ScopeTrainer:
    source = PairSource(World((), ()), Templates(), ())
    plan = TrainingPlan(
        **{"steps": 14, "mix": MIX, "bfloat16": False, "learning_rate": 3e-3, "warmup_steps": 1} | changes
    )
    return ScopeTrainer(folder, source, plan)


def test_the_loss_falls(folder):
    one = trainer(folder)
    losses = []
    for _ in one.run(lambda _share, loss: losses.append(loss)):
        pass
    assert len(losses) == 14
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
    assert one.progress >= 1


def test_a_resumed_run_is_the_same_run(folder, tmp_path):
    straight = trainer(folder)
    for _ in range(4):
        straight.step()
    stopped = trainer(folder)
    stopped.step(), stopped.step()
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = trainer(folder)
    resumed.resume(tmp_path / "checkpoint.pt")
    resumed.step(), resumed.step()
    assert resumed.steps_done == 4
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


def test_only_what_was_chosen_is_trained(folder):
    """`head` leaves everything but the last output projection as it was; embeddings are never trained."""
    one = trainer(folder, layers="head")
    before = {name: parameter.clone() for name, parameter in one.model.named_parameters()}
    one.step()
    changed = {name for name, parameter in one.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed
    assert all(name.startswith("encoder.layer.1.output.") for name in changed)
    assert changed <= one.tensors().keys()


def test_the_loss_of_a_perfect_encoder_is_nothing():
    """Positives at cosine 1, negatives at -1: nothing left to learn. Exchanged, the loss is large."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    agree = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]).bool()
    differ = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    assert scope_loss(keys, agree, differ, TrainingPlan()) < 1e-3
    wrong = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert scope_loss(wrong, agree, differ, TrainingPlan()) > 10
