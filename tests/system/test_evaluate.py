"""`larimar eval` on the real models: a small slice of a release's run, with floors that a broken part falls below.

The command runs as a user runs it, with one decoder process. Floors are loose: so few records say whether decoder, gate
and codec work, not how well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SAMPLE = Path(__file__).parents[1] / "data" / "counterfact_sample.json"
RECORDS = 12
TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A folder to evaluate in, with the default models at hand."""

    folder: Path

    def run(self, name: str, *arguments: str) -> tuple[dict[str, Any], str]:
        """`larimar eval` with our own row only: the figures, and what was said."""
        figures = self.folder / f"{name}.json"
        options = ("--rows", "larimar", "--workers", "1", "--data", str(SAMPLE), "--json", str(figures))
        places = ("--state-dir", str(self.folder / "state"), "--out", str(self.out))
        done = subprocess.run(
            [sys.executable, "-m", "cluster", "eval", name, *options, *places, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        found: dict[str, Any] = json.loads(figures.read_bytes())
        return found, done.stdout

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def answers(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.out.glob("answers-*.jsonl")}


@pytest.fixture(scope="module")
def evaluation(bundle, tmp_path_factory) -> Iterator[Evaluation]:
    folder = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(bundle.folder, folder / "state" / "bundle", copy_function=_link_or_copy)
    yield Evaluation(folder)
    shutil.rmtree(folder)


def _link_or_copy(source: str, target: str) -> None:
    """The models are half a gigabyte and nobody writes into them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def counterfact(evaluation) -> dict[str, Any]:
    return evaluation.run("counterfact", "--limit", str(RECORDS))[0]


def test_edits_are_recalled_said_and_kept_from_their_neighbours(counterfact):
    """A dozen edits, each alone in memory: likelier, said aloud, let in by the gate; few neighbours change."""
    assert counterfact["counterfact.n"] == RECORDS
    assert counterfact["counterfact.edit_success"] >= 0.9
    assert counterfact["counterfact.generation_edit"] >= 0.9
    assert counterfact["counterfact.edit_in_scope"] == 1.0
    assert counterfact["counterfact.rephrase_in_scope"] >= 0.5
    assert counterfact["counterfact.changed_out_of_scope"] <= 0.25
    low, high = (counterfact[f"counterfact.generation_edit_{end}"] for end in ("low", "high"))
    assert low <= counterfact["counterfact.generation_edit"] <= high


def test_every_answer_is_kept_raw(counterfact, evaluation):
    """Each figure can be counted again from the items: the share of edits said aloud is that of the texts."""
    lines = (evaluation.out / "counterfact" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    edits = [item for item in map(json.loads, lines) if item["kind"] == "edit"]

    said = [item["wanted"].casefold() in item["text"].casefold() for item in edits]
    assert len(edits) == RECORDS
    assert sum(said) / len(said) == pytest.approx(counterfact["counterfact.generation_edit"])


def test_what_is_finished_is_not_run_again(counterfact, evaluation):
    """The same command measures nothing anew: same figures, not one answer more."""
    before = evaluation.answers()

    again, said = evaluation.run("counterfact", "--limit", str(RECORDS))

    assert "finished before" in said
    assert again == counterfact
    assert evaluation.answers() == before


def test_an_interrupted_run_goes_on_from_its_answers(counterfact, evaluation):
    """Without its summary the experiment runs again, from the answers that are there: same figures, none asked anew.

    The torn line is what a kill in the middle of a write leaves.
    """
    summary = evaluation.out / "counterfact" / "summary.json"
    summary.unlink()
    (answers,) = evaluation.answers()
    kept = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(kept[:-1]) + kept[-1][:-9])

    again, _ = evaluation.run("counterfact", "--limit", str(RECORDS))

    timed = {key for key in again if key.endswith("seconds")}
    assert {key: again[key] for key in again.keys() - timed} == {
        key: counterfact[key] for key in counterfact.keys() - timed
    }
    assert len(answers.read_bytes().splitlines()) == len(kept) + 1  # the torn one stays, its answer came once more


def test_a_batch_comes_back_whole(evaluation):
    """As many facts as the memory has rows are read back, every token of prompt and target right."""
    found, _ = evaluation.run("batch", "--limit", "512")

    assert found["batch.recall_512"] >= 0.99


def test_what_is_forgotten_leaves_nothing_behind(evaluation):
    """Forgotten facts are not recalled, the others are, and the state hash is that of a memory that never saw them."""
    found, _ = evaluation.run("forget", "--limit", "64")

    assert found["forget.forgotten"] == 0
    assert found["forget.hash_identity"] == 1
