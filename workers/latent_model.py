"""The paper's codec as torch modules: texts to latents, and a causal LM that speaks from a readout (paper, sec. 3).

    encoder   text -> z in R^C: m queries, one for each token of the decoder, look at an encoder's hidden states;
              each gives C / m numbers
    slots     z -> m states of the decoder's own size: block i of z becomes state i
    reader    states -> keys and values of m positions in every layer: the decoder with adapters in its maps, once
    decoder   the text, behind these positions, read and spoken by the decoder as it was given

Where we differ from the reference: m positions with keys and values of their own instead of one with K = V; what is
learned acts on the slots alone, so that the decoder without a readout is the decoder that was given; and a latent of
zero is masked, not merely zero.

Dimension legend: N texts, T tokens of the longest for the encoder or the decoder, D hidden size of the encoder, C
latent size, m slots, E hidden size of the decoder, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, normalize
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """Shape of a latent codec; see the module's legend. C is a multiple of m."""

    latent_size: int = 768  # C
    slots: int = 24  # m, positions in front of the text, at least 4; also the most tokens of one latent
    attention_heads: int = 6  # of the queries; divides D
    width: int = 1024  # of the map from a block of the latent to a state
    embedding: bool = False  # add a projection of the readout to every token's embedding, as the reference does

    def __post_init__(self) -> None:
        if self.latent_size % self.slots:
            raise ValueError(f"latent_size {self.latent_size} is not a multiple of slots {self.slots}")

    @property
    def block_size(self) -> int:
        """C / m, numbers of one slot."""
        return self.latent_size // self.slots


