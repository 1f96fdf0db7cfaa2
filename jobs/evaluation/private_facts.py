"""The private test set: facts nobody could know, asked for in other words, and near misses that must not be let in.

It was written as a test set and is never trained on. It belongs to the checkout, not to the installed package: where
the file is absent the figures are left out, and the summary says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.evaluation.gate_scores import unit
from jobs.evaluation.key_encoder import KeyEncoder
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import LarimarMemory, as_ask
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.recalls import figures, says
from jobs.evaluation.statistics import share
from jobs.scope_evaluation import PRIVATE_BARS, measure_private
from memory_actor.types import FactText
from workers.ports import AnswerMode

FILE = Path(__file__).parents[2] / "tests" / "model_fixtures" / "private_scope_triples.json"
ANSWER_TOKENS = 48

Row = tuple[str, KeyEncoder, float]  # where its figures go, encoder, threshold


def measure_private_facts(lab: Lab, rows: Sequence[Row], outcome: Outcome, file: Path = FILE) -> None:
    """Each row's gate with all facts of the set stored together, and our own decoder's answers to the questions."""
    if not file.is_file():
        outcome.summary[f"{outcome.name}.private"] = f"not measured: {file.name} is not installed"
        return
    for place, encoder, threshold in rows:
        scores = measure_private(
            lambda texts, encoder=encoder: unit(encoder.facts([FactText(text) for text in texts]).keys),
            file,
            ask=encoder.queries,
        )
        for bar in PRIVATE_BARS:
            let_in = share((scores[bar.key] >= threshold).tolist())
            outcome.summary |= figures(f"{place}.{bar.key}", let_in)
            outcome.items.append(
                {"row": place, "kind": bar.key, "scores": [round(float(score), 4) for score in scores[bar.key]]}
            )
    _answer(lab, file, outcome)


def _answer(lab: Lab, file: Path, outcome: Outcome) -> None:
    """Whether the answer to each question contains its fact's target, all facts in memory."""
    triples = json.loads(file.read_bytes())["triples"]
    memory = LarimarMemory(lab)
    memory.write([FactText(triple["stored"], triple["target"]) for triple in triples])
    questions = [triple["question"] for triple in triples]
    found = memory.recall(questions)
    memory.close()
    asks = [
        as_ask(one, question, mode=AnswerMode.ANSWER, max_tokens=ANSWER_TOKENS)
        for one, question in zip(found, questions, strict=True)
    ]
    answers = lab.pool.answer(asks, "scope: private facts asked for")
    right = [says(answer.text, triple["target"]) for answer, triple in zip(answers, triples, strict=True)]
    outcome.summary |= figures(f"{outcome.name}.private_answered", share(right))
    outcome.items += [
        {
            "row": "larimar",
            "kind": "private_answer",
            "query": triple["question"],
            "target": triple["target"],
            "right_fact": one.index == index,
            "text": answer.text,
            "said": said,
        }
        for index, (triple, one, answer, said) in enumerate(zip(triples, found, answers, right, strict=True))
    ]
