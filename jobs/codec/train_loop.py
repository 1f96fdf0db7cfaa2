"""One process of a codec's training, as Ray Train runs it: rows from Ray Data, checkpoints and curve to Ray Train."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import torch

from jobs.codec.models import CodecRun
from jobs.codec.rows import Row
from jobs.codec.training import CodecTrainer
from jobs.company import Company
from workers.trained_codec import TRAINED, TrainedCodec

CHECKPOINT_FILE, CURVE_FILE = "checkpoint.pt", "curve.json"
HELD_OUT, EPISODE = 128, 16  # sentences looked at for the curve


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """What each process is given. `board` is the actor that hears of every step; `start` a trained codec's folder."""

    run: CodecRun
    board: Any
    threads: int
    report_steps: int = 25
    start: str | None = None


def train_loop(config: dict[str, LoopPlan]) -> None:
    """Train to the end. Every process has all sentences: what it draws depends on seed, step and rank alone."""
    plan = config["plan"]
    torch.set_num_threads(plan.threads)
    company = Company()
    trained, held_out = _rows()
    run = replace(plan.run, device="cuda" if torch.cuda.is_available() else "cpu")
    trainer = run.trainer(trained, company)
    curve = _resume(trainer, plan.start)
    looked_at = random.Random(1).sample(held_out, min(HELD_OUT, len(held_out)))  # noqa: S311 - reproducible
    losses: list[float] = []
    plan.board.started.remote(company.rank, os.getpid())
    started, before = time.perf_counter(), float(curve[-1]["wall_minutes"]) if curve else 0.0
    while trainer.progress < 1:
        phase = "spelling" if trainer.spelling_only else "joint"
        losses.append(trainer.step())
        if company.rank == 0:
            plan.board.stepped.remote(trainer.steps_done, min(1.0, trainer.progress), losses[-1])
        if trainer.steps_done % plan.report_steps and trainer.progress < 1:
            continue
        point = {
            "step": trainer.steps_done,
            "phase": phase,
            "minutes": round(trainer.cpu_s / 120, 2),
            "wall_minutes": round(before + (time.perf_counter() - started) / 60, 2),
            "loss": round(sum(losses) / len(losses), 4),
            **(shares(trainer, looked_at) if company.rank == 0 else {}),
        }
        losses.clear()
        curve.append(point)
        _report(trainer, curve, company)


def _rows() -> tuple[list[Row], list[Row]]:
    """Training and held-out rows, in the order of their numbers."""
    shard = ray.train.get_dataset_shard("sentences")
    found: list[tuple[int, bool, Row]] = []
    for batch in shard.iter_batches(batch_size=8192, batch_format="pyarrow"):
        found += [
            (one["number"], one["held_out"], Row(tuple(one["encoder_ids"]), tuple(one["decoder_ids"])))
            for one in batch.to_pylist()
        ]
    found.sort(key=lambda one: one[0])
    return [row for _, out, row in found if not out], [row for _, out, row in found if out]


def _resume(trainer: CodecTrainer, start: str | None) -> list[dict[str, Any]]:
    """Go on from the newest checkpoint of this run or, if none, begin at `start`. Returns the curve."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        if start is not None:
            trainer.begin_with(TrainedCodec.open(Path(start)).tensors(*TRAINED))
        return []
    with checkpoint.as_directory() as folder:
        trainer.resume(Path(folder) / CHECKPOINT_FILE)
        curve: list[dict[str, Any]] = json.loads((Path(folder) / CURVE_FILE).read_bytes())
    return curve


def shares(trainer: CodecTrainer, rows: Sequence[Row]) -> dict[str, float]:
    """Held-out sentences in episodes, see `CodecTrainer.rebuilt`."""
    episodes = [rows[start : start + EPISODE] for start in range(0, len(rows) - EPISODE + 1, EPISODE)]
    found = [trainer.rebuilt(episode) for episode in episodes]
    return {name: round(sum(one[name] for one in found) / len(found), 4) for name in (found[0] if found else ())}


def _report(trainer: CodecTrainer, curve: Sequence[dict[str, Any]], company: Company) -> None:
    """Every process takes part; the first one brings the checkpoint."""
    if company.rank:
        ray.train.report({"step": trainer.steps_done})
        return
    with tempfile.TemporaryDirectory() as scratch:
        trainer.save(Path(scratch) / CHECKPOINT_FILE)
        (Path(scratch) / CURVE_FILE).write_text(json.dumps(curve), encoding="utf-8")
        ray.train.report({"step": trainer.steps_done}, checkpoint=ray.train.Checkpoint.from_directory(scratch))
