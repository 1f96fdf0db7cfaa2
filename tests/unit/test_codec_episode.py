"""The memory inside the loss: the service's memory, with gradients."""

from __future__ import annotations

import pytest
import torch

from jobs.codec.episode import quantise, read, weights_divergence, write
from memory_actor.episodic_memory import SufficientStatistics, solve


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_it_is_the_memory_that_the_service_solves(rows):
    """M = (Cov + lambda I)^-1 H, for fewer rows than addresses and for more."""
    addresses, latents = drawn(rows, 8), drawn(rows, 6, seed=1)
    expected = torch.linalg.solve(
        addresses.T @ addresses + 0.1 * torch.eye(8, dtype=torch.float64), addresses.T @ latents
    )
    assert torch.allclose(write(addresses, latents, 0.1), expected, atol=1e-10)
    sums = SufficientStatistics.zeros(8, 6)
    whole, ints = (addresses * 20).round(), (latents * 20).round()
    sums.write_(whole.to(torch.int8), ints.to(torch.int8))
    assert torch.allclose(write(whole, ints, 2.0), solve(sums, 2.0).double(), atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    """Of readouts with respect to addresses written, latents written and addresses read."""
    addresses, latents, queries = (
        value.requires_grad_() for value in (drawn(3, 6), drawn(3, 4, seed=1), drawn(2, 6, seed=2))
    )
    assert torch.autograd.gradcheck(lambda a, z, q: read(q, write(a, z, 0.1)), (addresses, latents, queries))


def test_what_is_written_is_read_back():
    """With fewer rows than addresses and a small ridge, every latent comes back."""
    addresses, latents = drawn(6, 32), drawn(6, 10, seed=1)
    assert torch.allclose(read(addresses, write(addresses, latents, 1e-8)), latents, atol=1e-6)


def test_quantised_values_are_the_services_and_gradients_pass():
    latents = torch.tensor([[0.26, -3.0, 100.0]], requires_grad=True)
    stored = quantise(latents, 2.0)
    assert stored.tolist() == [[0.5, -3.0, 63.5]]
    stored.sum().backward()
    assert latents.grad.tolist() == [[1.0, 1.0, 1.0]]


def test_divergence_of_the_prior_itself_is_nothing():
    assert float(weights_divergence(torch.zeros(3, 8), 1.0)) == pytest.approx(0.0)
    assert float(weights_divergence(torch.ones(3, 8), 1.0)) == pytest.approx(0.5)  # half a nat for each weight of 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        write(drawn(3, 6), drawn(2, 4), 0.1)
    with pytest.raises(ValueError, match="ridge must be above 0"):
        write(drawn(3, 6), drawn(3, 4), 0.0)
    with pytest.raises(ValueError, match="do not fit"):
        read(drawn(3, 6), drawn(5, 4))
