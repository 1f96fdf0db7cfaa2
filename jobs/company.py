"""The processes of one data-parallel run, as one of them sees them. Without torch.distributed, it is alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Company:
    """Alone, nothing is exchanged: `rank` is 0 of `size` 1."""

    @property
    def rank(self) -> int:
        return distributed.get_rank() if self._together else 0

    @property
    def size(self) -> int:
        return distributed.get_world_size() if self._together else 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its mean over all processes, which bring tensors of the same shapes in the same order."""
        if not self._together or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.size
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def of_first(self, value: float) -> float:
        """The value that the process of rank 0 has."""
        if not self._together:
            return value
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        held = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(held, 0)
        return float(held)

    @property
    def _together(self) -> bool:
        return distributed.is_available() and distributed.is_initialized()
