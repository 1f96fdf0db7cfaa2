"""The paper's memory as a row of the tables: least squares, whatever the path that led there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.evaluation.memories import whole
from jobs.evaluation.paper_memory import RIDGE, PaperMemory
from memory_actor.types import FactText
from tests.evaluation_lab import CONFIG, FAR, KEY_SIZE, LONG, NEAR, facts_of, key_of, small_lab

K, C = 64, CONFIG.latent_size
ADDRESSINGS = ["pinv", "gaussian"]


@pytest.fixture
def lab(codec):
    return small_lab(codec)


def keys_of(facts) -> np.ndarray:
    return np.array([key_of(fact.prompt) for fact in facts]).astype(np.float16)


def least_squares(memory: PaperMemory, facts, codec) -> torch.Tensor:
    """M (K, C) that minimises |Z - W M|^2 + RIDGE |M|^2, by LAPACK's QR of the stacked system."""
    weights = memory.addresses(keys_of(facts))
    values = torch.from_numpy(codec.encode(facts).latents.astype(np.float64))
    system = torch.cat([weights, RIDGE**0.5 * torch.eye(K, dtype=torch.float64)])
    target = torch.cat([values, torch.zeros(K, C, dtype=torch.float64)])
    return torch.linalg.lstsq(system, target, driver="gels").solution


def off(memory: PaperMemory, facts, solution: torch.Tensor) -> float:
    """The largest difference of a readout from what that solution gives at the facts' own keys."""
    keys = keys_of(facts)
    return float((memory.read(keys) - memory.addresses(keys) @ solution).abs().max())


@pytest.mark.parametrize("addressing", ADDRESSINGS)
@pytest.mark.parametrize("count", [20, 300])
def test_reads_are_the_ridge_solution_of_everything_written(lab, codec, addressing, count):
    """Below and beyond K facts, written in blocks: 1e-8 is float64's error at a condition of 1e6 times the codes."""
    facts = facts_of(count)
    memory = PaperMemory(lab, addressing, K)
    memory.write(facts)
    assert off(memory, facts, least_squares(memory, facts, codec)) < 1e-8


@pytest.mark.parametrize("addressing", ADDRESSINGS)
def test_one_by_one_or_in_blocks_is_the_same_memory(lab, addressing):
    facts = facts_of(90)
    at_once, one_by_one = PaperMemory(lab, addressing, K), PaperMemory(lab, addressing, K)
    at_once.write(facts)
    for fact in facts:
        one_by_one.write([fact])
    assert float((at_once.read(keys_of(facts)) - one_by_one.read(keys_of(facts))).abs().max()) < 1e-8


@pytest.mark.parametrize("addressing", ADDRESSINGS)
def test_forgetting_is_never_having_written_with_unknown_in_its_place(lab, codec, addressing):
    """alpha = -1 then +1 "unknown" is the least squares fit of the others and "unknown". Leverage is below one here:

    with the Gaussian filter the forgotten share their slot with others, with the pseudo-inverse N > D.
    """
    facts = facts_of(300)
    memory = PaperMemory(lab, addressing, K)
    memory.write(facts)
    gone = [3, 77, 290]
    memory.forget(gone)
    left = [FactText(fact.prompt, "unknown") if i in gone else fact for i, fact in enumerate(facts)]
    assert off(memory, left, least_squares(memory, left, codec)) < 1e-7


@pytest.mark.parametrize("addressing", ADDRESSINGS)
def test_few_facts_come_back_whole_and_a_forgotten_one_says_unknown(lab, codec, addressing):
    """As in the paper's Table 4 below capacity: the forgotten at 0, the others at 1."""
    facts = facts_of(30)
    memory = PaperMemory(lab, addressing, K)
    memory.write(facts)
    prompts = [fact.prompt for fact in facts]
    found = memory.recall(prompts)
    assert [one.index for one in found] == list(range(30))
    assert all(whole(one, fact, codec) for one, fact in zip(found, facts, strict=True))
    memory.forget([8])
    found = memory.recall(prompts)
    assert [whole(one, fact, codec) for one, fact in zip(found, facts, strict=True)] == [i != 8 for i in range(30)]
    assert whole(found[8], FactText(facts[8].prompt, "unknown"), codec)


