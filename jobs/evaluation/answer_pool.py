"""Asks answered by several processes at once: Ray actors, one per core or GPU, and the store that keeps the answers."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.ray_environment import make_temp_dir, plan_ray
from cluster.settings import RaySettings, Settings
from jobs.evaluation.answer_store import AnswerStore, decoder_fingerprint
from jobs.evaluation.asks import Answer, Ask
from memory_actor.errors import Unavailable
from workers.bundle import Bundle
from workers.runtime import resolve_device

TRIES = 3  # of one chunk, each in a fresh process
# Asks sent to a worker at a time. Few, so that answers are soon on disk; more where a long beginning is run for each
# chunk again, and where a worker answers hundreds in a second.
CHUNK_ASKS, CHUNK_ASKS_FACTS, CHUNK_ASKS_GPU = 64, 256, 1024

_Digested = tuple[str, Ask]


class AnswerWorker:
    """One decoder in a process of its own. Ray runs it with one CPU, which means one torch thread."""

    def __init__(self, folder: str, device: str) -> None:
        from jobs.evaluation.answering import Answerer  # noqa: PLC0415 - transformers is slow, and only wanted here

        torch.set_num_threads(1)
        self._answerer = Answerer(Bundle.open(folder), device)

    def answer(self, chunk: list[_Digested]) -> list[tuple[str, Answer]]:
        """Answers by the digests of the asks."""
        answers = self._answerer.answer([ask for _, ask in chunk])
        return [(digest, answer) for (digest, _), answer in zip(chunk, answers, strict=True)]


class AnswerPool:
    """The decoders of one evaluation run. A context manager; the workers start with the first ask not yet answered."""

    def __init__(
        self, bundle: Bundle, store: Path, console: Console, *, workers: int | None = None, device: str = "auto"
    ) -> None:
        """`store` is the file of answers, made if absent. `workers` defaults to one per GPU, else one per core."""
        self._bundle = bundle
        self._store = AnswerStore(store, decoder_fingerprint(bundle))
        self._console = console
        self._device = resolve_device(device)
        gpu = self._device.type == "cuda"
        self._workers = workers or (torch.cuda.device_count() if gpu else os.cpu_count()) or 1
        self._actors: list[Any] = []
        self._temp_dir: Path | None = None

    def __enter__(self) -> AnswerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the workers, and Ray if it was started here."""
        self._store.close()
        if self._actors:
            import ray  # noqa: PLC0415 - imported by now

            for actor in self._actors:
                ray.kill(actor)
            self._actors = []
            if self._temp_dir is not None:
                ray.shutdown()
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)

    def answer(self, asks: Sequence[Ask], what: str) -> list[Answer]:
        """Answers in the order of `asks`, under a progress bar titled `what`. Equal asks are asked once, ever.

        Raises: what `Answerer.answer` raises; Unavailable if the same asks end their worker again and again. Answers
        that came before an error are kept.
        """
        digests = [ask.digest for ask in asks]
        distinct = dict(zip(digests, asks, strict=True))
        missing = [(digest, ask) for digest, ask in distinct.items() if digest not in self._store]
        if missing:
            with _progress(self._console) as progress:
                task = progress.add_task(what, total=len(distinct), completed=len(distinct) - len(missing))
                for answers in self._ask(missing):
                    self._store.add(answers)
                    progress.advance(task, len(answers))
        return [self._store[digest] for digest in digests]

    def _ask(self, missing: list[_Digested]) -> Iterator[list[tuple[str, Answer]]]:
        """Answers as they come, chunk by chunk."""
        if not self._actors:
            self._start()
        from ray.exceptions import RayActorError  # noqa: PLC0415 - after the environment is set
        from ray.util import ActorPool  # noqa: PLC0415

        pool = ActorPool(self._actors)
        try:
            yield from pool.map_unordered(lambda actor, chunk: actor.answer.remote(chunk), self._chunks(missing))
        except RayActorError as error:
            reason = (
                f"one ended {TRIES} times over the same asks, perhaps for lack of memory. The answers so far are in "
                f"{self._store.path}; fewer workers need less memory"
            )
            raise Unavailable("the answering worker", reason) from error

    def _chunks(self, asks: Iterable[_Digested]) -> list[list[_Digested]]:
        """Asks of one kind together, spread evenly over the workers, in chunks of bounded size."""
        chunks: list[list[_Digested]] = []
        alike = sorted(asks, key=lambda pair: (pair[1].kind, pair[1].max_tokens))
        for (_, _, facts), group in groupby(alike, key=lambda pair: pair[1].kind):
            rows = list(group)
            limit = CHUNK_ASKS_GPU if self._device.type == "cuda" else CHUNK_ASKS_FACTS if facts else CHUNK_ASKS
            size = min(limit, -(-len(rows) // self._workers))
            chunks.extend(rows[start : start + size] for start in range(0, len(rows), size))
        return chunks

    def _start(self) -> None:
        self._start_ray()
        import ray  # noqa: PLC0415 - reads the environment when it is imported

        gpu = self._device.type == "cuda"
        worker: Any = ray.remote(AnswerWorker).options(
            num_cpus=1, num_gpus=1 if gpu else 0, max_restarts=-1, max_task_retries=TRIES - 1
        )
        folder, device = str(self._bundle.folder.resolve()), self._device.type
        self._actors = [worker.remote(folder, device) for _ in range(self._workers)]

    def _start_ray(self) -> None:
        """A Ray of our own, closed to others as `larimar up` closes its own; or the one this process is in already.

        Raises: RuntimeError if Ray was imported, so that it can be closed no more, but not started.
        """
        if "ray" in sys.modules:
            if sys.modules["ray"].is_initialized():
                return
            if os.environ.get("RAY_AUTH_MODE") != "token":
                raise RuntimeError("ray was imported before the pool could close it to others: import it later")
        self._temp_dir = make_temp_dir()
        # In the environment and not in a file, since Ray remembers it: a second pool must find the same.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        plan = plan_ray(Settings(ray=RaySettings(haproxy=False)), self._temp_dir / "token", self._temp_dir)
        plan.apply(os.environ)
        import ray  # noqa: PLC0415 - reads the environment when it is imported

        ray.init(**plan.init_arguments | {"num_cpus": self._workers})


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)
