"""The encoder deployment: a thin Ray Serve shell over `FactEncoder`. Torch runs in one thread, off the event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from memory_actor.errors import LarimarError
from memory_actor.types import EncodedFacts, FactText, Float16Array
from workers.loading import long_lived
from workers.ports import Readback

CALLS_PER_PASS_MAX = 32


@serve.deployment(name="EncoderWorker")
class EncoderWorker:
    """Facts and queries to numbers. Calls that wait while a pass runs share the next one."""

    def __init__(self, bundle_path: str, settings: Mapping[str, Any]) -> None:
        """`settings`: device, torch_threads, batch_texts_max (see `EncoderSettings`). Raises: ModelMissing."""
        started = time.perf_counter()
        with long_lived():
            self._load(bundle_path, settings)
        self._load_s = time.perf_counter() - started

    def _load(self, bundle_path: str, settings: Mapping[str, Any]) -> None:
        import torch  # noqa: PLC0415 - importing this module stays cheap: the process that composes the app needs no torch

        from workers.bundle import Bundle  # noqa: PLC0415
        from workers.fact_encoder import FactEncoder  # noqa: PLC0415

        torch.set_num_threads(int(settings.get("torch_threads", 2)))
        self._bundle = Bundle.open(bundle_path)
        self._encoder = FactEncoder.from_bundle(
            self._bundle,
            device=str(settings.get("device", "auto")),
            batch_texts_max=int(settings.get("batch_texts_max", 64)),
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._encoder.encode_queries([["The first pass allocates; nobody should wait for it."]])

    async def encode_facts(self, facts: list[FactText]) -> EncodedFacts:
        """Keys (the prompts', float16) and latents of N facts. Raises: TextTooLong with the fact's index."""
        encoded: EncodedFacts | LarimarError = await self._facts_pass(facts)
        if isinstance(encoded, LarimarError):
            raise encoded
        return encoded

    async def encode_queries(self, texts: list[str]) -> list[Float16Array]:
        """Keys of N texts, each (P, D) float16; see `FactEncoder`. Raises: TextTooLong with the text's index."""
        keys: list[Float16Array] | LarimarError = await self._queries_pass(texts)
        if isinstance(keys, LarimarError):
            raise keys
        return keys

    async def match(self, readback: Readback) -> float:
        """In [0, 1], whether a query asks for the fact that was read for it; see `FactEncoder`."""
        matched: float = await self._match_pass(readback)
        return matched

    async def match_prompts(self, query: str, prompts: list[str]) -> list[float]:
        """In [0, 1], whether a query asks for the facts of these prompts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._encoder.match_prompts, query, prompts)

    async def status(self) -> dict[str, Any]:
        """What this replica is and how long it took to load (seconds, imports included)."""
        return {
            "pid": os.getpid(),
            "bundle": self._bundle.manifest.name,
            "fingerprint": self._bundle.fingerprint,
            "load_s": round(self._load_s, 2),
        }

    @serve.batch(max_batch_size=CALLS_PER_PASS_MAX, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _facts_pass(self, calls: list[list[FactText]]) -> list[EncodedFacts | LarimarError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.encode_facts, calls)

    @serve.batch(max_batch_size=CALLS_PER_PASS_MAX, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _match_pass(self, calls: list[Readback]) -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.match, calls)

    @serve.batch(max_batch_size=CALLS_PER_PASS_MAX, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _queries_pass(self, calls: list[list[str]]) -> list[list[Float16Array] | LarimarError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.encode_queries, calls)
