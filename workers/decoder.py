"""The decoder: any Hugging Face causal LM, alone or conditioned on a recalled fact, many requests at once.

One thread owns the model and the batch; callers hand in requests and get chunks back through a callback.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from memory_actor.errors import Overloaded, TextTooLong, Unavailable
from workers.bundle import Bundle, PromptPart
from workers.generation import DecodingBatch
from workers.ports import AnswerMode, Codec, Condition, GenerationChunk, GenerationRequest
from workers.runtime import quiet_transformers, resolve_device
from workers.sampling import TargetBias, TokenChoice
from workers.templates import PromptTemplates
from workers.text_stream import TextStream
from workers.token_codec import TokenCodec

OnChunk = Callable[[GenerationChunk | Exception], None]
CLOSE_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Ticket:
    """One submitted request. `cancel` frees its place at the next step; no chunk is made after that."""

    request: GenerationRequest
    on_chunk: OnChunk
    inputs: dict[str, torch.Tensor]
    choice: TokenChoice
    stream: TextStream
    head: DynamicCache | None = None  # keys and values of what stands before `inputs`
    cancelled: threading.Event = field(default_factory=threading.Event)
    made: int = 0  # tokens so far
    last_token: int = -1
    submitted_s: float = field(default_factory=time.perf_counter)
    started_s: float = 0.0
    prefilled_s: float = 0.0

    def cancel(self) -> None:
        self.cancelled.set()

    def ms(self) -> dict[str, float]:
        """Milliseconds spent waiting for a place, on the prompt, and on the tokens after the first."""
        return {
            "queue": (self.started_s - self.submitted_s) * 1000,
            "prefill": (self.prefilled_s - self.started_s) * 1000,
            "decode": (time.perf_counter() - self.prefilled_s) * 1000,
        }


class CausalDecoder:
    """Implements the Decoder port. Without a readout it is the base model: same input ids, same kernels, same tokens.

    With a readout, the bundle's template and the soft prefix (expected embeddings of the recalled tokens) come first.
    """

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        part: PromptPart,
        *,
        device: str = "auto",
        batch_requests_max: int = 4,
        queue_max: int = 64,
    ) -> None:
        quiet_transformers()
        self.batch_requests_max = batch_requests_max
        self.queue_max = queue_max
        self.device = resolve_device(device)
        self._codec = codec
        self._part = part
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self._model.eval().to(self.device)
        self._templates = PromptTemplates(self._tokenizer, part)
        self._end_tokens = _end_tokens(self._model, self._tokenizer)
        self.tokens_max = int(self._model.config.max_position_embeddings)
        self._unspaced = _unspaced_tokens(self._tokenizer)
        self._batch = DecodingBatch(self._model)
        # What stands before every recalled fact is the same each time: its keys and values are computed once. The
        # base model's own prompts are always run whole, so that they stay its own to the bit.
        self._heads = {
            tuple(ids): self._batch.head(ids)
            for ids in (self._templates.conditioned("", mode)[0] for mode in AnswerMode)
            if ids
        }
        self._live: list[Ticket] = []
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "auto", batch_requests_max: int = 4) -> CausalDecoder:
        return cls(
            bundle.decoder_folder,
            TokenCodec.from_bundle(bundle),
            bundle.manifest.prompt,
            device=device,
            batch_requests_max=batch_requests_max,
        )

    def generate(self, request: GenerationRequest) -> Iterator[GenerationChunk]:
        """Chunks as they are made; dropping the iterator cancels the request.

        Raises: TextTooLong, Overloaded; Unavailable when the decoder is closed or fails.
        """
        chunks: queue.SimpleQueue[GenerationChunk | Exception] = queue.SimpleQueue()
        ticket = self.submit(request, chunks.put)
        try:
            while True:
                chunk = chunks.get()
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            ticket.cancel()

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> Ticket:
        """Queue a request; `on_chunk` is called in the decode thread and must not block.

        It gets chunks, the last with a finish reason, or one exception. Raises: TextTooLong, Overloaded, Unavailable.
        """
        ticket = self._prepare(request, on_chunk)
        with self._changed:
            if self._closed:
                raise Unavailable("decoder", "it was stopped")
            if len(self._waiting) >= self.queue_max:
                raise Overloaded("decoder", len(self._waiting), self.queue_max)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Stop the decode thread; requests in progress end with Unavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def load(self) -> dict[str, int]:
        """Requests being decoded and waiting, now."""
        return {"live": len(self._live), "waiting": len(self._waiting)}

    # -- the prompt ---------------------------------------------------------------------------------------------

    def _prepare(self, request: GenerationRequest, on_chunk: OnChunk) -> Ticket:
        bias = head = None
        if request.readout is None:
            ids = self._templates.plain(request.prompt, request.mode)
            length = len(ids)
            inputs = {"input_ids": torch.tensor([ids], device=self.device)}
        else:
            condition = self._codec.condition(request.readout, request.prompt_tokens, request.target_tokens)
            before, after = self._templates.conditioned(request.prompt, request.mode)
            head = self._heads.get(tuple(before))
            inputs = {"inputs_embeds": self._embeddings([] if head else before, condition, after)}
            length = len(before) + len(condition.candidates) + len(after)
            bias = self._target_bias(request, condition)
        if length + request.max_tokens > self.tokens_max:
            raise TextTooLong("prompt", length, self.tokens_max - request.max_tokens)
        stream = TextStream(self._text, strip_start=request.mode is AnswerMode.ANSWER)
        return Ticket(request, on_chunk, inputs, TokenChoice(request, bias), stream, head)

    @torch.inference_mode()
    def _embeddings(self, before: list[int], condition: Condition, after: list[int]) -> torch.Tensor:
        """Embeddings (1, n, hidden) of the tokens before the fact, its soft prefix, and the tokens after it."""
        embed = self._model.get_input_embeddings()
        candidates = torch.from_numpy(condition.candidates).to(self.device)  # (T, B)
        probabilities = torch.from_numpy(condition.probabilities).to(self.device)
        prefix = torch.einsum("tb,tbh->th", probabilities, embed(candidates))
        parts = [embed(torch.tensor(before, dtype=torch.long, device=self.device)), prefix]
        parts.append(embed(torch.tensor(after, dtype=torch.long, device=self.device)))
        return torch.cat(parts).unsqueeze(0)

    def _target_bias(self, request: GenerationRequest, condition: Condition) -> TargetBias | None:
        candidates = torch.from_numpy(condition.candidates[condition.target_start :]).clone()
        if not len(candidates) or not self._part.answer_bias:
            return None
        if self._templates.ends_in_blank(request.prompt, request.mode):
            # " under" was stored, but after "assistant\n" the model's own first token would be "under".
            first = [self._unspaced.get(int(token), int(token)) for token in candidates[0]]
            candidates[0] = torch.tensor(first)
        answer = request.mode is AnswerMode.ANSWER
        return TargetBias(
            candidates,
            torch.from_numpy(condition.probabilities[condition.target_start :]),
            strength=self._part.answer_bias,
            end_tokens=tuple(self._end_tokens) if answer else (),
            end_strength=self._part.end_bias,
        )

    def _text(self, tokens: Any) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    # -- the decode thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._live)
                if self._closed:
                    break
            self._admit()
            self._drop(row for row, ticket in enumerate(self._live) if ticket.cancelled.is_set())
            if self._live:
                self._step()
        self._fail(list(self._live) + list(self._waiting), Unavailable("decoder", "it was stopped"))

    def _admit(self) -> None:
        """Prefill waiting requests, each alone, while there is room."""
        while self._waiting and len(self._live) < self.batch_requests_max:
            with self._changed:
                ticket = self._waiting.popleft()
            if ticket.cancelled.is_set():
                continue
            ticket.started_s = time.perf_counter()
            try:
                logits = self._batch.admit(ticket.inputs, ticket.head)
            except Exception as error:  # noqa: BLE001 - it is the caller's to see; the thread serves the others
                self._fail([ticket], error)
                continue
            ticket.prefilled_s = time.perf_counter()
            ticket.inputs = {}  # a soft prefix is not needed again
            self._live.append(ticket)
            if self._take(ticket, logits):
                self._drop([len(self._live) - 1])

    def _step(self) -> None:
        """One token for each live request."""
        try:
            logits = self._batch.step([ticket.last_token for ticket in self._live])
        except Exception as error:  # noqa: BLE001 - it is the callers' to see; the thread goes on with an empty batch
            failed, self._live, self._batch = self._live, [], DecodingBatch(self._model)
            self._fail(failed, error)
            return
        self._drop([row for row, ticket in enumerate(self._live) if self._take(ticket, logits[row])])

    def _take(self, ticket: Ticket, logits: torch.Tensor) -> bool:
        """Choose the next token of one request and hand out its text. Returns whether the request is finished."""
        token = ticket.choice.next_token(logits)
        if token in self._end_tokens:
            self._emit(ticket, GenerationChunk(ticket.stream.finish(), (), "stop", ticket.ms()))
            return True
        ticket.last_token = token
        ticket.made += 1
        text = ticket.stream.push(token)
        finished = ticket.made >= ticket.request.max_tokens
        if finished:
            self._emit(ticket, GenerationChunk(text + ticket.stream.finish(), (token,), "length", ticket.ms()))
        else:
            self._emit(ticket, GenerationChunk(text, (token,)))
        return finished

    def _drop(self, rows: Any) -> None:
        gone = set(rows)
        self._batch.evict(gone)
        self._live = [ticket for row, ticket in enumerate(self._live) if row not in gone]

    @staticmethod
    def _emit(ticket: Ticket, chunk: GenerationChunk) -> None:
        if not ticket.cancelled.is_set():
            ticket.on_chunk(chunk)

    @staticmethod
    def _fail(tickets: list[Ticket], error: Exception) -> None:
        for ticket in tickets:
            ticket.on_chunk(error)


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
