"""The README says what is so: its tree, its figures and its paths."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("memory_actor", "workers", "cluster", "jobs")


def _block(name: str) -> str:
    """What stands between `<!-- name … -->` and `<!-- /name -->`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name}\b[^>]*-->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"README.md has no block {name!r}"
    return found[1].strip()


def _tree() -> str:
    """Every module with the first line of its docstring."""
    lines = ["```"]
    for package in PACKAGES:
        lines.append(f"{package}/")
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "__init__.py" or "versions" in path.parts:
                continue
            first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
            lines.append(f"  {path.relative_to(ROOT / package).as_posix():<20} {first.rstrip('.')}")
    return "\n".join([*lines, "```"])


def test_the_tree_lists_every_module():
    """The README's tree is the packages' modules with the first lines of their docstrings, no more and no less."""
    assert _block("tree") == _tree(), f"README tree is stale; it should be:\n{_tree()}"


def test_the_figures_are_those_of_the_benchmark():
    """The README's table is docs/bench.json rendered, so no figure is typed in by hand."""
    from jobs.benchmark import MEASURES, markdown

    result = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))

    assert {measure.key for measure in MEASURES} <= result.keys()
    assert _block("bench") == markdown(result)


def test_the_scope_figures_are_those_of_the_cards():
    """docs/scope.md's table and curve are the shipped cards rendered."""
    from jobs.scope_card import curve_svg, markdown
    from workers.trained_scope import VERIFIER_FOLDER, read_card

    text = (ROOT / "docs" / "scope.md").read_text(encoding="utf-8")
    assert f"<!-- card -->\n{markdown(read_card(), read_card(VERIFIER_FOLDER))}\n<!-- /card -->" in text
    assert (ROOT / "docs" / "scope_curve.svg").read_text(encoding="utf-8") == curve_svg(read_card(VERIFIER_FOLDER))


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/architecture.md",
        "docs/equations.md",
        "docs/api.md",
        "docs/scope.md",
        "docs/evaluation.md",
        "docs/latent.md",
        "docs/results.md",
        "CONTRIBUTING.md",
    ],
)
def test_paths_in_documents_exist(name):
    """Every path of this repository that a document names is there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:memory_actor|workers|cluster|jobs|tests|docs)/[\w./-]+)", text))
    named |= set(re.findall(r"\]\(((?!http|#)[^)#]+)", text))

    missing = []
    for path in named:
        base = (
            ROOT
            if re.match(r"(memory_actor|workers|cluster|jobs|tests|docs|CONTRIBUTING)", path)
            else (ROOT / name).parent
        )
        if not (base / path.rstrip("/").rstrip(".")).exists():
            missing.append(path)
    assert missing == []


def test_the_codec_figures_are_those_of_its_card():
    """docs/latent.md's tables are the shipped codec's card rendered."""
    from jobs.codec.card_page import PAGE, markdown
    from workers.codec_card import LATENT_CODEC, read_codec

    assert f"<!-- card -->\n{markdown(read_codec(LATENT_CODEC))}\n<!-- /card -->" in PAGE.read_text(encoding="utf-8")
