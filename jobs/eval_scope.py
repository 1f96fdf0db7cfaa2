"""How well scope is decided: the shipped scope encoder beside plain MiniLM, on the same questions, in the same run.

    python -m jobs.eval_scope [--data DIR] [--private FILE] [--trained FOLDER] [--json FILE]

Every encoder is taken at its own best threshold: the shipped one at its card's, plain MiniLM at the one that the same
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

from jobs.scope_evaluation import Scores, choose_threshold, load_questions, measure, measure_private, summary
from jobs.train_scope import BASE, results_table
from workers.sentence_encoder import SentenceEncoder
from workers.sources import locate_model
from workers.trained_scope import FOLDER, compose_encoder, read_card

TOKENS_MAX = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 when it ran to its end."""
    parser = argparse.ArgumentParser(prog="python -m jobs.eval_scope", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="data folder; see docs/scope.md")
    parser.add_argument(
        "--private", type=Path, help="private test set (tests/model_fixtures/private_scope_triples.json)"
    )
    parser.add_argument("--trained", type=Path, default=FOLDER, help="tensors and card; default: the shipped ones")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
    if arguments.data is None and arguments.private is None:
        parser.error("nothing to measure: give --data, --private or both")
    columns = run(arguments.data, arguments.private, arguments.trained)
    Console().print(results_table(columns))
    if arguments.json is not None:
        flat = {f"scope.{key}": value for key, value in columns["trained"].items()}
        flat |= {f"scope.plain.{key}": value for key, value in columns["plain"].items()}
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")
    return 0


def run(data: Path | None, private: Path | None, trained: Path) -> dict[str, dict[str, float]]:
    """Results of both encoders by name."""
    card = read_card(trained)
    questions = load_questions(data) if data is not None else None
    with tempfile.TemporaryDirectory() as scratch:
        compose_encoder(Path(scratch) / "trained", trained)
        encoders = {
            "plain": SentenceEncoder(locate_model(BASE, "encoder"), tokens_max=TOKENS_MAX),
            "trained": SentenceEncoder(Path(scratch) / "trained", tokens_max=TOKENS_MAX),
        }
    columns = {}
    for name, encoder in encoders.items():
        scores: dict[str, Scores] = measure(encoder.encode, questions) if questions is not None else {}
        threshold = float(card["threshold"] if name == "trained" else card["plain_results"]["threshold"])
        if name == "plain" and scores:
            threshold, _ = choose_threshold(scores)
        if private is not None:
            scores |= measure_private(encoder.encode, private)
        columns[name] = summary(scores, threshold)
    return columns


if __name__ == "__main__":
    sys.exit(main())
