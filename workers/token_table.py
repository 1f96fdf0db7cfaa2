"""The decoder's token embeddings alone: what a process needs that encodes facts and decodes nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from memory_actor.errors import ModelMissing


def load_table(folder: Path) -> nn.Embedding:
    """The input embeddings (V, E), float32, frozen, of the causal LM in `folder`. Raises: ModelMissing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    weight = model.get_input_embeddings().weight
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in set(names) & set(file.keys()):
                table = nn.Embedding(weight.shape[0], weight.shape[1], _weight=file.get_tensor(name).float())
                return table.requires_grad_(False)
    raise ModelMissing("token embeddings of the decoder", str(folder), "Save its weights as safetensors")
