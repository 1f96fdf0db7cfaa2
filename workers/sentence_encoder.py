"""The key encoder: a sentence transformer (MiniLM by default) read with plain transformers.

Dimension legend: N texts, T tokens of the longest text in a batch, D key size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from memory_actor.errors import TextTooLong
from memory_actor.types import Float32Array
from workers.bundle import Bundle
from workers.runtime import quiet_transformers, resolve_device, threads_for

TokenIds = list[int]


class SentenceEncoder:
    """Texts to keys: mean of the last hidden states over a text's tokens, scaled to unit norm.

    A text's key depends on its company in a batch by less than 1e-5 per number: padding changes the shapes of the
    matrix products and with them the order of their sums. Nothing downstream relies on re-encoding: what was written
    is logged as numbers, so replay stays exact.
    """

    def __init__(self, folder: Path, *, tokens_max: int, device: str = "auto", batch_texts_max: int = 64) -> None:
        from transformers import AutoModel  # noqa: PLC0415 - slow import; only a process that encodes pays for it

        quiet_transformers()
        self.tokens_max = tokens_max
        self.batch_texts_max = batch_texts_max
        self.device = resolve_device(device)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()  # MiniLM's file says: cut at 128 and pad to 128
        self._tokenizer.no_padding()
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its output is not used
        self._model = model.eval().to(self.device)
        self.key_size = int(model.config.hidden_size)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "auto", batch_texts_max: int = 64) -> SentenceEncoder:
        tokens_max = bundle.manifest.encoder.tokens_max
        return cls(bundle.encoder_folder, tokens_max=tokens_max, device=device, batch_texts_max=batch_texts_max)

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """N texts to (N, D) float32 keys of unit norm. Raises: TextTooLong; nothing is cut."""
        return self.embed(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str], what: str = "text") -> list[TokenIds]:
        """Token ids of N texts, special tokens included. Raises: TextTooLong, naming the text `what` [its index]."""
        batch = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        for index, ids in enumerate(batch):
            if len(ids) > self.tokens_max:
                raise TextTooLong(f"{what} [{index}]", len(ids), self.tokens_max)
        return batch

    def embed(self, batch: Sequence[TokenIds]) -> Float32Array:
        """N token lists to (N, D) float32 keys, in passes of at most `batch_texts_max` texts of similar length."""
        keys = np.empty((len(batch), self.key_size), np.float32)
        order = sorted(range(len(batch)), key=lambda index: len(batch[index]))
        for start in range(0, len(order), self.batch_texts_max):
            chosen = order[start : start + self.batch_texts_max]
            keys[chosen] = self._forward([batch[index] for index in chosen])
        return keys

    @torch.inference_mode()
    def _forward(self, batch: Sequence[TokenIds]) -> Float32Array:
        longest = max(len(ids) for ids in batch)
        tokens = torch.zeros((len(batch), longest), dtype=torch.long)  # (N, T); masked, so the pad id is irrelevant
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, ids in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        with threads_for(tokens.numel()):
            hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state  # (N, T, D)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        keys: Float32Array = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return keys