def test_a_linear_memory_holds_no_more_independent_facts_than_a_key_has_numbers(lab, codec):
    """The pseudo-inverse's addresses of 60 keys span D = 48 dimensions although K = 64."""
    memory = PaperMemory(lab, "pinv", K)
    assert int(torch.linalg.matrix_rank(memory.addresses(keys_of(facts_of(60))))) == KEY_SIZE


def test_the_gaussian_filter_is_equations_7_and_8(lab):
    """A stored prompt is addressed one-hot (sigma = 0); any other key by the equations as they stand, in a loop."""
    facts = facts_of(K)
    memory = PaperMemory(lab, "gaussian", K)
    memory.write([*facts, *facts_of(10, start=200)])
    assert torch.equal(memory.addresses(keys_of(facts)), torch.eye(K, dtype=torch.float64))
    rows = keys_of(facts).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for query in (NEAR + facts[5].prompt, FAR + facts[9].prompt, "Who is it?"):
        key = key_of(query).astype(np.float16)
        z = key.astype(np.float64) / np.linalg.norm(key.astype(np.float64))
        squared = np.array([((z - row) ** 2).sum() for row in rows])
        expected = np.exp(-squared / (2 * 1e-3 * squared.min()))
        found = memory.addresses(key[None])[0].numpy()
        assert np.abs(found - expected / expected.sum()).max() < 1e-4  # the filter magnifies float32 norms 1000 times


@pytest.mark.parametrize("addressing", ADDRESSINGS)
def test_the_detector_decides_on_the_query_alone(lab, addressing):
    facts = facts_of(30)
    memory = PaperMemory(lab, addressing, K)
    memory.write(facts)
    near, far, two = memory.recall([NEAR + facts[5].prompt, FAR + facts[5].prompt, f"Else.\n{facts[6].prompt}"])
    assert (near.index, near.score) == (5, pytest.approx(0.9, abs=2e-3))
    assert near.condition is not None
    assert (far.index, far.condition) == (None, None)
    assert two.index == 6


def test_of_several_keys_the_nearest_addresses_the_memory(lab, codec):
    """A query whose second line is a stored prompt reads as that prompt does."""
    facts = facts_of(30)
    memory = PaperMemory(lab, "pinv", K)
    memory.write(facts)
    (found,) = memory.recall([f"Something else first.\n{facts[6].prompt}"])
    assert whole(found, facts[6], codec)


def test_a_fact_of_two_rows_is_left_out_and_counted(lab, codec):
    """It changes nothing for the others, and recalls nothing itself."""
    facts = facts_of(20)
    memory, without = PaperMemory(lab, "pinv", K), PaperMemory(lab, "pinv", K)
    memory.write([*facts[:10], LONG, *facts[10:]])
    without.write(facts)
    assert memory.skipped == 1
    assert float((memory.read(keys_of(facts)) - without.read(keys_of(facts))).abs().max()) < 1e-9
    assert memory.recall([LONG.prompt])[0].condition is None


def test_rescaled_readouts_are_as_long_as_what_was_written(lab):
    facts = facts_of(300)
    memory = PaperMemory(lab, "pinv", K, rescale=True)
    memory.write(facts)
    written = np.mean([np.linalg.norm(one) for one in lab.codec.encode(facts).latents.astype(float)])
    assert np.allclose(memory.read(keys_of(facts)).norm(dim=1), written)


def test_clearing_starts_over(lab, codec):
    memory = PaperMemory(lab, "gaussian", K)
    memory.write(facts_of(80))
    memory.clear()
    assert memory.recall([facts_of(1)[0].prompt])[0].index is None
    memory.write(facts_of(5, start=500))
    found = memory.recall([facts_of(5, start=500)[2].prompt])[0]
    assert found.index == 2
    assert whole(found, facts_of(5, start=500)[2], codec)
