"""From logits to the next token of one request: answer bias, then greedy or nucleus sampling."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from workers.ports import GenerationRequest


@dataclass(slots=True)
class TargetBias:
    """Pulls the first generated tokens toward a recalled target, as long as they follow it.

    candidates (T, B) int64 and probabilities (T, B) float32 are the target's positions of a Condition; `strength` is
    added to a candidate's logit in proportion to its probability. When the target has been said, `end_strength` is
    added once to the end-of-turn tokens; when the model says something else, all bias ends.
    """

    candidates: torch.Tensor
    probabilities: torch.Tensor
    strength: float
    end_tokens: tuple[int, ...] = ()
    end_strength: float = 0.0
    position: int = 0

    def add_to(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` (V,) with the bias for the next token; the argument is left alone."""
        if self.position < len(self.candidates):
            row = self.position
            return logits.index_add(0, self.candidates[row], self.strength * self.probabilities[row])
        if self.position == len(self.candidates) and self.end_tokens and self.end_strength:
            logits = logits.clone()
            logits[list(self.end_tokens)] += self.end_strength
        return logits

    def follow(self, token: int) -> None:
        """Take note of the token that was chosen."""
        if self.position < len(self.candidates) and token == int(self.candidates[self.position, 0]):
            self.position += 1
        else:
            self.position = len(self.candidates) + 1


@dataclass(slots=True)
class TokenChoice:
    """The sampling state of one request. The same request and logits give the same tokens."""

    request: GenerationRequest
    bias: TargetBias | None = None
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.request.seed)

    def next_token(self, logits: torch.Tensor) -> int:
        """Choose from `logits` (V,) float32 on the CPU."""
        if self.bias is not None:
            logits = self.bias.add_to(logits)
        token = int(logits.argmax()) if self.request.temperature == 0 else self._sample(logits)
        if self.bias is not None:
            self.bias.follow(token)
        return token

    def _sample(self, logits: torch.Tensor) -> int:
        probabilities = torch.softmax(logits / self.request.temperature, dim=-1)
        ordered, index = probabilities.sort(descending=True, stable=True)
        # Keep the smallest set of tokens that reaches top_p: those before which less than top_p had been gathered.
        keep = ordered.cumsum(0) - ordered < self.request.top_p
        keep[0] = True
        chosen = torch.multinomial(ordered * keep, 1, generator=self._generator)
        return int(index[chosen])