class LatentEncoder(nn.Module):
    """Texts to latents and keys. The backbone is frozen: it is also the key encoder, and keys must not move.

    A query is what the decoder would call a token: its embedding and its place. It adds what it sees in the encoder's
    hidden states. Sentence encoders are often uncased: from hidden states alone no spelling could be rebuilt.
    """

    def __init__(self, backbone: Any, table: nn.Embedding, plan: LatentPlan) -> None:
        """`backbone` is a transformers encoder, `table` the decoder's token embeddings (V, E), which stay as they are.

        The table is not a submodule: what is saved and trained here is only what is new.
        """
        super().__init__()
        size = int(backbone.config.hidden_size)
        self.plan = plan
        self.backbone = backbone.requires_grad_(False)
        self._table = (table,)
        self.spelling = nn.Linear(table.embedding_dim, size)
        self.places = nn.Parameter(torch.randn(plan.slots, size) * 0.1)
        self.attention = nn.MultiheadAttention(size, plan.attention_heads, batch_first=True)
        self.project = nn.Linear(size, plan.block_size)

    def forward(self, tokens: Tensor, mask: Tensor, spelled: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder tokens and mask (N, T), decoder tokens `spelled` (N, m), filled up with the decoder's end token.

        Returns latents (N, C) float32 of mean 0 and variance 1, and keys (N, D) float32 of unit norm: the mean of the
        hidden states, as the key encoder has it. What is masked changes nothing. Raises: ValueError for other shapes.
        """
        if tokens.shape != mask.shape or tokens.ndim != 2:
            raise ValueError(f"tokens {tuple(tokens.shape)} and mask {tuple(mask.shape)} must both be (N, T)")
        if spelled.shape != (len(tokens), self.plan.slots):
            raise ValueError(f"spelled must be ({len(tokens)}, {self.plan.slots}), got {tuple(spelled.shape)}")
        with torch.no_grad():
            hidden = self.backbone(input_ids=tokens, attention_mask=mask).last_hidden_state.float()  # (N, T, D)
            weight = mask.unsqueeze(-1).float()
            keys = normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
            words = self._table[0](spelled).float()
            words = layer_norm(words, words.shape[-1:])  # (N, m, E)
        queries = self.spelling(words) + self.places  # (N, m, D)
        seen, _ = self.attention(queries, hidden, hidden, key_padding_mask=mask == 0, need_weights=False)
        latent = self.project(queries + seen).flatten(1).float()
        return layer_norm(latent, latent.shape[1:]), keys


class Slots(nn.Module):
    """Readouts to the states of m positions, in the language of the decoder's embeddings."""

    size: Tensor  # standard deviation of an embedding's numbers
    norms: Tensor  # (V,) of the embeddings

    def __init__(self, table: nn.Embedding, plan: LatentPlan) -> None:
        """`table` is the decoder's token embeddings (V, E); it is not a submodule."""
        super().__init__()
        self.plan = plan
        self._table = (table,)
        self.widen = nn.Linear(plan.block_size, plan.width)
        self.narrow = nn.Linear(plan.width, table.embedding_dim)
        self.sharpness = nn.Parameter(torch.tensor(3.0))  # logarithm of what a cosine is multiplied by
        weight = table.weight.detach().float()
        self.register_buffer("size", weight.std(), persistent=False)
        self.register_buffer("norms", weight.norm(dim=-1).clamp(min=1e-12), persistent=False)

    def forward(self, readouts: Tensor) -> Tensor:
        """Readouts (N, C) to states (N, m, E). Raises: ValueError for another shape."""
        if readouts.ndim != 2 or readouts.shape[1] != self.plan.latent_size:
            raise ValueError(f"readouts must be (N, {self.plan.latent_size}), got {tuple(readouts.shape)}")
        blocks = readouts.view(len(readouts), self.plan.slots, self.plan.block_size)
        states: Tensor = self.narrow(gelu(self.widen(blocks))) * self.size
        return states

    def spelled(self, states: Tensor) -> Tensor:
        """States (..., E) to logits (..., V): which token a state stands for, by the cosine with its embedding."""
        table = self._table[0].weight.detach()
        products: Tensor = (normalize(states, dim=-1).to(table.dtype) @ table.T).float()
        return products / self.norms * self.sharpness.exp()


class LatentDecoder(nn.Module):
    """A causal LM conditioned on readouts. A readout of zeros is the LM itself."""

    def __init__(self, decoder: Any, reader: Any, plan: LatentPlan) -> None:
        """`decoder` is a transformers causal LM with rotary or relative positions, `reader` its `slot_reader`."""
        super().__init__()
        table = decoder.get_input_embeddings()
        self.plan = plan
        self.decoder = decoder
        self.reader = reader
        self.slots = Slots(table, plan)
        self.embedding = nn.Linear(plan.latent_size, table.embedding_dim, bias=False) if plan.embedding else None
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight)

    def forward(self, tokens: Tensor, mask: Tensor, readouts: Tensor) -> Tensor:
        """Tokens and mask (N, T), readouts (N, C) to logits (N, T, V). Text begins at position 0 either way."""
        return self.speak(tokens, mask, readouts, self.slots(readouts))

    def speak(self, tokens: Tensor, mask: Tensor, readouts: Tensor, states: Tensor) -> Tensor:
        """The same with the states (N, m, E) of these readouts."""
        if tokens.shape != mask.shape or len(tokens) != len(readouts):
            shapes = f"{tuple(tokens.shape)}, {tuple(mask.shape)} and {tuple(readouts.shape)}"
            raise ValueError(f"tokens, mask and readouts of {shapes} do not fit")
        present = readouts.ne(0).any(1)  # (N,)
        table = self.decoder.get_input_embeddings()
        embeddings = table(tokens)
        if self.embedding is not None:
            embeddings = embeddings + self.embedding(readouts).unsqueeze(1).to(embeddings.dtype)  # zeros stay zeros
        seen = torch.cat([present.unsqueeze(1).expand(-1, self.plan.slots).to(mask.dtype), mask], dim=1)
        cache = self.prefix(states)
        output = self.decoder(
            inputs_embeds=embeddings,
            attention_mask=seen,
            position_ids=torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1),
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits

    def prefix(self, states: Tensor) -> DynamicCache:
        """States (N, m, E) to the keys and values of their positions, -m to -1, in every layer."""
        positions = torch.arange(-self.plan.slots, 0, device=states.device).expand(len(states), -1)
        return read_slots(self.reader, states, positions)


def read_slots(reader: Any, states: Tensor, positions: Tensor) -> DynamicCache:
    """The reader over states (N, m, E) at `positions` (N, m): keys and values in every layer.

    Without the model's head: it would be asked for logits that nobody reads, and were most of the work.
    """
    model = reader.get_base_model() if hasattr(reader, "get_base_model") else reader
    cache = DynamicCache()
    model.base_model(
        inputs_embeds=states.to(model.get_input_embeddings().weight.dtype),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return cache
