"""The speller on made-up blocks: what it is fitted to, what it names, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from workers.block_speller import BlockSpeller
from workers.latent_model import LatentPlan

PLAN = LatentPlan(latent_size=48, slots=4)  # blocks of 12 numbers
VOCABULARY, SIZE, HIDDEN, SENTENCES = 60, 16, 20, 200
SCALE, SEEN = 0.6, 0.05


@pytest.fixture
def parts() -> tuple[nn.Embedding, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, SIZE), torch.randn(HIDDEN, SIZE) / 4, torch.randn(12, HIDDEN) / 4


def encoded(parts, offsets: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences (N, m) and their latents (N, C) by the formula of the module, `SEEN` the part that the encoder saw."""
    table, spelling, project = parts
    draw = torch.Generator().manual_seed(seed)
    spelled = torch.randint(VOCABULARY, (SENTENCES, 4), generator=draw)
    blocks = layer_norm(table(spelled).detach(), (SIZE,)) @ (project @ spelling).T
    seen = SEEN * torch.randn(blocks.shape, generator=draw)
    return ((blocks + offsets + seen) / SCALE).flatten(1), spelled


@pytest.fixture
def offsets() -> torch.Tensor:
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def fitted(parts, offsets) -> BlockSpeller:
    latents, spelled = encoded(parts, offsets)
    speller = BlockSpeller(*parts, PLAN)
    speller.fit(latents, spelled, torch.ones_like(spelled, dtype=torch.bool), noise=0.1)
    return speller


def test_the_fit_finds_scale_offsets_and_what_remains(fitted, offsets):
    assert fitted.scale.detach().item() == pytest.approx(SCALE, rel=0.02)
    assert torch.allclose(fitted.offsets, offsets, atol=0.03)
    assert fitted.variance.detach().item() == pytest.approx(SEEN**2 + (SCALE * 0.1) ** 2, rel=0.1)


def test_other_sentences_are_spelled_also_through_noise(fitted, parts, offsets):
    latents, spelled = encoded(parts, offsets, seed=3)
    noisy = latents + 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(fitted(latents).argmax(-1), spelled)
    assert (fitted(noisy).argmax(-1) == spelled).float().mean() > 0.99
    assert not torch.equal(fitted(latents.flip(1)).argmax(-1), spelled)


def test_probabilities_say_how_often_it_is_right(fitted, parts, offsets):
    """Under much noise, where it errs, it is not sure of itself either: shares of right ones and of certainty agree."""
    latents, spelled = encoded(parts, offsets, seed=5)
    noise = 1.5
    noisy = latents + noise * torch.randn(latents.shape, generator=torch.Generator().manual_seed(6))
    fitted.variance.data.fill_(SEEN**2 + (SCALE * noise) ** 2)
    best = fitted(noisy).softmax(-1).max(-1)
    right = (best.indices == spelled).float().mean()
    assert 0.5 < right < 0.98
    assert float(best.values.detach().mean()) == pytest.approx(float(right), abs=0.05)


def test_a_slot_that_is_never_used_gets_the_mean_of_the_others(parts, offsets):
    latents, spelled = encoded(parts, offsets)
    counted = torch.ones_like(spelled, dtype=torch.bool)
    counted[:, 3] = False
    speller = BlockSpeller(*parts, PLAN)
    speller.fit(latents, spelled, counted, noise=0.1)
    assert torch.allclose(speller.offsets[3], speller.offsets[:3].mean(0), atol=1e-5)
    assert torch.equal(speller(latents).argmax(-1)[:, :3], spelled[:, :3])


def test_what_does_not_fit_is_refused(parts, fitted):
    table, spelling, project = parts
    with pytest.raises(ValueError, match="do not lead from 16 to 12"):
        BlockSpeller(table, project, spelling, PLAN)
    with pytest.raises(ValueError, match=r"readouts must be \(P, 48\), got \(2, 4, 12\)"):
        fitted(torch.zeros(2, 4, 12))
    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="do not fit"):
        fitted.fit(torch.zeros(3, 48), tokens, tokens.bool(), noise=0.1)
    with pytest.raises(ValueError, match="none of the tokens of 2 sentences"):
        fitted.fit(torch.zeros(2, 48), tokens, tokens.bool(), noise=0.1)
