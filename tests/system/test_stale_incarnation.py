"""A stopped raylet, a second incarnation, and the first one back; the release does it 20 times on each engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres_server import shared_server

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
def test_a_stale_incarnation_commits_nothing(tmp_path, engine):
    """Two raylets, SIGSTOP, take-over, SIGCONT: no commit of the first process behind one of the second, none lost."""
    command = [sys.executable, "-m", "jobs.campaign", "stale_incarnation", "--count", "1", "--json", "result.json"]
    if engine == "postgresql":
        command += ["--ledger-url", shared_server().ledger_url()]
    # In a process of its own: Ray reads its environment once, and its warnings are not ours.
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False, env=ENVIRONMENT
    )

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["passed"], done.stdout
    assert (result["stale_commits"], result["lost"]) == (0, 0)
    assert result["acknowledged"] > 40
