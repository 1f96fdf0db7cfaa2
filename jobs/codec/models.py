"""The models that a latent codec is trained between, from a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from jobs.codec.rows import Row
from jobs.codec.training import CodecPlan, CodecTrainer
from jobs.company import Company
from memory_actor.addressing import FourierMap
from workers.bundle import Bundle
from workers.latent_model import LatentDecoder, LatentEncoder, LatentPlan
from workers.runtime import quiet_transformers, resolve_device
from workers.slot_reader import AdapterPlan, slot_reader


@dataclass(frozen=True, slots=True)
class CodecRun:
    """Everything that a training process needs, beside the sentences. `bundle` is the folder of encoder and decoder."""

    bundle: str
    shape: LatentPlan
    adapters: AdapterPlan
    plan: CodecPlan
    device: str = "auto"

    def trainer(self, rows: Sequence[Row], company: Company | None = None) -> CodecTrainer:
        """Models as they are before the first step, the same in every process. Raises: ModelMissing."""
        quiet_transformers()
        bundle = Bundle.open(self.bundle)
        device = resolve_device(self.device)
        torch.manual_seed(self.plan.seed)
        dtype = torch.bfloat16 if self.plan.bfloat16 else torch.float32
        decoder = AutoModelForCausalLM.from_pretrained(bundle.decoder_folder, dtype=dtype, attn_implementation="sdpa")
        decoder.requires_grad_(False)
        reader = slot_reader(decoder, self.adapters)
        if not self.adapters.rank:
            reader = reader.float()  # what is trained is kept in full precision
        backbone = AutoModel.from_pretrained(bundle.encoder_folder, dtype=torch.float32, attn_implementation="sdpa")
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # its output is not used
        encoder = LatentEncoder(backbone, decoder.get_input_embeddings(), self.shape)
        codec = encoder.to(device), LatentDecoder(decoder, reader, self.shape).to(device)
        return CodecTrainer(*codec, addressing(bundle, device), rows, self.plan, company=company)


def addressing(bundle: Bundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Keys (N, D) to addresses (N, K), as the memory has them."""
    features = FourierMap(bundle.memory_config(), device)
    return lambda keys: features(keys.double())
