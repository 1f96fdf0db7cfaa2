"""The memory inside the loss: our algebra in a form that gradients pass through (paper, eqs. 3-4).

M = (Cov + lambda I)^-1 H with Cov = W^T W and H = W^T Z, as the service solves it; written here as
W^T (W W^T + lambda I)^-1 Z, the same matrix by the push-through identity, because an episode has fewer rows than
addresses. Dimension legend: N rows of an episode, Q queries, K addresses, C latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def write(addresses: Tensor, latents: Tensor, ridge: float) -> Tensor:
    """Addresses (N, K) and latents (N, C) to the memory M (K, C). Differentiable in both; in their precision.

    `ridge` is lambda, > 0, in units of the squared length of an address. Raises: ValueError for shapes that do not fit.
    """
    if addresses.ndim != 2 or latents.ndim != 2 or len(addresses) != len(latents):
        raise ValueError(f"addresses {tuple(addresses.shape)} and latents {tuple(latents.shape)} do not fit")
    if ridge <= 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    gram = addresses @ addresses.T
    gram = gram + ridge * torch.eye(len(addresses), dtype=gram.dtype, device=gram.device)
    return addresses.T @ torch.cholesky_solve(latents, torch.linalg.cholesky(gram))


def read(addresses: Tensor, memory: Tensor) -> Tensor:
    """Addresses (Q, K) and a memory (K, C) to readouts (Q, C): z = w M."""
    if addresses.ndim != 2 or memory.ndim != 2 or addresses.shape[1] != memory.shape[0]:
        raise ValueError(f"addresses {tuple(addresses.shape)} and memory {tuple(memory.shape)} do not fit")
    return addresses @ memory


def quantise(latents: Tensor, scale: float) -> Tensor:
    """What the service stores: integers of at most 127, over `scale`. Gradients pass straight through."""
    stored = (latents * scale).round().clamp(-127, 127) / scale
    return latents + (stored - latents).detach()


def weights_divergence(addresses: Tensor, deviation: float) -> Tensor:
    """KL(N(w, s^2 I) || N(0, I)) of reading weights w (N, K), a mean over N and K (the paper sums over K), in nats."""
    variance = torch.tensor(deviation**2, dtype=addresses.dtype, device=addresses.device)
    return 0.5 * (variance + addresses.square() - 1 - variance.log()).mean()
