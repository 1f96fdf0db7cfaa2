"""The other way to edit: gradient steps on the decoder itself, all weights, until it says the new answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from jobs.evaluation.answering import Answerer
from jobs.evaluation.asks import Answer, Ask
from jobs.evaluation.records import EditRecord
from memory_actor.types import FactText
from workers.bundle import Bundle
from workers.ports import AnswerMode

STEPS_MAX = 25
LOSS_ENOUGH = 1e-2  # nats per target token
LEARNING_RATE = 5e-5


class FineTuner:
    """A decoder that is tuned with AdamW (no weight decay) on one edit's target after its prompt, and put back.

    Nothing else is trained on, neither rephrasings nor neighbours, and no norm is constrained.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        self._answerer = Answerer(bundle, device)
        self.model = self._answerer.model
        self._parameters = list(self.model.parameters())
        self._original = [parameter.detach().clone() for parameter in self._parameters]
        #: Of the last edit: wall time in milliseconds, gradient steps, and the loss (nats per token) after them.
        self.edit_ms, self.steps, self.loss = 0.0, 0, float("nan")

    @contextmanager
    def edited(self, record: EditRecord) -> Iterator[FineTuner]:
        """The decoder tuned on this edit; afterwards its weights are, bit for bit, what they were before any edit."""
        try:
            self.edit(record)
            yield self
        finally:
            self.restore()

    def edit(self, record: EditRecord) -> None:
        """Tune on top of whatever was tuned before."""
        started = time.perf_counter()
        prompt = self._answerer.conditioning.prompt(record.prompt, AnswerMode.COMPLETE).before
        _, target = self._answerer.codec.tokens(FactText(record.prompt, record.target_new))
        ids = torch.tensor([prompt + target], device=self._answerer.device)
        labels = ids.clone()
        labels[:, : len(prompt)] = -100  # the loss is the target's alone
        try:
            self._tune(ids, labels)
        finally:
            for parameter in self._parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
        self.edit_ms = (time.perf_counter() - started) * 1e3

    def _tune(self, ids: torch.Tensor, labels: torch.Tensor) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE, weight_decay=0.0)
        self.steps = 0
        while True:
            loss = self.model(input_ids=ids, labels=labels, use_cache=False).loss
            self.loss = float(loss.detach())
            if self.loss < LOSS_ENOUGH or self.steps == STEPS_MAX:
                return
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            self.steps += 1

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """What the decoder says as it is now tuned."""
        return self._answerer.answer(asks)

    @torch.no_grad()
    def restore(self) -> None:
        """The weights of the bundle, exactly."""
        for parameter, original in zip(self._parameters, self._original, strict=True):
            parameter.copy_(original)
