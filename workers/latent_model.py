"""The paper's codec as torch modules: texts to latents, and a causal LM that speaks from a readout (paper, sec. 3).

Where we differ from the reference: several slots per layer with keys and values of their own instead of one with K = V,
low-rank maps, and a latent of zero that leaves the decoder exactly as it is: its slots are masked, not merely zero.

Dimension legend: N texts, T tokens of the longest, D hidden size of the encoder, C latent size, Q queries, m slots,
L layers, H key/value heads, d head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """Shape of a latent codec; see the module's legend. C is a multiple of Q."""

    latent_size: int = 768  # C
    queries: int = 24  # Q, each gives C / Q numbers of the latent
    attention_heads: int = 6  # of the pooling; divides D
    slots: int = 4  # m, key/value positions in front of the text, per layer
    rank: int = 256  # of the maps from a readout to the slots
    embedding: bool = True  # add a projection of the readout to every token's embedding, as the reference does

    def __post_init__(self) -> None:
        if self.latent_size % self.queries:
            raise ValueError(f"latent_size {self.latent_size} is not a multiple of queries {self.queries}")


class LatentEncoder(nn.Module):
    """Texts to latents: Q learned queries look at an encoder's hidden states, each gives C / Q numbers.

    A mean over tokens forgets their order; queries need not.
    """

    def __init__(self, backbone: Any, plan: LatentPlan) -> None:
        """`backbone` is a transformers encoder whose output has `last_hidden_state`."""
        super().__init__()
        size = int(backbone.config.hidden_size)
        self.backbone = backbone
        self.queries = nn.Parameter(torch.randn(plan.queries, size) * 0.5)
        self.attention = nn.MultiheadAttention(size, plan.attention_heads, batch_first=True)
        self.project = nn.Parameter(torch.randn(plan.queries, size, plan.latent_size // plan.queries) / size**0.5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens and mask (N, T) to latents (N, C) float32 of mean 0 and variance 1. What is masked changes nothing."""
        if tokens.shape != mask.shape or tokens.ndim != 2:
            raise ValueError(f"tokens {tuple(tokens.shape)} and mask {tuple(mask.shape)} must both be (N, T)")
        hidden = self.backbone(input_ids=tokens, attention_mask=mask).last_hidden_state  # (N, T, D)
        queries = self.queries.to(hidden.dtype).expand(len(tokens), -1, -1)
        seen, _ = self.attention(queries, hidden, hidden, key_padding_mask=mask == 0, need_weights=False)  # (N, Q, D)
        latent = torch.einsum("nqd,qdc->nqc", seen, self.project.to(seen.dtype)).flatten(1).float()
        return layer_norm(latent, latent.shape[1:])


class Connector(nn.Module):
    """Readouts to m key/value positions for every layer of a decoder: separate maps for keys and values."""

    def __init__(self, config: Any, plan: LatentPlan) -> None:
        """`config` is the decoder's: layers, key/value heads, head size, hidden size."""
        super().__init__()
        self.latent_size, self.slots = plan.latent_size, plan.slots
        self.layers, self.heads = int(config.num_hidden_layers), int(config.num_key_value_heads)
        self.head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        width = self.layers * self.heads * self.slots * self.head_size
        self.down = nn.Linear(plan.latent_size, plan.rank, bias=False)
        self.keys = nn.Linear(plan.rank, width)  # a slot's bias is its name: keys that are the same for every readout
        self.values = nn.Linear(plan.rank, width)
        self.embedding = nn.Linear(plan.latent_size, int(config.hidden_size), bias=False) if plan.embedding else None
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight)

    def forward(self, readouts: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Readouts (N, C) to keys and values (N, H, m, d) of each layer. The keys are not rotated."""
        if readouts.ndim != 2 or readouts.shape[1] != self.latent_size:
            raise ValueError(f"readouts must be (N, {self.latent_size}), got {tuple(readouts.shape)}")
        low = self.down(readouts)
        shape = (len(readouts), self.layers, self.heads, self.slots, self.head_size)
        keys, values = self.keys(low).view(shape), self.values(low).view(shape)
        return [(keys[:, layer], values[:, layer]) for layer in range(self.layers)]


class LatentDecoder(nn.Module):
    """A causal LM conditioned on readouts. A readout of zeros is the LM itself."""

    def __init__(self, decoder: Any, plan: LatentPlan) -> None:
        """`decoder` is a transformers causal LM with rotary or relative positions, or one wrapped by `peft`."""
        super().__init__()
        self.decoder = decoder
        self.connector = Connector(decoder.config, plan)

    def forward(self, tokens: Tensor, mask: Tensor, readouts: Tensor) -> Tensor:
        """Tokens and mask (N, T), readouts (N, C) to logits (N, T, V). Text begins at position 0 either way."""
        if tokens.shape != mask.shape or len(tokens) != len(readouts):
            shapes = f"{tuple(tokens.shape)}, {tuple(mask.shape)} and {tuple(readouts.shape)}"
            raise ValueError(f"tokens, mask and readouts of {shapes} do not fit")
        present = readouts.ne(0).any(1)  # (N,)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.connector(readouts)):
            cache.update(keys, values, layer)
        embeddings = self.decoder.get_input_embeddings()(tokens)
        if self.connector.embedding is not None:
            embeddings = embeddings + self.connector.embedding(readouts).unsqueeze(1)  # zeros stay zeros
        seen = torch.cat([present.unsqueeze(1).expand(-1, self.connector.slots).to(mask.dtype), mask], dim=1)
        output = self.decoder(
            inputs_embeds=embeddings,
            attention_mask=seen,
            position_ids=torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1),
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits
