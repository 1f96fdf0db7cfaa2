"""The report says what was measured: targets met and missed, every row, the paper's apart, and nothing else."""

from __future__ import annotations

import random

import pytest
from matplotlib.image import imread

from jobs.evaluation.figures import FIGURES, draw
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.report import losses, markdown, readme_markdown, target_table
from jobs.evaluation.report_sections import SECTIONS
from jobs.evaluation.run_folder import RunFolder
from jobs.evaluation.targets import TARGETS
from tests.unit.test_evaluate import MACHINE, SETTINGS

PROVENANCE = MACHINE | {"settings": {}, "figures": []}
PICTURE_BYTES_MAX = 80_000


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def target(key: str):
    (found,) = [one for one in TARGETS if one.key == key]
    return found


def test_without_results_everything_is_said_to_be_not_measured():
    """An empty file gives a page that claims nothing: no target met or missed, every section not measured."""
    text = markdown({})

    assert text.count("| not measured |") == len(TARGETS)
    assert text.count("Not measured.") == len(SECTIONS) + 2  # where we lose, machine
    assert "yes" not in text
    assert f"Of {len(TARGETS)} targets 0 were measured and 0 missed." in readme_markdown({})


@pytest.mark.parametrize(
    ("key", "figures", "shown", "verdict"),
    [
        ("counterfact.edit_success", {"counterfact.edit_success": 0.9988}, "99.9 %", "yes"),
        ("counterfact.edit_success", {"counterfact.edit_success": 0.9961}, "99.6 %", "**no**, by 0.2 points"),
        ("zsre.unrelated_in_scope", {"zsre.unrelated_in_scope": 0.0126}, "1.3 %", "**no**, by 0.8 points"),
        ("forget.forgotten", {"forget.forgotten": 0}, "0.0 %", "yes"),
        (
            "counterfact.neighbourhood_success",
            {"counterfact.neighbourhood_success": 0.787, "counterfact.base_neighbourhood_success": 0.790},
            "-0.3 points",
            "yes",
        ),
        (
            "counterfact.neighbourhood_success",
            {"counterfact.neighbourhood_success": 0.780, "counterfact.base_neighbourhood_success": 0.790},
            "-1.0 points",
            "**no**, by 0.7 points",
        ),
        ("wallclock.finetune_ms", {"wallclock.finetune_ms": 4000.0, "wallclock.edit_ms": 20.0}, "200 x", "yes"),
        (
            "wallclock.finetune_ms",
            {"wallclock.finetune_ms": 1000.0, "wallclock.edit_ms": 20.0},
            "50 x",
            "**no**, by 50 x",
        ),
    ],
)
def test_a_target_is_met_or_missed_by_so_much(key, figures, shown, verdict):
    """The verdict is that of the bar, in the bar's own unit, and a miss says how far it is off."""
    line = target_table([target(key)], figures).splitlines()[2]

    assert f"| {shown} |" in line
    assert line.endswith(f"| {verdict} |")


def test_half_a_comparison_is_not_measured():
    """A difference from the unedited model is nothing without the unedited model."""
    assert "not measured" in target_table(
        [target("counterfact.neighbourhood_success")], {"counterfact.neighbourhood_success": 0.78}
    )


def test_small_misses_of_all_and_of_nothing_stay_visible():
    """9,996 of 10,000 are not shown as 100 %, nor 4 of 10,000 as none."""
    table = target_table(
        [target("batch.recall_10000"), target("forget.forgotten")],
        {"batch.recall_10000": 0.9996, "forget.forgotten": 0.0004},
    )

    assert "99.96 %" in table
    assert "0.04 %" in table


