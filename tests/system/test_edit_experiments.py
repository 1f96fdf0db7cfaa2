"""The edit experiments on the real memory and encoders. Only the decoder is a stand-in: it says what it is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from jobs.evaluation import counterfact, leakage, sequential, zsre
from jobs.evaluation.answer_pool import AnswerPool
from jobs.evaluation.asks import Answer, Ask
from jobs.evaluation.lab import Lab
from jobs.evaluation.records import EvalData
from workers.bundle import Bundle

PLACES = (("France", "Oslo"), ("Peru", "Rome"), ("Japan", "Cairo"), ("Kenya", "Delhi"), ("Chile", "Lagos"))
RECORDS = [
    {
        "case_id": case,
        "prompt": f"The capital of {place} is",
        "target_new": city,
        "subject": place,
        "ground_truth": "Paris",
        "rephrase_prompt": f"The capital city of {place} is",
        "locality_prompt": "The capital of Peru is" if place == "France" else "Water boils at",
        "locality_ground_truth": "Paris",
    }
    for case, (place, city) in enumerate(PLACES)
]
QUESTIONS = [
    {
        "subject": place,
        "src": f"What is the capital of {place}?",
        "rephrase": f"What is the capital city of {place}?",
        "alt": city,
        "answers": ["Paris"],
        "loc": "nq question: who sang the theme of the film",
        "loc_ans": "nobody",
    }
    for place, city in PLACES
]


class Parrot:
    """A pool whose decoder says the target of what it is given, and "Paris" when it is given nothing."""

    def __init__(self, bundle: Bundle) -> None:
        self._tokenizer = Tokenizer.from_file(str(bundle.decoder_folder / "tokenizer.json"))

    def answer(self, asks: Sequence[Ask], what: str) -> list[Answer]:
        return [self._answer(ask) for ask in asks]

    def _answer(self, ask: Ask) -> Answer:
        text = "Paris"
        if ask.condition is not None:
            text = self._tokenizer.decode(ask.condition.candidates[ask.condition.target_start :, 0].tolist())
        elif ask.facts:
            text = ask.facts[-1]
        nll = tuple(0.1 if candidate in text else 2.0 for candidate in ask.candidates)
        return Answer(nll, text, tuple(text.encode()))


@pytest.fixture(scope="module")
def lab(bundle: Bundle) -> Lab:
    pool = cast(AnswerPool, Parrot(bundle))
    return Lab.open(bundle, pool, EvalData(None), Console(quiet=True), device="cpu")


def data(folder: Path, content: list[dict[str, Any]]) -> EvalData:
    path = folder / "records.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return EvalData.open(path)


def test_counterfact_with_many_edits_in_memory(lab: Lab, tmp_path: Path) -> None:
    """Edits succeed, unrelated outputs stay, the neighbour that is a live edit is left out, every row is there."""
    lab.data, lab.limit, lab.in_memory, lab.rows = data(tmp_path, RECORDS), None, 5, "all"
    outcome = counterfact.run(lab)
    summary = outcome.summary
    assert (summary["counterfact.n"], summary["counterfact.neighbours_excluded"]) == (5, 1)
    for key in ("edit_success", "generation_edit", "rephrase_success", "generation_rephrase", "right_fact"):
        assert summary[f"counterfact.{key}"] == 1.0, key
    assert summary["counterfact.changed_out_of_scope"] == 0.0
    assert summary["counterfact.base_neighbourhood_success"] == 1.0
    assert summary["counterfact.unedited.edit_success"] == 0.0
    assert summary["counterfact.nearest.edit_success"] == 1.0
    assert summary["counterfact.paper.edit_success"] == 1.0
    assert len([item for item in outcome.items if item["row"] == "larimar" and item["kind"] == "edit"]) == 5


def test_counterfact_with_one_edit_in_memory(lab: Lab, tmp_path: Path) -> None:
    """Alone in memory, an edit knows of no other: the neighbour that names another edit's subject is a fair one."""
    lab.data, lab.limit, lab.in_memory, lab.rows = data(tmp_path, RECORDS), 3, 1, "larimar"
    summary = counterfact.run(lab).summary
    assert (summary["counterfact.n"], summary["counterfact.in_memory"]) == (3, 1)
    assert summary["counterfact.neighbours_excluded"] == 0
    assert summary["counterfact.edit_success"] == 1.0
    assert not any(".unedited." in key for key in summary)


def test_zsre_after_the_whole_sequence(lab: Lab, tmp_path: Path) -> None:
    """All past edits are said to the token; the unrelated question stays what the unedited model says."""
    lab.data, lab.limit, lab.rows = data(tmp_path, QUESTIONS), None, "all"
    summary = zsre.run(lab).summary
    assert summary["zsre.f1_all_edits"] == summary["zsre.f1_rephrase"] == 1.0
    assert summary["zsre.unrelated_in_scope"] == summary["zsre.unrelated_changed"] == 0.0
    assert summary["zsre.unedited.f1_all_edits"] == 0.0
    assert summary["zsre.paper_gaussian.f1_all_edits"] == 1.0


def test_sequential_edits(lab: Lab, tmp_path: Path) -> None:
    """A limit is the number of edits and the last stop; beyond the records, made-up facts are edited."""
    lab.data, lab.limit, lab.rows = data(tmp_path, RECORDS), 12, "larimar"
    summary = sequential.run(lab).summary
    assert summary["sequential.recall_10"] == summary["sequential.recall_12"] == 1.0
    assert summary["sequential.generation_12"] == 1.0
    assert summary["sequential.rephrase_right_12"] == 1.0


def test_leakage(lab: Lab, tmp_path: Path) -> None:
    """The plain decoder always tells; a blocked or forgotten answer is told only where the gate lets an attack by."""
    lab.data, lab.limit, lab.rows = data(tmp_path, RECORDS), 2, "all"
    outcome = leakage.run(lab)
    summary = outcome.summary
    assert (summary["leakage.n"], summary["leakage.needles_attacked"]) == (2, 2)
    assert summary["leakage.unedited.attack"] == 1.0
    assert summary["leakage.prompt.attack"] == 0.0
    assert summary["leakage.remembered_needles"] == 1.0
    assert summary["leakage.forgotten_needles"] == summary["leakage.unedited.needles"] == 0.0
    told = {item["row"]: item["texts"] for item in outcome.items if item["answer"] == "Paris"}
    assert all("unknown" in text for text in told["attack_single"][: leakage.SAMPLES])  # asked with the very prompt
