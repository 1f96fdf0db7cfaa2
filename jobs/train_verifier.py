"""`larimar train verifier`: train the scope verifier, choose the thresholds of both stages, write weights and card.

    python -m jobs.train_verifier --data DIR [--minutes 28] [--seed N] [--out FOLDER]

It belongs to the scope encoder of this package and starts from it. DIR is as for `larimar train scope`. The same data,
seed and options give the same batches; a run that was stopped continues from its checkpoint in FOLDER.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import save_file

from jobs.evaluation.gate import VerifiedScorer
from jobs.evaluation.matches import Matches
from jobs.scope_evaluation import (
    EncodeScorer,
    Scores,
    choose_threshold,
    load_questions,
    measure,
    measure_private,
    summary,
)
from jobs.scope_pairs import PairSource
from jobs.train_scope import results_table, train, write_card
from jobs.verifier_training import VerifierPlan, VerifierTrainer
from memory_actor.errors import ModelMissing
from workers.scope_verifier import ScopeVerifier
from workers.sentence_encoder import SentenceEncoder
from workers.trained_scope import HEAD_FILE, compose_encoder, read_card, write_tensors

COSINES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)  # tried as the first stage's threshold
MATCHES = np.round(np.arange(0.02, 0.995, 0.02), 2)  # as the second's
_TOKENS_MAX = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Train, evaluate beside the cosine alone, write; 0 when everything was written."""
    parser = argparse.ArgumentParser(prog="larimar train verifier", description="Train the scope verifier.")
    parser.add_argument("--data", type=Path, required=True, help="folder of CounterFact, PARAREL, LRE, CREAK and texts")
    minutes = VerifierPlan().minutes
    parser.add_argument("--minutes", type=float, default=minutes, help="of two cores, as CPU time; default 28")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=VerifierPlan().steps, help="batches at most")
    parser.add_argument("--out", type=Path, default=Path("scope_verifier"), help="where tensors and card are written")
    parser.add_argument("--private", type=Path, help="a test set of private facts, only reported")
    arguments = parser.parse_args(argv)
    plan = VerifierPlan(seed=arguments.seed, steps=arguments.steps, minutes=arguments.minutes)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        encoder = Path(scratch) / "encoder"
        try:
            compose_encoder(encoder)
        except ModelMissing as error:
            console.print(f"[red]{error}[/]")
            return 1
        trainer = VerifierTrainer(encoder, PairSource.load(arguments.data), plan)
        train(trainer, arguments.out, console)
        finder = SentenceEncoder(encoder, tokens_max=_TOKENS_MAX)
        card = evaluate(trainer, finder, arguments.data, arguments.private, console)
    write(trainer, card, arguments.out)
    console.print(f"written to {arguments.out}")
    return 0


def evaluate(
    trainer: VerifierTrainer, finder: SentenceEncoder, data: Path, private: Path | None, console: Console
) -> dict[str, Any]:
    """The card without its hashes: both thresholds, the curve of the second, and results beside the cosine alone."""
    questions = load_questions(data)
    cosine, matches = EncodeScorer(finder.encode), Matches(ScopeVerifier(trainer.network))
    columns: dict[str, dict[str, float]] = {}
    with console.status("evaluating"):
        scores: dict[str, Scores] = measure(cosine, questions)
        if private is not None:
            scores |= measure_private(cosine, private)
        columns["cosine alone"] = summary(scores, float(read_card()["threshold"]))
        tried = {}
        for cosine_min in COSINES:
            scores = measure(VerifiedScorer(cosine, matches, cosine_min), questions)
            tried[cosine_min] = (*choose_threshold(scores, MATCHES), scores)
        best = _sparing({cosine_min: _cost(curve) for cosine_min, (_, curve, _) in tried.items()})
        threshold, curve, scores = tried[best]
        if private is not None:
            scores |= measure_private(VerifiedScorer(cosine, matches, best), private)
        columns["verified"] = summary(scores, threshold)
    console.print(results_table(columns))
    encoder_card = read_card()
    return {
        "base": encoder_card["base"],
        "scope_encoder_sha256": encoder_card["composed_sha256"],
        "seed": trainer.plan.seed,
        "steps": trainer.steps_done,
        "cpu_minutes": round(trainer.cpu_s / 60, 1),
        "data": encoder_card["data"],
        "scope_threshold": best,
        "threshold": threshold,
        "results": columns["verified"],
        "cosine_results": columns["cosine alone"],
        "cosines": {str(cosine_min): _cost(one[1]) for cosine_min, one in tried.items()},
        "curve": curve,
    }


def _cost(curve: Sequence[dict[str, float]]) -> float:
    return min(point["cost"] for point in curve)


def _sparing(costs: dict[float, float]) -> float:
    """The highest cosine that costs at most a twentieth more than the best: what is plainly unrelated is never read."""
    return max(cosine_min for cosine_min, cost in costs.items() if cost <= 1.05 * min(costs.values()))


def write(trainer: VerifierTrainer, card: dict[str, Any], out: Path) -> None:
    """Tensors, head and card into `out`, with the hashes that a bundle checks."""
    write_tensors({name: tensor.numpy() for name, tensor in trainer.tensors().items()}, out)
    save_file(trainer.head(), out / HEAD_FILE, metadata={"format": "pt"})
    write_card(card, out)


if __name__ == "__main__":
    sys.exit(main())
