"""The decoder deployment: a thin Ray Serve shell over `CausalDecoder`, which batches and decodes in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ray import serve

from workers.loading import long_lived
from workers.ports import Generation, GenerationChunk, GenerationRequest


@serve.deployment(name="DecoderWorker")
class DecoderWorker:
    """Requests to text, whole or streamed."""

    def __init__(self, bundle_path: str, settings: Mapping[str, Any]) -> None:
        """`settings`: device, torch_threads, batch_requests_max (see `DecoderSettings`). Raises: ModelMissing."""
        started = time.perf_counter()
        with long_lived():
            self._load(bundle_path, settings)
        self._load_s = time.perf_counter() - started

    def _load(self, bundle_path: str, settings: Mapping[str, Any]) -> None:
        import torch  # noqa: PLC0415 - importing this module stays cheap: the process that composes the app needs no torch

        from workers.bundle import Bundle  # noqa: PLC0415
        from workers.decoder import CausalDecoder  # noqa: PLC0415

        torch.set_num_threads(int(settings.get("torch_threads", 2)))
        self._bundle = Bundle.open(bundle_path)
        self._decoder = CausalDecoder.from_bundle(
            self._bundle,
            device=str(settings.get("device", "auto")),
            batch_requests_max=int(settings.get("batch_requests_max", 4)),
        )
        list(self._decoder.generate(GenerationRequest("The first pass allocates", max_tokens=2)))

    async def generate(self, request: GenerationRequest) -> Generation:
        """The whole text at once. Raises: TextTooLong, Overloaded, Unavailable."""
        return Generation.of([chunk async for chunk in self._chunks(request)])

    async def stream(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        """Chunks as they are made (call with `stream=True`). A dropped stream frees its place in the batch.

        Raises: TextTooLong, Overloaded, Unavailable.
        """
        async for chunk in self._chunks(request):
            yield chunk

    async def status(self) -> dict[str, Any]:
        """What this replica is, how long it took to load (seconds, imports included), and its load now."""
        return {
            "pid": os.getpid(),
            "bundle": self._bundle.manifest.name,
            "fingerprint": self._bundle.fingerprint,
            "load_s": round(self._load_s, 2),
            **self._decoder.load(),
        }

    async def _chunks(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[GenerationChunk | Exception] = asyncio.Queue()

        def hand_over(chunk: GenerationChunk | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the replica is going, nobody listens
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        # Tokenising and the soft prefix are a few milliseconds of work that must not hold up the event loop.
        ticket = await asyncio.to_thread(self._decoder.submit, request, hand_over)
        try:
            while True:
                chunk = await chunks.get()
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            ticket.cancel()