def test_rows_of_the_run_and_of_the_paper_are_told_apart():
    """Ours comes first and bold, baselines by name with their own n, the paper's rows in italics with their table."""
    text = markdown(
        PROVENANCE
        | {
            "counterfact.edit_success": 1.0,
            "counterfact.edit_success_low": 0.9,
            "counterfact.edit_success_high": 1.0,
            "counterfact.n": 12,
            "counterfact.unedited.edit_success": 0.25,
            "counterfact.fine_tuned.edit_success": 0.75,
            "counterfact.fine_tuned.n": 4,
        }
    )

    rows = [line for line in text.splitlines() if line.startswith(("| **larimar", "| unedited", "| decoder", "| *"))]
    assert rows[0] == "| **larimar-serve** | 100.0 (90.0-100.0) |"
    assert rows[1:3] == ["| unedited model | 25.0 |", "| decoder fine-tuned on the edit (n = 4) | 75.0 |"]
    assert "| *Larimar-6B (Table 2)* | 99.6 |" in rows
    assert "n = 12." in text


def test_where_we_lose_names_missed_targets_and_better_baselines():
    """Only what is lost is listed: a baseline that is better, in the direction of the measure, and a missed target."""
    nearest = "nearest fact in the prompt, plain MiniLM at 0.70"
    found = list(
        losses(
            {
                "counterfact.rephrase_success": 0.90,
                "counterfact.nearest.rephrase_success": 0.95,
                "counterfact.paper.rephrase_success": 0.85,
                "counterfact.changed_out_of_scope": 0.004,
                "counterfact.nearest.changed_out_of_scope": 0.001,
                "counterfact.paper.changed_out_of_scope": 0.1,
            }
        )
    )

    assert found == [
        "- Target missed: CounterFact, one edit in memory, rephrase success: 90.0 % (by 8.0 points).",
        f"- CounterFact, one edit in memory, rephrase: {nearest} is better, 95.0 against 90.0.",
        f"- CounterFact, one edit in memory, outputs changed, neighbours: {nearest} is better, 0.1 against 0.4.",
    ]


def test_every_target_is_about_an_experiment_that_is_reported():
    """No target can be forgotten in a corner: each belongs to a section, or to the whole run."""
    places = {section.place for section in SECTIONS} | {"minutes"}

    assert [one.key for one in TARGETS if one.experiment not in places] == []
    assert len({one.key for one in TARGETS}) == len(TARGETS)


def synthetic() -> dict[str, object]:
    """A figure for every column of every table and for several rows, as a full run has."""
    rng = random.Random(7)
    results: dict[str, object] = dict(PROVENANCE)
    for section in SECTIONS:
        for table in section.tables:
            for column in table.columns:
                for row in ("", "nearest.", "paper.", "fine_tuned."):
                    key = f"{section.place}.{row}{column.measure}"
                    value = rng.uniform(0.3, 0.9)
                    results |= {key: value, f"{key}_low": value - 0.05, f"{key}_high": value + 0.05}
        results[f"{section.place}.n"] = 100
    results |= {"scope.threshold": 0.6, "scope.nearest.threshold": 0.7}
    return results


def scope_items() -> list[dict[str, object]]:
    rng = random.Random(8)
    centres = {"rephrase": 0.8, "neighbour": 0.3, "same_subject": 0.5}
    return [
        {"row": row, "kind": kind, "score_1": rng.gauss(centre, 0.1)}
        for row in ("larimar", "nearest")
        for kind, centre in centres.items()
        for _ in range(200)
    ]


def test_every_figure_is_a_small_picture(tmp_path):
    """A full run draws every figure, each under 80 kB, and the page shows them all."""
    folder = RunFolder(tmp_path)
    folder.experiment("scope").record(SETTINGS, Outcome("scope", {}, scope_items()), 1.0, MACHINE)
    results = synthetic()

    results["figures"] = draw(folder, results)

    assert results["figures"] == list(FIGURES)
    text = markdown(results)
    for name in FIGURES:
        path = tmp_path / "figures" / f"{name}.png"
        assert path.stat().st_size < PICTURE_BYTES_MAX, name
        assert imread(path)[..., :3].min() < 0.5, f"{name} is blank"
        assert f"(figures/{name}.png)" in text


def test_what_was_not_measured_is_not_drawn(tmp_path):
    """Without results there are no pictures, and old ones do not stay behind."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "batch.png").write_bytes(b"old")

    assert draw(RunFolder(tmp_path), {"settings": {}}) == []
    assert list((tmp_path / "figures").iterdir()) == []
