"""Readouts to the keys and values that stand in front of the decoder's text: a latent codec's half in the decoder.

Dimension legend: P rows of one fact, C latent size, m slots, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from memory_actor.types import Float32Array
from workers.latent_model import Slots, read_slots
from workers.slot_reader import slot_reader
from workers.trained_codec import READER, SLOTS, TrainedCodec


class SlotHead:
    """The slots of readouts, run once by the reader. The decoder is not touched: the reader is another object."""

    def __init__(self, model: Any, trained: TrainedCodec) -> None:
        """`model` is the decoder, a transformers causal LM, whose weights the reader shares. Raises: ModelMissing."""
        self.end_token = int(trained.card["end_token"])
        self._slots = Slots(model.get_input_embeddings(), trained.shape)
        trained.load_into(self._slots, SLOTS)
        self._slots.eval().to(model.device)
        self._reader = slot_reader(model, trained.adapters)
        trained.load_into(self._reader, READER)
        self._reader.eval().to(model.device)

    def positions(self, readout: Float32Array) -> int:
        """Positions that a readout (P, C) takes in front of the text: P * m."""
        return len(readout) * self._slots.plan.slots

    @torch.inference_mode()
    def __call__(self, readouts: Sequence[Float32Array]) -> DynamicCache:
        """Keys and values (1, heads, sum of P * m, head size) in every layer, one readout after the other.

        Each row sees itself only, as in training; the rows of one readout stand one behind the other.
        """
        device = self._slots.narrow.weight.device
        places = [row for readout in readouts for row in range(len(readout))]
        states = self._slots(torch.from_numpy(np.concatenate(readouts)).to(device))  # (rows, m, E)
        size = states.shape[1]
        positions = torch.tensor(places, device=device).unsqueeze(1) * size + torch.arange(size, device=device)
        rows = read_slots(self._reader, states, positions)
        cache = DynamicCache()
        for index, layer in enumerate(rows.layers):
            cache.update(_in_a_row(layer.keys), _in_a_row(layer.values), index)
        return cache


def _in_a_row(states: Tensor) -> Tensor:
    """(rows, heads, m, size) to (1, heads, rows * m, size)."""
    return states.transpose(0, 1).flatten(1, 2).unsqueeze(0)
