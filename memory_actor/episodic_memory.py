"""The memory, exactly: sufficient statistics of everything written, and the memory matrix derived from them.

Das et al. 2024 (arXiv:2403.11901), sec. 3, eqs. (3)-(4), write with alpha = +1 and forget with alpha = -1:

    Cov' = Cov + alpha W^T W          M' = M + alpha Cov'^-1 W^T (Z - W M)

Multiplied through by Cov', the second line is an addition, H' := Cov' M' = H + alpha W^T Z. So the state is
(Cov, H), and M = (Cov + lambda I)^-1 H is a cache. W and Z are small integers and the sums are integers below 2^53
held in float64, so each addition is exact: associative, commutative, invertible to the bit, whatever the batch
size, order, thread count, BLAS kernel or device.

Dimension legend: N rows, K addresses, C latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EXACT_INTEGER_MAX = 2**53  # float64 holds every integer up to here


@dataclass(slots=True)
class SufficientStatistics:
    """cov (K, K) = sum of w^T w and cross (K, C) = sum of w^T z, integers in float64; rows = how many were added.

    `cross` is the H of the equations above.
    """

    cov: Tensor
    cross: Tensor
    rows: int = 0

    @classmethod
    def zeros(cls, address_size: int, latent_size: int) -> SufficientStatistics:
        """The statistics of an empty memory, on the host. NumPy's zeros take no memory before they are written to."""
        return cls(
            torch.from_numpy(np.zeros((address_size, address_size))),
            torch.from_numpy(np.zeros((address_size, latent_size))),
        )

    def copy(self) -> SufficientStatistics:
        return SufficientStatistics(self.cov.clone(), self.cross.clone(), self.rows)

    def write_(self, addresses: Tensor, latents: Tensor) -> None:
        """Add N rows in place, alpha = +1. addresses W (N, K) int8, latents Z (N, C) int8. O(N K (K + C))."""
        self._update_(addresses, latents, +1)

    def forget_(self, addresses: Tensor, latents: Tensor) -> None:
        """Subtract N rows in place, alpha = -1: the exact inverse of `write_` of the same rows."""
        self._update_(addresses, latents, -1)

    def merge_(self, other: SufficientStatistics, alpha: int = 1) -> None:
        """Add (or, with alpha = -1, subtract) everything `other` holds, in place."""
        if other.cov.shape != self.cov.shape or other.cross.shape != self.cross.shape:
            raise ValueError(f"cannot merge {_shapes(other)} into {_shapes(self)}")
        self.cov.add_(other.cov, alpha=alpha)
        self.cross.add_(other.cross, alpha=alpha)
        self.rows += alpha * other.rows

    def _update_(self, addresses: Tensor, latents: Tensor, alpha: int) -> None:
        check_rows(addresses, latents, self.cov.shape[0], self.cross.shape[1])
        w = addresses.to("cpu", torch.float64)  # (N, K)
        z = latents.to("cpu", torch.float64)  # (N, C)
        if w.shape[0] == 1:  # a rank-one update is bound by memory bandwidth; addr_ skips the matmul set-up
            self.cov.addr_(w[0], w[0], alpha=alpha)
            self.cross.addr_(w[0], z[0], alpha=alpha)
        else:
            self.cov.addmm_(w.T, w, alpha=alpha)
            self.cross.addmm_(w.T, z, alpha=alpha)
        self.rows += alpha * w.shape[0]


def merge(first: SufficientStatistics, second: SufficientStatistics) -> SufficientStatistics:
    """The statistics of a memory that was written both contents, in any order."""
    merged = first.copy()
    merged.merge_(second)
    return merged


def solve(statistics: SufficientStatistics, ridge: float, device: torch.device | str = "cpu") -> Tensor:
    """M (K, C) float32 = (Cov + ridge I)^-1 H by Cholesky in float64; `ridge` in the units of Cov, > 0.

    One O(K^3 / 3 + K^2 C) solve; the ridge makes it well posed for fewer than K facts, where eq. (4) is singular.
    """
    if ridge <= 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    regularised = statistics.cov.to(device, copy=True)
    regularised.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(regularised)
    return torch.cholesky_solve(statistics.cross.to(device), factor).to(torch.float32)


def read(memory: Tensor, addresses: Tensor, latent_scale: int = 1) -> Tensor:
    """Readouts (N, C) float32 = W M / latent_scale, for addresses W (N, K) int8 and memory M (K, C)."""
    if addresses.ndim != 2 or addresses.shape[1] != memory.shape[0]:
        raise ValueError(f"addresses must be (N, {memory.shape[0]}), got {tuple(addresses.shape)}")
    return addresses.to(memory.device, memory.dtype) @ memory / latent_scale


def read_many(memories: Tensor, addresses: Tensor, latent_scale: int = 1) -> Tensor:
    """Readouts (B, C) of B memories (B, K, C) at one address each, W (B, K): one batched product over tenants."""
    if memories.ndim != 3 or addresses.shape != memories.shape[:2]:
        raise ValueError(f"need (B, K, C) and (B, K), got {tuple(memories.shape)} and {tuple(addresses.shape)}")
    weights = addresses.to(memories.device, memories.dtype).unsqueeze(1)
    return torch.bmm(weights, memories).squeeze(1) / latent_scale


def leverage(statistics: SufficientStatistics, addresses: Tensor, ridge: float) -> Tensor:
    """The share of each of N addresses that lies in what was written, (N,) float64 in [0, 1]: a soft scope score.

    Close to 1 where the memory has seen this direction, close to 0 where it has not.
    """
    regularised = statistics.cov.clone()
    regularised.diagonal().add_(ridge)
    w = addresses.to("cpu", torch.float64)
    solved = torch.cholesky_solve(w.T, torch.linalg.cholesky(regularised))  # (K, N)
    squared = w.square().sum(dim=1).clamp_min(1.0)
    # 1 - ridge w A^-1 w^T / |w|^2 is the share of w that lies in what was written.
    return 1.0 - ridge * (w * solved.T).sum(dim=1) / squared


def check_rows(addresses: Tensor, latents: Tensor, address_size: int, latent_size: int) -> None:
    """Raise ValueError unless addresses are (N, K) int8 and latents (N, C) int8."""
    if addresses.ndim != 2 or addresses.shape[1] != address_size or addresses.dtype != torch.int8:
        raise ValueError(f"addresses must be int8 (N, {address_size}), got {addresses.dtype} {tuple(addresses.shape)}")
    if latents.shape != (addresses.shape[0], latent_size) or latents.dtype != torch.int8:
        raise ValueError(
            f"latents must be int8 ({addresses.shape[0]}, {latent_size}), got {latents.dtype} {tuple(latents.shape)}"
        )


def _shapes(statistics: SufficientStatistics) -> str:
    return f"(Cov {tuple(statistics.cov.shape)}, H {tuple(statistics.cross.shape)})"
