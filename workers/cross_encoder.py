"""The cross-encoder behind the scope verifier: a query and a stored prompt, read side by side by MiniLM's layers.

A key is made before anyone knows what it will be compared with; here each word of the query sees each word of the
prompt, which tells a spare key from a spare tyre. Too slow to try on every stored fact, right for the one that was
found. Dimension legend: N pairs, T tokens of the longest pair of a pass, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from workers.runtime import quiet_transformers
from workers.trained_scope import HEAD_FILE

TOKENS_MAX = 512  # of a pair, the positions MiniLM has; a longer prompt is read from its beginning
_PASS_PAIRS = 48

Pair = tuple[str, str]  # a query, and the prompt of a stored fact
PairIds = tuple[list[int], list[int]]


class CrossEncoder(torch.nn.Module):
    """Pairs to logits: above 0, the query rather asks for the prompt's fact.

    The tokens of both, with BERT's two segment embeddings, go through the layers together; then a linear head sees
    u*v and |u - v| of the two segments' mean hidden states u and v (unit norm) and the first token's hidden state.
    """

    def __init__(self, folder: Path) -> None:
        """Weights of `folder`, with a fresh head if it has none: there the logit grows with the cosine of u and v."""
        from transformers import AutoModel  # noqa: PLC0415 - slow import; only a process that verifies pays for it

        super().__init__()
        quiet_transformers()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        model.pooler = None
        self.model = model.eval()
        size = int(model.config.hidden_size)
        self.head = torch.nn.Linear(3 * size, 1)
        if (folder / HEAD_FILE).is_file():
            self.head.load_state_dict({k: v.float() for k, v in load_file(folder / HEAD_FILE).items()})
        else:
            with torch.no_grad():
                self.head.weight.zero_()
                self.head.weight[0, :size] = 10 / size**0.5
                self.head.bias.fill_(-6.0)

    def logits(self, pairs: Sequence[Pair]) -> Tensor:
        """N pairs to logits (N,), in passes over pairs of similar length."""
        if not pairs:
            return torch.zeros(0)
        ids = self.tokenize(pairs)
        order = sorted(range(len(ids)), key=lambda index: sum(map(len, ids[index])))
        starts = range(0, len(order), _PASS_PAIRS)
        parts = [self([ids[index] for index in order[start : start + _PASS_PAIRS]]) for start in starts]
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[back]

    def tokenize(self, pairs: Sequence[Pair]) -> list[PairIds]:
        """Token ids of N pairs: [CLS] query [SEP], and prompt [SEP], together at most `TOKENS_MAX`."""
        queries = self._tokenizer.encode_batch_fast([query for query, _ in pairs])
        prompts = self._tokenizer.encode_batch_fast([prompt for _, prompt in pairs])
        found = []
        for query, prompt in zip(queries, prompts, strict=True):
            asked = query.ids[: TOKENS_MAX // 2]
            found.append((asked, prompt.ids[1 : TOKENS_MAX - len(asked) + 1]))
        return found

    def forward(self, batch: Sequence[PairIds]) -> Tensor:
        """Logits (N,) float32 of tokenised pairs."""
        device = self.head.weight.device
        size = max(len(asked) + len(stored) for asked, stored in batch)
        tokens = torch.zeros((len(batch), size), dtype=torch.long)  # (N, T); masked, so the pad id is irrelevant
        of_query, of_prompt = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for row, (asked, stored) in enumerate(batch):
            end = len(asked) + len(stored)
            tokens[row, :end] = torch.tensor(asked + stored)
            of_query[row, : len(asked)] = 1
            of_prompt[row, len(asked) : end] = 1
        tokens, of_query, of_prompt = tokens.to(device), of_query.to(device), of_prompt.to(device)
        output = self.model(input_ids=tokens, attention_mask=of_query + of_prompt, token_type_ids=of_prompt)
        hidden = output.last_hidden_state.float()  # (N, T, D)
        u, v = (normalize((hidden * mask.unsqueeze(-1)).sum(1), dim=-1) for mask in (of_query, of_prompt))
        scale = hidden.shape[-1] ** 0.5  # products of unit vectors are small numbers; the head is not to make up for it
        features = torch.cat([u * v * scale, (u - v).abs() * scale, hidden[:, 0]], dim=1)
        logits: Tensor = self.head(features).squeeze(1)
        return logits
