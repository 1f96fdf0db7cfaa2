"""How well scope is decided: the shipped gate beside plain MiniLM, on the same questions, in the same run.

    python -m jobs.eval_scope [--data DIR] [--private FILE] [--encoder FOLDER] [--verifier FOLDER] [--json FILE]

`plain` is plain MiniLM and `trained` the scope encoder, each deciding alone; `verified` is the scope encoder with the
verifier behind it, as shipped. The shipped ones stand at their cards' thresholds, plain MiniLM at the one that the same
rule chooses for it here. Without --data only the private test set is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jobs.evaluation.gate import Scorer, VerifiedScorer
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
from jobs.train_scope import BASE, results_table
from workers.scope_verifier import ScopeVerifier
from workers.sentence_encoder import SentenceEncoder
from workers.sources import locate_model
from workers.trained_scope import FOLDER, VERIFIER_FOLDER, compose_encoder, compose_verifier, read_card

TOKENS_MAX = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 when it ran to its end."""
    parser = argparse.ArgumentParser(prog="python -m jobs.eval_scope", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="data folder; see docs/scope.md")
    parser.add_argument(
        "--private", type=Path, help="private test set (tests/model_fixtures/private_scope_triples.json)"
    )
    parser.add_argument("--encoder", type=Path, default=FOLDER, help="tensors and card; default: the shipped ones")
    parser.add_argument("--verifier", type=Path, default=VERIFIER_FOLDER, help="tensors and card, likewise")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
    if arguments.data is None and arguments.private is None:
        parser.error("nothing to measure: give --data, --private or both")
    columns = run(arguments.data, arguments.private, arguments.encoder, arguments.verifier)
    Console().print(results_table(columns))
    if arguments.json is not None:
        flat = {f"scope.{key}": value for key, value in columns.pop("verified").items()}
        flat |= {f"scope.{name}.{key}": value for name, column in columns.items() for key, value in column.items()}
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")
    return 0


def run(data: Path | None, private: Path | None, encoder: Path, verifier: Path) -> dict[str, dict[str, float]]:
    """Results of all three gates by name."""
    questions = load_questions(data) if data is not None else None
    columns = {}
    for name, (scorer, threshold) in _gates(encoder, verifier).items():
        scores: dict[str, Scores] = measure(scorer, questions) if questions is not None else {}
        chosen = choose_threshold(scores)[0] if name == "plain" and scores else threshold
        if private is not None:
            scores |= measure_private(scorer, private)
        columns[name] = summary(scores, chosen)
    return columns


def _gates(encoder: Path, verifier: Path) -> dict[str, tuple[Scorer, float]]:
    """Scorer and threshold of each gate."""
    card, verifier_card = read_card(encoder), read_card(verifier)
    with tempfile.TemporaryDirectory() as scratch:
        compose_encoder(Path(scratch) / "encoder", encoder)
        compose_verifier(Path(scratch) / "verifier", verifier)
        plain = EncodeScorer(SentenceEncoder(locate_model(BASE, "encoder"), tokens_max=TOKENS_MAX).encode)
        trained = EncodeScorer(SentenceEncoder(Path(scratch) / "encoder", tokens_max=TOKENS_MAX).encode)
        matches = Matches(ScopeVerifier.open(Path(scratch) / "verifier"))
    verified = VerifiedScorer(trained, matches, float(verifier_card["scope_threshold"]))
    return {
        "plain": (plain, float(card["plain_results"]["threshold"])),
        "trained": (trained, float(card["threshold"])),
        "verified": (verified, float(verifier_card["threshold"])),
    }


if __name__ == "__main__":
    sys.exit(main())
