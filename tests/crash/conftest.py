"""Runs the campaigns of this folder side by side, each in a process of its own, as many at a time as cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.campaign import CAMPAIGNS
from tests.postgres_server import shared_server

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600

Result = dict[str, Any]


@pytest.fixture(scope="session")
def campaign_results(request, tmp_path_factory) -> Iterator[dict[str, Future[Result]]]:
    """The results of all campaigns whose tests were selected: those whose module names one in CAMPAIGN."""
    folder = tmp_path_factory.mktemp("campaigns")
    selected = {getattr(item.module, "CAMPAIGN", None) for item in request.session.items}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run_campaign, name, folder) for name in CAMPAIGNS if name in selected}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def campaign(request, campaign_results) -> Callable[[], Result]:
    """The result of the module's campaign, once it is there."""
    return lambda: campaign_results[request.module.CAMPAIGN].result(TIMEOUT_S)


def run_campaign(name: str, folder: Path) -> Result:
    """Run it with the count of CI, or the one in LARIMAR_TEST_NAME, as anybody would from the command line."""
    count = os.environ.get(f"LARIMAR_TEST_{name.upper()}", str(CAMPAIGNS[name].ci))
    result = folder / f"{name}.json"
    command = [sys.executable, "-m", "jobs.campaign", name, "--count", count, "--json", str(result)]
    if name == "state_hash":
        command += ["--ledger-url", shared_server().ledger_url()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.exists(), done.stdout + done.stderr
    return json.loads(result.read_text(encoding="utf-8"))
