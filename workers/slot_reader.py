"""The slots' reader: the decoder that runs over the slots' states. The decoder that speaks stays another object.

With LoRA it shares every weight of the speaking decoder and adds adapters of its own; trained in full it is a copy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """LoRA adapters in every linear map of every layer but the head."""

    rank: int = 16  # 0: no adapters, the reader is trained in full
    alpha: int = 16

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"rank must be 0 or more and alpha above 0, got {self.rank} and {self.alpha}")


def slot_reader(decoder: Any, plan: AdapterPlan) -> Any:
    """A reader for `decoder`, a transformers causal LM, which is frozen by it if its weights are shared."""
    if not plan.rank:
        return copy.deepcopy(decoder).requires_grad_(True)
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - seconds of import, and only who reads slots needs it

    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*decoder.parameters(), *decoder.buffers())}
    adapters = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, target_modules="all-linear")
    return get_peft_model(copy.deepcopy(decoder, shared), adapters)  # it freezes what is shared
