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
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from memory_actor.errors import Overloaded, TextTooLong, Unavailable
from workers.bundle import Bundle
from workers.codecs import open_codec, open_head
from workers.conditioning import Conditioning
from workers.generation import DecodingBatch
from workers.ports import AnswerMode, Codec, GenerationChunk, GenerationRequest
from workers.runtime import quiet_transformers, resolve_device
from workers.sampling import TokenChoice
from workers.text_stream import TextStream

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
    head: DynamicCache | None  # keys and values of what stands before `inputs`
    ends: frozenset[int]
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

    With a readout, it is fed and biased as `Conditioning` says.
    """

    def __init__(
        self,
        bundle: Bundle,
        codec: Codec,
        *,
        device: str = "auto",
        batch_requests_max: int = 4,
        queue_max: int = 64,
    ) -> None:
        folder = bundle.decoder_folder
        quiet_transformers()
        self.batch_requests_max = batch_requests_max
        self.queue_max = queue_max
        self.device = resolve_device(device)
        self._codec = codec
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self._model.eval().to(self.device)
        tokenizer, head = AutoTokenizer.from_pretrained(folder), open_head(bundle, self._model)
        self._conditioning = Conditioning(self._model, tokenizer, bundle.manifest.prompt, head)
        self.tokens_max = int(self._model.config.max_position_embeddings)
        self._batch = DecodingBatch(self._model)
        # What stands before every recalled fact is the same each time: its keys and values are computed once. The
        # base model's own prompts are always run whole, so that they stay its own to the bit.
        self._heads = {
            tuple(ids): self._batch.head(ids)
            for ids in (self._conditioning.templates.conditioned("", mode)[0] for mode in AnswerMode)
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
        codec = open_codec(bundle, device=device)
        return cls(bundle, codec, device=device, batch_requests_max=batch_requests_max)

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

    def _prepare(self, request: GenerationRequest, on_chunk: OnChunk) -> Ticket:
        condition = head = None
        if request.readout is not None:
            condition = self._codec.condition(request.readout, request.prompt_tokens, request.target_tokens)
        prompt = self._conditioning.prompt(request.prompt, request.mode, condition)
        if condition is None:
            inputs = {"input_ids": torch.tensor([prompt.before], device=self.device)}
        else:
            head = self._heads.get(tuple(prompt.before)) or self._conditioning.head([prompt])
            start = len(prompt.before) if head else 0
            inputs = {"inputs_embeds": self._conditioning.embeddings(prompt, start).unsqueeze(0)}
        if len(prompt) + request.max_tokens > self.tokens_max:
            raise TextTooLong("prompt", len(prompt), self.tokens_max - request.max_tokens)
        stream = TextStream(self._conditioning.text, strip_start=request.mode is AnswerMode.ANSWER)
        return Ticket(request, on_chunk, inputs, TokenChoice(request, prompt.bias), stream, head, prompt.ends)

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
        if token in ticket.ends:
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
