"""docs/reliability.md says what the campaigns found: its table is the JSON they wrote, its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.campaign import CAMPAIGNS
from jobs.campaign_table import markdown

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "reliability.json"


def document() -> str:
    return (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_campaigns_found():
    """No figure is typed in by hand: the table is docs/reliability.json rendered."""
    found = re.search(r"<!-- reliability\b[^>]*-->\n(.*?)<!-- /reliability -->", document(), re.DOTALL)
    assert found

    expected = markdown(json.loads(TABLE.read_text(encoding="utf-8")), CAMPAIGNS)
    assert found[1].strip() == expected, f"docs/reliability.md is stale; its table should be:\n{expected}"


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_every_campaign_has_passed(name):
    """Each campaign is in the table with at least the trials that CI runs, and without a violation."""
    result = json.loads(TABLE.read_text(encoding="utf-8"))["campaigns"][name]

    assert result["passed"]
    assert result["violations"] == []
    assert result["count"] >= CAMPAIGNS[name].ci


def test_every_campaign_is_described_and_its_files_exist():
    """The text has a paragraph for each campaign, and names no file that is not there."""
    text = document()
    described = dict(re.findall(r"^\*\*(\w+)\*\* \(`([\w/.]+)`\)", text, re.MULTILINE))

    assert list(described) == list(CAMPAIGNS)
    paths = set(re.findall(r"`((?:memory_actor|jobs|docs|tests)/[\w./]+)`", text))
    assert [path for path in paths if not (ROOT / path).exists()] == []
