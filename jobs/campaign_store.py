"""A small memory engine on a state folder of its own, for campaigns: starts in milliseconds, keeps everything.

Shards hold 8 rows, so that a few dozen facts fill, freeze and reopen many of them.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from memory_actor.addressing import Addressing
from memory_actor.engine import EngineSettings, MemoryEngine, random_fact_id
from memory_actor.ledger import Ledger
from memory_actor.types import EncodedFacts, FactText, Float16Array, Idempotency, Int8Array, MemoryConfig

ERASE_WINDOW_S = 0.4
LOCAL = "local"
_SCRATCH_BYTES = 1 << 30


class SmallShards(MemoryConfig):
    """A memory whose shards are full at a quarter of K: random addresses stay well conditioned, so recall is exact."""

    __slots__ = ()

    @property
    def shard_rows_max(self) -> int:
        return 8


CONFIG = SmallShards(
    fingerprint="ca3b",
    key_size=8,
    address_size=32,
    latent_size=24,
    feature_map_scale=4.0,
    ridge=1e-6,
    rows_per_fact_max=3,
)


@dataclass(frozen=True, slots=True)
class PlannedFact:
    """A fact by numbers: `prompt` chooses text and key, `seed` the target and the latents."""

    prompt: int
    seed: int
    rows: int = 1
    keep_both: bool = False

    def text(self) -> FactText:
        return FactText(prompt_text(self.prompt), target_text(self.seed), (f"tag{self.prompt % 3}",), self.keep_both)

    def latents(self) -> Int8Array:
        """(rows, C) of +1 and -1."""
        signs = np.random.default_rng(self.seed).integers(0, 2, (self.rows, CONFIG.latent_size))
        latents: Int8Array = (2 * signs - 1).astype(np.int8)
        return latents


def prompt_text(prompt: int) -> str:
    return f"needle prompt {prompt:06d} of the campaign"


def target_text(seed: int) -> str:
    return f"needle target {seed:012d}"


@cache
def key_of(prompt: int) -> Float16Array:
    """The unit key (D,) of a prompt."""
    key = np.random.default_rng(10_000 + prompt).standard_normal(CONFIG.key_size)
    unit: Float16Array = (key / np.linalg.norm(key)).astype(np.float16)
    return unit


@cache
def addressing() -> Addressing:
    return Addressing(CONFIG)


def encoded(facts: Sequence[PlannedFact]) -> EncodedFacts:
    """What an encoder would send with these facts."""
    rows = np.array([fact.rows for fact in facts], np.int32)
    tokens = np.ones(len(facts), np.int32)
    keys = np.stack([key_of(fact.prompt) for fact in facts])
    return EncodedFacts(keys, np.concatenate([fact.latents() for fact in facts]), rows, tokens, tokens)


def once(key: str, endpoint: str = "campaign") -> Idempotency:
    return Idempotency(key, bytes(32), endpoint)


@dataclass(frozen=True, slots=True)
class Store:
    """An open engine and the ledger under it. `poisoned` holds what stopped the writer, if anything did."""

    engine: MemoryEngine
    ledger: Ledger
    poisoned: list[BaseException]


def open_store(
    state_dir: Path,
    *,
    url: str | None = None,
    on_poison: Callable[[BaseException], None] | None = None,
    new_fact_id: Callable[[], str] = random_fact_id,
    erase_window_s: float = ERASE_WINDOW_S,
) -> Store:
    """Open or create everything in `state_dir`, as the actor does at its start. Raises StartupError subclasses."""
    poisoned: list[BaseException] = []
    engine = MemoryEngine.open(
        0,
        state_dir,
        CONFIG,
        EngineSettings(ledger_url=url, erase_window_s=erase_window_s),
        on_poison=on_poison or poisoned.append,
        new_fact_id=new_fact_id,
    )
    return Store(engine, engine._ledger, poisoned)  # the engine's own: a second one would take its epoch


def fresh_schema(url: str) -> str:
    """A PostgreSQL ledger URL with a schema of its own, which stays in the database afterwards."""
    return f"{url}{'&' if '?' in url else '?'}schema=campaign_{secrets.token_hex(6)}"


@contextmanager
def scratch(*, durable: bool) -> Iterator[Path]:
    """A folder that is removed at the end; in memory, where flushes cost nothing, unless `durable`."""
    memory = Path("/dev/shm")  # noqa: S108 - a name of our own in it
    folder = memory if not durable and memory.is_dir() and shutil.disk_usage(memory).free > _SCRATCH_BYTES else None
    with tempfile.TemporaryDirectory(prefix="larimar-campaign-", dir=folder) as path:
        yield Path(path)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for tensor operations. With small tensors, as here, more than one only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def opened(state_dir: Path, **options: object) -> Iterator[Store]:
    """`open_store`, closed at the end."""
    store = open_store(state_dir, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.engine.close()
