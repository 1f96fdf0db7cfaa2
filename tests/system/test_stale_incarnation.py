"""A stopped raylet, a second incarnation, and the first one back; the release does it 20 times on each engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.postgres_server import shared_server

ROOT = Path(__file__).parents[2]
ENGINES = ("postgresql", "sqlite")


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """One trial per engine, side by side: they wait more than they work."""
    folder = tmp_path_factory.mktemp("stale")
    with ThreadPoolExecutor(len(ENGINES)) as pool:
        yield {engine: pool.submit(run_trial, engine, folder) for engine in ENGINES}


def run_trial(engine: str, folder: Path) -> dict[str, Any]:
    """In a process of its own: Ray reads its environment once, and its warnings are not ours."""
    result = folder / f"{engine}.json"
    command = [sys.executable, "-m", "jobs.campaign", "stale_incarnation", "--count", "1", "--json", str(result)]
    if engine == "postgresql":
        command += ["--ledger-url", shared_server().ledger_url()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert result.exists(), done.stdout + done.stderr
    return json.loads(result.read_text(encoding="utf-8"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stale_incarnation_commits_nothing(trials, engine):
    """Two raylets, SIGSTOP, take-over, SIGCONT: no commit of the first process behind one of the second, none lost."""
    result = trials[engine].result()

    assert result["passed"], result
    assert (result["stale_commits"], result["lost"]) == (0, 0)
    assert result["acknowledged"] > 40  # of both
    # The first one tried, and was refused, by the fence or by its watchdog: it noted that, or had no time to.
    assert result["refused"] + result["ended_itself"] > 0
