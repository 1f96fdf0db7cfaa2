"""From a query and, perhaps, a recalled fact to what the decoder is fed and which answer it is pulled towards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from workers.bundle import PromptPart
from workers.ports import AnswerMode, Condition
from workers.sampling import TargetBias
from workers.templates import PromptTemplates

if TYPE_CHECKING:  # a bundle without a trained codec needs none of it
    from workers.slot_head import SlotHead


@dataclass(frozen=True, slots=True)
class DecoderPrompt:
    """A prompt in token ids: `before`, the recalled fact, `after`. Without a fact all is in `before`.

    The fact is a soft prefix, or `slots` positions in front of everything whose keys and values `Conditioning.head`
    gives. A token of `ends` ends the answer.
    """

    before: list[int]
    condition: Condition | None
    after: list[int]
    bias: TargetBias | None = None
    slots: int = 0
    ends: frozenset[int] = field(kw_only=True)

    def __len__(self) -> int:
        """Positions the decoder sees."""
        soft = 0 if self.condition is None or self.slots else len(self.condition.candidates)
        return self.slots + len(self.before) + soft + len(self.after)


class Conditioning:
    """What a model is fed for a query, alone or with a recalled fact. The same for whoever runs the model.

    Alone, a query is what the plain model's users feed it. With a fact, either the bundle's template and the soft
    prefix (expected embeddings of the recalled tokens) come first, or, with a codec that has slots, these stand in
    front of the same query; and the target's tokens get a bias.
    """

    def __init__(self, model: Any, tokenizer: Any, part: PromptPart, head: SlotHead | None = None) -> None:
        """`model` is a transformers causal LM, `tokenizer` its tokenizer, `part` the bundle's wording and strengths."""
        self.tokenizer = tokenizer
        self.templates = PromptTemplates(tokenizer, part)
        self.end_tokens = _end_tokens(model, tokenizer)
        self._embed = model.get_input_embeddings()
        self._part = part
        self._head = head
        self._unspaced = _unspaced_tokens(tokenizer)

    def prompt(self, text: str, mode: AnswerMode, condition: Condition | None = None) -> DecoderPrompt:
        """The query `text`, conditioned on a recalled fact if there is one."""
        ends = self.end_tokens
        if condition is None:
            return DecoderPrompt(self.templates.plain(text, mode), None, [], ends=ends)
        if self._head is not None and condition.readout is not None:
            slots = self._head.positions(condition.readout)
            query = self.templates.plain(text, mode)
            # A text in slots ends as it did in training: what the decoder says after that is another text.
            ends |= {self._head.end_token}
            bias = self._target_bias(text, mode, condition, ends)
            return DecoderPrompt([], condition, query, bias, slots, ends=ends)
        before, after = self.templates.conditioned(text, mode)
        return DecoderPrompt(before, condition, after, self._target_bias(text, mode, condition, ends), ends=ends)

    def head(self, prompts: Sequence[DecoderPrompt]) -> DynamicCache | None:
        """Keys and values (1, heads, n, head size) of these prompts' slots, one after the other; None without any."""
        readouts = [one.condition.readout for one in prompts if one.slots and one.condition is not None]
        found = [readout for readout in readouts if readout is not None]
        return None if self._head is None or not found else self._head(found)

    @torch.inference_mode()
    def embeddings(self, prompt: DecoderPrompt, start: int = 0) -> torch.Tensor:
        """Embeddings (n, hidden) of a prompt from position `start` on, which is at most len(prompt.before).

        Of slots there are none: what follows them is all there is.
        """
        parts = [self.token_embeddings(prompt.before[start:])]
        if prompt.condition is not None and not prompt.slots:
            device = self._embed.weight.device
            candidates = torch.from_numpy(prompt.condition.candidates).to(device)  # (T, B)
            probabilities = torch.from_numpy(prompt.condition.probabilities).to(device)
            parts.append(torch.einsum("tb,tbh->th", probabilities, self._embed(candidates)))
        parts.append(self.token_embeddings(prompt.after))
        return torch.cat(parts)

    @torch.inference_mode()
    def token_embeddings(self, ids: Sequence[int]) -> torch.Tensor:
        """Embeddings (n, hidden) of token ids."""
        embeddings: torch.Tensor = self._embed(torch.tensor(ids, dtype=torch.long, device=self._embed.weight.device))
        return embeddings

    def first_token(self, token: int, text: str, mode: AnswerMode) -> int:
        """The first token of a target as the model itself would say it after the prompt `text`.

        " under" was stored, but after "assistant\\n" the model's own first token would be "under".
        """
        return self._unspaced.get(token, token) if self.templates.ends_in_blank(text, mode) else token

    def text(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text, special tokens left out."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _target_bias(
        self, text: str, mode: AnswerMode, condition: Condition, ends: frozenset[int]
    ) -> TargetBias | None:
        candidates = torch.from_numpy(condition.candidates[condition.target_start :]).clone()
        if not len(candidates) or not self._part.answer_bias:
            return None
        candidates[0] = torch.tensor([self.first_token(int(token), text, mode) for token in candidates[0]])
        return TargetBias(
            candidates,
            torch.from_numpy(condition.probabilities[condition.target_start :]),
            strength=self._part.answer_bias,
            end_tokens=tuple(ends) if mode is AnswerMode.ANSWER else (),
            end_strength=self._part.end_bias,
        )


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end a turn, from the model's generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = set(configured) if isinstance(configured, list) else {configured}
    ids.add(tokenizer.eos_token_id)
    return frozenset(int(index) for index in ids if index is not None)


def _unspaced_tokens(tokenizer: Any) -> dict[int, int]:
    """Each token id that begins with a space, to the id of the same token without it, where there is one."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    space = ("\u0120", "\u2581")  # how byte-level and SentencePiece vocabularies write it
    return {
        index: vocabulary[token[1:]]
        for token, index in vocabulary.items()
        if token.startswith(space) and token[1:] in vocabulary
    }
