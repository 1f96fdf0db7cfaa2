"""Where the milliseconds of one request went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Milliseconds by stage of one request."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.ms[stage] = round((time.perf_counter() - started) * 1e3, 3)

    def add(self, stage: str, ms: float) -> None:
        self.ms[stage] = round(ms, 3)

    def done(self) -> dict[str, float]:
        self.add("total", (time.perf_counter() - self._started) * 1e3)
        return self.ms
