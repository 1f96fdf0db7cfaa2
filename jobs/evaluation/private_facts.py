"""The private test set: facts nobody could know, asked for in other words, and near misses that must not be let in.

It was written as a test set and is never trained on. It belongs to the checkout, not to the installed package: where
the file is absent the figures are left out, and the summary says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.evaluation.gate import Gate
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import LarimarMemory, as_ask, whole
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.recalls import figures, says
from jobs.evaluation.statistics import share
from jobs.scope_evaluation import PRIVATE_BARS, measure_private
from memory_actor.types import FactText
from workers.ports import AnswerMode

FILE = Path(__file__).parents[2] / "tests" / "model_fixtures" / "private_scope_triples.json"
ANSWER_TOKENS = 48


def measure_private_facts(lab: Lab, gates: Sequence[Gate], outcome: Outcome, file: Path = FILE) -> None:
    """Each gate with all facts of the set stored together, and our own decoder's answers to the questions."""
    if not file.is_file():
        outcome.summary[f"{outcome.name}.private"] = f"not measured: {file.name} is not installed"
        return
    for gate in gates:
        scores = measure_private(gate.scorer, file)
        for bar in PRIVATE_BARS:
            let_in = share((scores[bar.key] >= gate.threshold).tolist())
            outcome.summary |= figures(f"{gate.place}.{bar.key}", let_in)
            listed = [round(float(score), 4) for score in scores[bar.key]]
            outcome.items.append({"row": gate.row, "kind": bar.key, "scores": listed})
    _answer(lab, file, outcome)


def _answer(lab: Lab, file: Path, outcome: Outcome) -> None:
    """With all facts in memory: whether a question brings its fact back whole, and the answer contains its target.

    Facts that are one sentence have no target: what they answer is not judged.
    """
    triples = json.loads(file.read_bytes())["triples"]
    facts = [FactText(triple["stored"], triple.get("target")) for triple in triples]
    questions = [triple["question"] for triple in triples]
    memory = LarimarMemory(lab)
    memory.write(facts)
    found = memory.recall(questions)
    memory.close()
    recalled = [
        one.index == index and whole(one, fact, lab.codec)
        for index, (one, fact) in enumerate(zip(found, facts, strict=True))
    ]
    judged = [index for index, fact in enumerate(facts) if fact.target is not None]
    asks = [
        as_ask(found[index], questions[index], mode=AnswerMode.ANSWER, max_tokens=ANSWER_TOKENS) for index in judged
    ]
    answers = lab.pool.answer(asks, "scope: private facts asked for")
    said = [says(answer.text, facts[index].target or "") for index, answer in zip(judged, answers, strict=True)]
    outcome.summary |= figures(f"{outcome.name}.private_recalled", share(recalled))
    outcome.summary |= figures(f"{outcome.name}.private_answered", share(said))
    outcome.items += [
        {
            "row": "larimar",
            "kind": "private_answer",
            "query": questions[index],
            "target": facts[index].target,
            "recalled": recalled[index],
            "text": answer.text,
            "said": right,
        }
        for index, answer, right in zip(judged, answers, said, strict=True)
    ]
