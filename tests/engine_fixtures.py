"""Engines on state folders of their own, and the requests that tests of the engine share."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from memory_actor.directory import ledger_path
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.types import ReadMode, Retention, WriteReply
from tests.memory_fixtures import SMALL, encoded_facts, once, sign_latents, texts_of, unit_keys

TIMEOUT_S = 30


class Engines:
    """Opens engines on one state folder, with a clock that ticks and ids that count."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.path = folder, ledger_path(folder, 0)
        self.settings = EngineSettings(**settings)
        self.ticks = itertools.count(1000)
        self.numbers, self.receipts = itertools.count(1), itertools.count(1)
        self.poisons: list[BaseException] = []
        self.opened: list[MemoryEngine] = []

    def open(self) -> MemoryEngine:
        engine = MemoryEngine.open(
            0,
            self.folder,
            SMALL,
            self.settings,
            on_poison=self.poisons.append,
            clock=lambda: float(next(self.ticks)),
            new_fact_id=lambda: f"f_{next(self.numbers):05d}",
            new_receipt_id=lambda: f"r_{next(self.receipts):05d}",
        )
        self.opened.append(engine)
        return engine

    @classmethod
    def on_copy_of_empty_state(cls, folder: Path, **settings: Any) -> Engines:
        return cls(shutil.copytree(empty_state(), folder), **settings)

    def close(self) -> None:
        """Close all engines; none of them may have been poisoned, unless the test took note and cleared `poisons`."""
        for engine in self.opened:
            engine.close()
        assert self.poisons == []

    def reopen(self, engine: MemoryEngine) -> MemoryEngine:
        engine.close()
        return self.open()


@cache
def empty_state() -> Path:
    """A state folder without content, made once per process: its migrations take half a second."""
    folder = Path(tempfile.mkdtemp(prefix="larimar-engines-"))
    atexit.register(shutil.rmtree, folder)
    Engines(folder).open().close()
    return folder


KEYS = itertools.count()


def fresh() -> str:
    return f"key-{next(KEYS)}"


def create(engine: MemoryEngine, name: str = "acme", retention: Retention = Retention.TEXT):
    return engine.create_tenant(name, retention, once(fresh(), endpoint="create")).result(TIMEOUT_S)


def write(engine: MemoryEngine, start: int, count: int, tenant: str = "acme", **fields) -> WriteReply:
    """Write the facts number start.. with keys and latents of their own."""
    texts = [replace(text, **fields) for text in texts_of(count, start)]
    return engine.write(tenant, texts, encoding(start, count), once(fresh())).result(TIMEOUT_S)


def encoding(start: int, count: int):
    keys, latents = unit_keys(1, start + count)[start:], sign_latents(2, start + count)[start:]
    return encoded_facts(keys, latents)


def forget(engine: MemoryEngine, ids, tenant: str = "acme", **fields):
    return engine.forget(tenant, ids, once(fresh(), endpoint="forget"), **fields).result(TIMEOUT_S)


def together(engine: MemoryEngine, submit: Callable[[], list]) -> list:
    """Futures of commands that share one commit: the writer is kept busy while they are submitted."""
    busy, free = threading.Event(), threading.Event()
    commit = engine._ledger.commit

    def held(entries, now):
        busy.set()
        assert free.wait(TIMEOUT_S)
        commit(entries, now)

    engine._ledger.commit = held
    first = engine.create_tenant(f"busy-{fresh()}", Retention.TEXT, once(fresh()))
    assert busy.wait(TIMEOUT_S)
    engine._ledger.commit = commit
    futures = submit()
    free.set()
    first.result(TIMEOUT_S)
    wait(futures, TIMEOUT_S)
    return futures


def seen(engine: MemoryEngine, count: int, tenant: str = "acme") -> list[tuple]:
    """What reads give for the first `count` keys: everything but times."""
    recalls = [engine.recall(tenant, key[None], ReadMode.SNAP, 0) for key in unit_keys(1, count)]
    return [
        (r.version, r.in_scope, r.score, r.fact_id, None if r.readout is None else np.sign(r.readout).tobytes())
        for r in recalls
    ]
