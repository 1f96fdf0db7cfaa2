"""A promise in docs/guarantees.md names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def test_every_promise_names_a_test_that_exists():
    """Each paragraph that promises something ends in tests, and each named test is a function of the named file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TEXT)
    missing = [f"{path}::{name}" for path, name in named if name not in _functions(ROOT / path)]

    assert missing == []
    promises = TEXT.split("## What is promised whatever the setting")[1].split("\n## ")[0]
    paragraphs = [part for part in promises.split("\n\n") if part.strip()]
    assert len(paragraphs) > 10
    assert [part[:60] for part in paragraphs if "::test_" not in part] == []


def _functions(path: Path) -> set[str]:
    if not path.exists():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
