"""The models that a latent codec is trained between, from a bundle, and sentences as they read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from jobs.codec.training import CodecPlan, CodecTrainer, Row
from jobs.company import Company
from memory_actor.addressing import FourierMap
from workers.bundle import Bundle
from workers.latent_model import LatentDecoder, LatentEncoder, LatentPlan
from workers.runtime import quiet_transformers, resolve_device
from workers.slot_reader import AdapterPlan, slot_reader

_TEXT_END = "<|endoftext|>"  # what tells texts apart where it is in the vocabulary; a chat model's own end ends a turn


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


@dataclass(frozen=True, slots=True)
class RowReader:
    """Texts to rows, as the codec in service reads facts: special tokens are plain characters, nothing is cut."""

    bundle: str
    slots: int

    def __call__(self, texts: Sequence[str]) -> list[Row | None]:
        """None for a text of more tokens than slots, or than the encoder reads."""
        bundle = Bundle.open(self.bundle)
        encoder, decoder = _tokenizer(bundle.encoder_folder), _tokenizer(bundle.decoder_folder)
        decoder.encode_special_tokens = True
        start, end = start_token(bundle), end_token(bundle)
        read = encoder.encode_batch_fast(list(texts))
        spelled = decoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [
            Row(tuple(ours.ids), (start, *theirs.ids, end))
            if 0 < len(theirs.ids) <= self.slots and len(ours.ids) <= bundle.manifest.encoder.tokens_max
            else None
            for ours, theirs in zip(read, spelled, strict=True)
        ]


def start_token(bundle: Bundle) -> int:
    """The decoder's token before a text: its line break, or the last of the tokens that make one."""
    return int(_tokenizer(bundle.decoder_folder).encode("\n", add_special_tokens=False).ids[-1])


def end_token(bundle: Bundle) -> int:
    """The decoder's token after a text. Raises: ValueError for a tokenizer without an end."""
    tokenizer: Any = AutoTokenizer.from_pretrained(bundle.decoder_folder)
    found = tokenizer.get_vocab().get(_TEXT_END, tokenizer.eos_token_id)
    if found is None:
        raise ValueError(f"the tokenizer in {bundle.decoder_folder} has no token that ends a text")
    return int(found)


def addressing(bundle: Bundle, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Keys (N, D) to addresses (N, K), as the memory has them."""
    features = FourierMap(bundle.memory_config(), device)
    return lambda keys: features(keys.double())


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
