"""The paper's own operations as pure functions, for oracles, comparisons and its experiments. Nothing serves from here.

Das et al. 2024, arXiv:2403.11901. Dimension legend: N facts, K rows of the memory, C latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def one_shot_write(encodings: Tensor, prior: Tensor) -> Tensor:
    """Algorithm 1, write: W_0 = Z M_0^+, M = W_0^+ Z. encodings Z (N, C), prior M_0 (K, C) -> M (K, C).

    The observation noise of the paper is left out: all its inference experiments set it to zero.
    """
    _check_matrix("encodings", encodings, prior.shape[1])
    weights = encodings @ torch.linalg.pinv(prior)  # (N, K)
    memory: Tensor = torch.linalg.pinv(weights) @ encodings
    return memory


def projection_read(queries: Tensor, memory: Tensor) -> Tensor:
    """Algorithm 1, read with sigma_w = 0: W = Z_q M^+, Z_r = W M. queries (N, C), memory (K, C) -> readouts (N, C).

    For N <= K this is the orthogonal projection of the query on the span of the written encodings.
    """
    _check_matrix("queries", queries, memory.shape[1])
    readouts: Tensor = queries @ torch.linalg.pinv(memory) @ memory
    return readouts


def sampled_read(queries: Tensor, memory: Tensor, sigma_w: float, generator: torch.Generator) -> Tensor:
    """Algorithm 1, read with W ~ N(Z_q M^+, sigma_w^2 I). The noise comes from `generator`, never from global state."""
    _check_matrix("queries", queries, memory.shape[1])
    weights: Tensor = queries @ torch.linalg.pinv(memory)
    noise = torch.randn(weights.shape, generator=generator, dtype=weights.dtype, device=weights.device)
    return (weights + sigma_w * noise) @ memory


@dataclass(frozen=True, slots=True)
class RecursiveMemory:
    """State of the sequential recursion: memory M (K, C), covariance Cov (K, K). Functions return a new one."""

    memory: Tensor
    cov: Tensor

    @classmethod
    def empty(cls, address_size: int, latent_size: int, ridge: float) -> RecursiveMemory:
        """M = 0 and Cov = ridge I. The paper starts from W_0^T W_0, which is singular for fewer than K facts."""
        return cls(
            torch.zeros(address_size, latent_size, dtype=torch.float64),
            ridge * torch.eye(address_size, dtype=torch.float64),
        )


def sequential_update(state: RecursiveMemory, weights: Tensor, encodings: Tensor, alpha: int = 1) -> RecursiveMemory:
    """Eqs. (3)-(4): Cov' = Cov + alpha W^T W; M' = M + alpha Cov'^-1 W^T (Z - W M). alpha +1 writes, -1 forgets.

    weights W (N, K), encodings Z (N, C), float64. Raises torch.linalg.LinAlgError when Cov' is singular, which is
    where the paper's forgetting stands for facts of leverage one.
    """
    if alpha not in (1, -1):
        raise ValueError(f"alpha must be +1 (write) or -1 (forget), got {alpha}")
    _check_matrix("weights", weights, state.cov.shape[0])
    _check_matrix("encodings", encodings, state.memory.shape[1])
    cov = state.cov + alpha * weights.T @ weights
    gain: Tensor = torch.linalg.solve(cov, weights.T)  # (K, N)
    return RecursiveMemory(state.memory + alpha * gain @ (encodings - weights @ state.memory), cov)


def replace(state: RecursiveMemory, weights: Tensor, old: Tensor, new: Tensor) -> RecursiveMemory:
    """Forget (w, z_old) and write (w, z_new) at once: M' = M + Cov^-1 W^T (Z_new - Z_old), Cov unchanged.

    The paper's "forget, then write unknown" without passing through the singular point. weights (N, K), old and
    new (N, C).
    """
    _check_matrix("weights", weights, state.cov.shape[0])
    if old.shape != new.shape:
        raise ValueError(f"old and new encodings differ in shape: {tuple(old.shape)} and {tuple(new.shape)}")
    return RecursiveMemory(state.memory + torch.linalg.solve(state.cov, weights.T) @ (new - old), state.cov)


def rescale_readout(readouts: Tensor, norm: float) -> Tensor:
    """Readouts (N, C) scaled to length `norm`: projection shortens them (arXiv:2407.16908 multiplies by 3 to 4)."""
    lengths = readouts.norm(dim=1, keepdim=True).clamp_min(torch.finfo(readouts.dtype).tiny)
    scaled: Tensor = readouts * (norm / lengths)
    return scaled


def _check_matrix(name: str, matrix: Tensor, columns: int) -> None:
    if matrix.ndim != 2 or matrix.shape[1] != columns:
        raise ValueError(f"{name} must be (N, {columns}), got {tuple(matrix.shape)}")
