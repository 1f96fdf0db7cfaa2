"""docs/results.md and the README say what `larimar eval` found, and docs/evaluation.md explains every figure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import main
from jobs.evaluation.experiments import EXPERIMENTS, everything
from jobs.evaluation.report import markdown, readme_markdown
from jobs.evaluation.report_sections import ROWS, SECTIONS
from jobs.evaluation.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PICTURE_BYTES_MAX = 80_000


def results() -> dict[str, Any]:
    """What the last run in the documents found; `{}` before there was one."""
    found: dict[str, Any] = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_was_measured():
    """No figure is typed in by hand: the page is docs/results.json rendered."""
    assert (DOCS / "results.md").read_text(encoding="utf-8") == markdown(results()), (
        "docs/results.md is stale: larimar eval report --out RUN --docs docs"
    )


def test_the_readme_is_what_was_measured():
    """The README's table of results is the same JSON rendered, targets missed included."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- results\b[^>]*-->\n(.*?)<!-- /results -->", text, re.DOTALL)
    assert found

    expected = readme_markdown(results())
    assert found[1].strip() == expected, f"README.md is stale; its results should be:\n{expected}"


def test_every_experiment_has_a_place_in_the_report():
    """What `larimar eval all` runs is reported, measured or not, and nothing else is."""
    assert {section.place for section in SECTIONS} == {one.name for one in everything()}


def test_every_picture_is_there_and_small():
    """The page's pictures are those in docs/figures, no more and no less, none over 80 kB."""
    shown = set(re.findall(r"\]\(figures/(\w+)\.png\)", (DOCS / "results.md").read_text(encoding="utf-8")))
    stored = {path.stem for path in (DOCS / "figures").glob("*")}

    assert shown == stored == set(results().get("figures", ()))
    assert [path.name for path in (DOCS / "figures").glob("*") if path.stat().st_size > PICTURE_BYTES_MAX] == []


def names() -> Iterator[str]:
    """Names of figures as docs/evaluation.md writes them: no rows, no interval, N for a number."""
    keys = [target.key for target in TARGETS] + list(results())
    keys += [
        f"{section.place}.{column.measure}"
        for section in SECTIONS
        for table in section.tables
        for column in table.columns
    ]
    for key in keys:
        experiment, _, figure = key.partition(".")
        experiment = re.sub(r"_\d+$", "", experiment)
        if experiment not in EXPERIMENTS or figure in {"n", "seconds"}:
            continue
        row, _, rest = figure.partition(".")
        figure = rest if row in ROWS and rest else figure
        figure = re.sub(r"_(low|high|per_sample)$", "", figure)
        if rest not in {"n", "seconds"} and not figure.startswith("validation_"):
            yield f"{experiment}.{re.sub(r'(?<=[_kn])[0-9]+', 'N', figure)}"


def test_every_figure_is_explained():
    """No key of the JSON, no column of a table and no target is without a line in docs/evaluation.md."""
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+(?:\.\w+)+)`", text))
    # `leakage.unedited.attack` is explained with its row; a column of the tables has none.
    explained |= {re.sub(rf"^(\w+)\.(?:{'|'.join(ROWS)})\.", r"\1.", name) for name in explained}

    assert sorted(set(names()) - explained) == []


def test_every_option_is_explained(capsys):
    """docs/evaluation.md names every option that the command has, and no other."""
    with pytest.raises(SystemExit):
        main(["--help"])
    offered = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    named = set(re.findall(r"--[a-z][a-z-]+", (DOCS / "evaluation.md").read_text(encoding="utf-8")))

    assert offered == named
