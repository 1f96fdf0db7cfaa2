"""Which tokens a readout holds: for each block the nearest of the blocks that the encoder makes of the vocabulary.

Up to a normalisation, block i of a latent is B[v_i] + c_i plus what the encoder saw in the sentence: B[v] the token's
embedding under the encoder's maps, c_i the place's. That last part is small, so the token is the nearest one:

    log p(v | x_i)  ~  -|s x_i - c_i - B[v]|^2 / (2 t)

Scale s and offsets c are fitted to encoded sentences, t is the variance of what remains and of noise in a readout.

Dimension legend: P rows, m slots, b = C / m numbers of a block, C latent size, V vocabulary, E hidden size of the
decoder, D of the encoder, N sentences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from workers.latent_model import LatentPlan


class BlockSpeller(nn.Module):
    """A table of blocks (V, b) and three fitted values: `scale` (), `offsets` (m, b), `variance` ()."""

    blocks: Tensor  # (V, b)
    energy: Tensor  # (V,): half of each block's squared length

    def __init__(self, table: nn.Embedding, spelling: Tensor, project: Tensor, plan: LatentPlan) -> None:
        """`table` is the decoder's token embeddings (V, E), `spelling` (D, E) and `project` (b, D) the encoder's maps.

        Raises: ValueError for shapes that do not fit.
        """
        super().__init__()
        fits = spelling.ndim == project.ndim == 2 and spelling.shape[0] == project.shape[1]
        if not fits or spelling.shape[1] != table.embedding_dim or project.shape[0] != plan.block_size:
            shapes = f"spelling {tuple(spelling.shape)}, project {tuple(project.shape)}"
            raise ValueError(f"{shapes} do not lead from {table.embedding_dim} to {plan.block_size} numbers")
        self.plan = plan
        self.scale = nn.Parameter(torch.ones(()))
        self.offsets = nn.Parameter(torch.zeros(plan.slots, plan.block_size))
        self.variance = nn.Parameter(torch.ones(()))
        with torch.no_grad():
            words = layer_norm(table.weight.float(), table.weight.shape[-1:])
            blocks = words @ (project.float() @ spelling.float()).T
        self.register_buffer("blocks", blocks, persistent=False)
        self.register_buffer("energy", blocks.square().sum(-1) / 2, persistent=False)

    @torch.no_grad()
    def fit(self, latents: Tensor, spelled: Tensor, counted: Tensor, noise: float) -> None:
        """Fit to latents (N, C) of the tokens `spelled` (N, m), where `counted` (N, m) is true: least squares.

        `noise` is the standard deviation of readouts that is reckoned with. A slot that is never counted gets the mean
        of the others' offsets. Raises: ValueError for other shapes, or if nothing is counted.
        """
        if latents.shape != (len(spelled), self.plan.latent_size) or spelled.shape != counted.shape:
            shapes = f"{tuple(latents.shape)}, {tuple(spelled.shape)}, {tuple(counted.shape)}"
            raise ValueError(f"latents, spelled and counted of {shapes} do not fit")
        if not counted.any():
            raise ValueError(f"none of the tokens of {len(latents)} sentences is counted")
        weight = counted.unsqueeze(-1).double()  # (N, m, 1)
        met = counted.any(0)  # (m,)
        times = weight.sum(0).clamp(min=1)  # (m, 1)
        given, wished = self._blocks(latents).double(), self.blocks[spelled].double()  # (N, m, b)
        given_mean, wished_mean = ((weight * one).sum(0) / times for one in (given, wished))  # (m, b)
        given_rest, wished_rest = weight * (given - given_mean), weight * (wished - wished_mean)
        scale = (given_rest * wished_rest).sum() / given_rest.square().sum().clamp(min=1e-12)
        remains = (scale * given_rest - wished_rest).square().sum() / (weight.sum() * self.plan.block_size)
        self.scale.copy_(scale)
        offsets = scale * given_mean - wished_mean
        offsets[~met] = offsets[met].mean(0)
        self.offsets.copy_(offsets)
        self.variance.copy_(remains + (scale * noise).square())

    def forward(self, readouts: Tensor) -> Tensor:
        """Readouts (P, C) to logits (P, m, V): the logarithm of each token's likelihood, up to a constant of the slot.

        Raises: ValueError for another shape.
        """
        if readouts.ndim != 2 or readouts.shape[1] != self.plan.latent_size:
            raise ValueError(f"readouts must be (P, {self.plan.latent_size}), got {tuple(readouts.shape)}")
        x = self.scale * self._blocks(readouts) - self.offsets
        logits: Tensor = (x @ self.blocks.T - self.energy) / self.variance  # |x|^2 / 2 is the same for all tokens
        return logits

    def _blocks(self, latents: Tensor) -> Tensor:
        return latents.view(len(latents), self.plan.slots, self.plan.block_size)
