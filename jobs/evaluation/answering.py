"""Answers many asks by the product's rules: its prompts, its soft prefix, its answer bias, its choice of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from jobs.evaluation.asks import Answer, Ask
from jobs.evaluation.branches import Branches, Piece, grow_trunk
from memory_actor.errors import TextTooLong
from memory_actor.types import FactText
from workers.bundle import Bundle, PromptPart
from workers.codecs import open_codec, open_head
from workers.conditioning import Conditioning, DecoderPrompt
from workers.ports import AnswerMode, GenerationRequest
from workers.runtime import quiet_transformers, resolve_device
from workers.sampling import TargetBias, TokenChoice
from workers.templates import FACT

TRUNK_TOKENS_MIN = 16  # a shorter beginning costs more as a pass of its own than it saves
# Tokens run side by side. On one CPU core more gains nothing: its passes are bound by arithmetic from here on.
PACK_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass(slots=True)
class _Row:
    """One ask in progress."""

    ask: Ask
    prompt: DecoderPrompt
    candidates: list[list[int]]
    choice: TokenChoice
    nll: tuple[float, ...] = ()
    tokens: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Positions it takes at most: prompt, candidates and generation."""
        return len(self.prompt) + sum(map(len, self.candidates)) + self.ask.max_tokens


class Answerer:
    """The bundle's decoder, asked many things at once. Greedy tokens are those of `CausalDecoder.generate`.

    `model` may be changed between calls: nothing computed with it is kept.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        quiet_transformers()
        self.device = resolve_device(device)
        folder = bundle.decoder_folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self.model.eval().to(self.device)
        tokenizer, head = AutoTokenizer.from_pretrained(folder), open_head(bundle, self.model)
        self.conditioning = Conditioning(self.model, tokenizer, bundle.manifest.prompt, head)
        self.codec = open_codec(bundle, device=device)
        config = self.model.config
        # Within its window, a model with sliding attention is one with full attention.
        self.tokens_max = min(config.max_position_embeddings, getattr(config, "sliding_window", None) or 1 << 62)
        self._part: PromptPart = bundle.manifest.prompt
        self._pack_tokens = PACK_TOKENS.get(self.device.type, PACK_TOKENS["cpu"])

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answers in the order of `asks`.

        Raises: TextTooLong for a prompt that with its answer exceeds the model's context; ValueError for one without
        any token.
        """
        rows = [self._row(ask) for ask in asks]
        alike = sorted(rows, key=lambda row: (row.ask.kind, row.ask.max_tokens))
        for _, group in groupby(alike, key=lambda row: row.ask.kind):
            self._answer_kind(list(group))
        return [Answer(row.nll, self._text(row), tuple(row.tokens)) for row in rows]

    # -- from an ask to tokens ----------------------------------------------------------------------------------

    def _row(self, ask: Ask) -> _Row:
        prompt = self._prompt(ask)
        if not len(prompt):
            raise ValueError("an ask without a fact has an empty prompt")
        candidates = [self._candidate(ask, candidate) for candidate in ask.candidates]
        longest = max([ask.max_tokens, *map(len, candidates)])
        if len(prompt) + longest > self.tokens_max:
            raise TextTooLong("prompt", len(prompt), self.tokens_max - longest)
        request = GenerationRequest(
            ask.prompt, ask.mode, ask.max_tokens, temperature=ask.temperature, top_p=ask.top_p, seed=ask.seed
        )
        return _Row(ask, prompt, candidates, TokenChoice(request, prompt.bias))

    def _prompt(self, ask: Ask) -> DecoderPrompt:
        if not ask.facts:
            return self.conditioning.prompt(ask.prompt, ask.mode, ask.condition)
        before, after = self.conditioning.templates.conditioned(ask.prompt, ask.mode)
        facts, _ = self.codec.tokens(FactText(self._separator(ask.mode).join(ask.facts)))
        return DecoderPrompt(before + facts + after, None, [], ends=self.conditioning.end_tokens)

    def _separator(self, mode: AnswerMode) -> str:
        """What stands between facts: what the template has between a fact and the next line."""
        wording = self._part.answer_template if mode is AnswerMode.ANSWER else self._part.complete_template
        rest = wording.split(FACT)[1]
        return rest[: rest.find("\n") + 1] or "\n"

    def _candidate(self, ask: Ask, candidate: str) -> list[int]:
        _, target = self.codec.tokens(FactText("", candidate))
        return [self.conditioning.first_token(target[0], ask.prompt, ask.mode), *target[1:]]

    def _text(self, row: _Row) -> str:
        text = self.conditioning.text(row.tokens)
        return text.lstrip() if row.ask.mode is AnswerMode.ANSWER else text

    # -- from tokens to answers ---------------------------------------------------------------------------------

    def _answer_kind(self, rows: list[_Row]) -> None:
        """Answer rows that may begin alike; what they all begin with is run once."""
        shared = min(_shared([row.prompt.before for row in rows]), *(len(row.prompt) - 1 for row in rows))
        trunk = None
        if len(rows) > 1 and shared >= TRUNK_TOKENS_MIN:
            trunk = grow_trunk(self.model, self.conditioning.token_embeddings(rows[0].prompt.before[:shared]))
        else:
            shared = 0
        for pack in self._packs(rows, shared):
            self._answer_pack(pack, trunk, shared)

    def _packs(self, rows: list[_Row], shared: int) -> Iterator[list[_Row]]:
        """Rows that are run side by side: as many as fit in `PACK_TOKENS` beside the shared beginning."""
        pack: list[_Row] = []
        held = 0
        for row in rows:
            size = row.size - shared
            if pack and held + size > self._pack_tokens:
                yield pack
                pack, held = [], 0
            pack.append(row)
            held += size
        yield pack

    def _answer_pack(self, rows: list[_Row], trunk: DynamicCache | None, shared: int) -> None:
        branches = Branches(self.model, trunk)
        slots = [(number, row.prompt.slots) for number, row in enumerate(rows) if row.prompt.slots]
        if (head := self.conditioning.head([row.prompt for row in rows])) is not None:
            branches.plant(head, slots)
        logits = self._prefill(branches, rows, shared)
        live = [number for number, row in enumerate(rows) if row.ask.max_tokens]
        logits = [logits[number] for number in live]
        while live := [number for number, row in zip(live, logits, strict=True) if self._take(rows[number], row)]:
            logits = [row[0] for row in branches.feed([self._step(rows[number], number) for number in live])]

    def _prefill(self, branches: Branches, rows: list[_Row], shared: int) -> list[torch.Tensor]:
        """Run the prompts and score their candidates, in one pass. Returns each prompt's next-token logits (V,).

        Branch numbers below len(rows) are the prompts'. A candidate's first token needs only its prompt's logits.
        """
        pieces: list[Piece] = []
        for number, row in enumerate(rows):
            start = row.prompt.slots or shared
            pieces.append(Piece(self.conditioning.embeddings(row.prompt, shared), start, number))
        for number, row in enumerate(rows):
            for candidate in row.candidates:
                if len(candidate) > 1:
                    fed = self.conditioning.token_embeddings(candidate[:-1])
                    pieces.append(Piece(fed, len(row.prompt), len(pieces), stem=number, kept=len(fed)))
        logits = branches.feed(pieces)
        firsts, rest = logits[: len(rows)], iter(logits[len(rows) :])
        for row, first in zip(rows, firsts, strict=True):
            scores = [torch.cat([first, next(rest)]) if len(tokens) > 1 else first for tokens in row.candidates]
            scored = zip(row.candidates, scores, strict=True)
            row.nll = tuple(_nll(tokens, own, row.prompt.bias) for tokens, own in scored)
        return [first[0] for first in firsts]

    def _take(self, row: _Row, logits: torch.Tensor) -> bool:
        """Choose the row's next token. Returns whether it goes on."""
        token = row.choice.next_token(logits)
        if token in row.prompt.ends:
            return False
        row.tokens.append(token)
        return len(row.tokens) < row.ask.max_tokens

    def _step(self, row: _Row, number: int) -> Piece:
        """The row's last token, to be fed."""
        embedding = self.conditioning.token_embeddings(row.tokens[-1:])
        return Piece(embedding, len(row.prompt) + len(row.tokens) - 1, number)


def _shared(leads: Sequence[list[int]]) -> int:
    """How many token ids all of `leads` begin with."""
    low, high = min(leads), max(leads)  # whatever these two share, all that sort between them share
    return next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _nll(tokens: Sequence[int], logits: torch.Tensor, bias: TargetBias | None) -> float:
    """Mean negative log likelihood (nats) of tokens (n,), of which logits (n, V) are each one's own, under the bias."""
    bias = None if bias is None else replace(bias, position=0)
    total = 0.0
    for token, row in zip(tokens, logits, strict=True):
        biased = row if bias is None else bias.add_to(row)
        total -= float(torch.log_softmax(biased, dim=-1)[token])
        if bias is not None:
            bias.follow(token)
    return total / len(tokens)
