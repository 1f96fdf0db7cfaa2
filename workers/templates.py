"""Prompts to token ids: what a user of the plain model would feed, with or without a place for a recalled fact."""

from __future__ import annotations

from typing import Any

from workers.bundle import PromptPart
from workers.ports import AnswerMode

FACT, PROMPT = "{fact}", "{prompt}"


class PromptTemplates:
    """The bundle's wording over a model's own chat template. A model without one is prompted with bare text."""

    def __init__(self, tokenizer: Any, part: PromptPart) -> None:
        """`tokenizer` is the model's transformers tokenizer. Raises: ValueError if a template lacks a placeholder."""
        self._tokenizer = tokenizer
        self._chat = tokenizer.chat_template is not None
        self._wording = {AnswerMode.ANSWER: part.answer_template, AnswerMode.COMPLETE: part.complete_template}
        for wording in self._wording.values():
            if wording.count(FACT) != 1 or wording.count(PROMPT) != 1:
                raise ValueError(f"template {wording!r} must hold {FACT} and {PROMPT} once each")

    def plain(self, prompt: str, mode: AnswerMode) -> list[int]:
        """Token ids of the query alone, exactly as the plain model's users feed it."""
        if mode is AnswerMode.ANSWER and self._chat:
            return self._ids(self._turn(prompt), special=False)
        return self._ids(prompt, special=True)

    def conditioned(self, prompt: str, mode: AnswerMode) -> tuple[list[int], list[int]]:
        """Token ids before and after the place of the soft prefix."""
        mark = "\ue000"  # a private-use character, made longer until the query does not hold it
        while mark in prompt:
            mark += "\ue001"
        head, tail = self._wording[mode].split(PROMPT)  # the fact may stand on either side of the query
        text = head.replace(FACT, mark) + prompt + tail.replace(FACT, mark)
        chat = mode is AnswerMode.ANSWER and self._chat
        before, after = (self._turn(text) if chat else text).split(mark)
        return self._ids(before, special=not chat), self._ids(after, special=False)

    def ends_in_blank(self, prompt: str, mode: AnswerMode) -> bool:
        """Whether what the model continues ends in white space, so that its first word brings none of its own."""
        if mode is AnswerMode.ANSWER and self._chat:
            return self._turn("")[-1:].isspace()
        tail = self._wording[mode].split(PROMPT)[1]
        return (prompt + tail)[-1:].isspace()

    def _turn(self, content: str) -> str:
        turn = [{"role": "user", "content": content}]
        text: str = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return text

    def _ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special).input_ids if text or special else []
        return ids
