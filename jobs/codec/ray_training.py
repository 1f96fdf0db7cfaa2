"""A codec's training on Ray: sentences through Ray Data, processes by Ray Train, progress by a small actor.

A process that dies takes the others with it; Ray Train starts them all again from the newest checkpoint, as often as
`FAILURES_MAX`. The same folder given again goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.ray_environment import make_temp_dir, plan_ray
from cluster.settings import RaySettings, Settings
from jobs.codec.board import Board
from jobs.codec.models import CodecRun
from jobs.codec.rows import RowReader
from jobs.codec.sentences import Sentence

FAILURES_MAX = 3
_OBJECT_STORE_MB = 1000
_POLL_S = 0.5

Listener = Callable[[int, float, float], None]  # steps, share of the run, loss


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run leaves: its newest checkpoint (a file of `TimedTrainer.save`) and its curve."""

    checkpoint: Path
    curve: list[dict[str, Any]]


@contextmanager
def own_ray(address: str | None, cpus: int) -> Iterator[None]:
    """Connect to the cluster at `address` or, if None, start a Ray of our own, closed to others, and end it again."""
    temp_dir = None
    if address is None:
        temp_dir = make_temp_dir()
        # In the environment and not in a file, since Ray remembers it: a second run must find the same.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        settings = Settings(ray=RaySettings(haproxy=False, object_store_mb=_OBJECT_STORE_MB))
        plan = plan_ray(settings, temp_dir / "token", temp_dir)
        plan.apply(os.environ)
    import ray  # noqa: PLC0415 - reads the environment when it is imported

    try:
        if temp_dir is None:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(**plan.init_arguments | {"num_cpus": cpus})
        yield
    finally:
        ray.shutdown()
        if temp_dir is not None:
            shutil.rmtree(temp_dir, ignore_errors=True)


def train(
    run: CodecRun,
    sentences: Sequence[Sentence],
    out: Path,
    *,
    workers: int = 1,
    gpu: bool = False,
    start: Path | None = None,
    report_steps: int = 25,
    listen: Listener = lambda _steps, _share, _loss: None,
    watch: Callable[[Board], None] = lambda _board: None,
) -> Trained:
    """Train with Ray connected. `watch` is shown the board now and then. `out` must be seen by all nodes.

    Raises: RuntimeError if the run failed more often than `FAILURES_MAX`.
    """
    import ray  # noqa: PLC0415 - after the environment is set
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchTrainer  # noqa: PLC0415

    from jobs.codec.train_loop import CHECKPOINT_FILE, CURVE_FILE, LoopPlan, train_loop  # noqa: PLC0415

    ray.data.DataContext.get_current().enable_progress_bars = False
    board: Any = ray.remote(Board).options(num_cpus=0).remote()
    threads = max(1, (os.cpu_count() or 1) // workers)
    loop = LoopPlan(run, board, threads, report_steps, None if start is None else str(start.resolve()))
    trainer: Any = TorchTrainer(
        train_loop,
        train_loop_config={"plan": loop},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name="run",
            storage_path=str(out.resolve()),
            failure_config=FailureConfig(max_failures=FAILURES_MAX),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={"sentences": dataset(run, sentences)},
        dataset_config=DataConfig(datasets_to_split=[]),  # each process draws from all of them
    )
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_POLL_S):
            seen = ray.get(board.read.remote())
            listen(*seen.latest)
            watch(seen)

    side = threading.Thread(target=poll, daemon=True)
    side.start()
    try:
        result = trainer.fit()
    finally:
        ended.set()
        side.join()
        ray.kill(board)
    folder = Path(result.checkpoint.path)
    return Trained(folder / CHECKPOINT_FILE, json.loads((folder / CURVE_FILE).read_bytes()))


def dataset(run: CodecRun, sentences: Sequence[Sentence]) -> Any:
    """A Ray dataset of rows: number, whether held out, ids of encoder and decoder. What does not fit is left out."""
    import pyarrow as pa  # noqa: PLC0415
    import ray  # noqa: PLC0415

    read = RowReader.of(run.bundle, run.shape.slots)

    def to_rows(batch: pa.Table) -> pa.Table:
        rows = read(batch["text"].to_pylist())
        kept = [index for index, row in enumerate(rows) if row is not None]
        return pa.table(
            {
                "number": batch["number"].take(kept),
                "held_out": batch["held_out"].take(kept),
                "encoder_ids": pa.array([row.encoder_ids for row in rows if row], pa.list_(pa.int32())),
                "decoder_ids": pa.array([row.decoder_ids for row in rows if row], pa.list_(pa.int32())),
            }
        )

    table = pa.table(
        {
            "number": range(len(sentences)),
            "text": [one.text for one in sentences],
            "held_out": [one.validation for one in sentences],
        }
    )
    return ray.data.from_arrow(table).map_batches(to_rows, batch_size=8192, batch_format="pyarrow")
