"""One real system for all tests of this folder, started through the command line as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.ray_environment import free_port
from cluster.state_folder import RunningSystem, StateFolder

START_TIMEOUT_S = 240


@dataclass
class SystemUnderTest:
    """A running system. `admin_key` was shown at the first start and stays valid over restarts."""

    state_dir: Path
    config_dir: Path
    port: int
    admin_key: str = ""
    start_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def larimar(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI against this system."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LARIMAR_")}
        environment |= {
            "LARIMAR_CONFIG_DIR": str(self.config_dir),
            "LARIMAR_STATE_DIR": str(self.state_dir),
            "LARIMAR_URL": self.url,
        }
        return subprocess.run(
            [sys.executable, "-m", "cluster", *arguments],
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )

    def start(self) -> None:
        done = self.larimar("up", "--port", str(self.port), "-o", "json")
        log = StateFolder(self.state_dir).log
        assert done.returncode == 0, f"{done.stderr}\n{log.read_text() if log.exists() else ''}"
        reply = json.loads(done.stdout)
        assert reply["url"] == self.url
        self.admin_key = reply["admin_key"] or self.admin_key
        self.start_s = reply["start_s"]

    def stop(self) -> None:
        done = self.larimar("down", "-o", "json")
        assert done.returncode == 0, done.stderr

    def restart(self) -> None:
        """Stop everything and start it again on the same folder and port."""
        self.stop()
        self.start()

    def record(self) -> RunningSystem:
        recorded = StateFolder(self.state_dir).running()
        assert recorded is not None
        return recorded

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything it started."""
        supervisor = psutil.Process(self.record().pid)
        return [supervisor, *supervisor.children(recursive=True)]


@pytest.fixture(scope="session")
def system(bundle, tmp_path_factory) -> Iterator[SystemUnderTest]:
    """A system on an empty state folder that already holds the converted models."""
    folder = tmp_path_factory.mktemp("system")
    state_dir = folder / "state"
    shutil.copytree(bundle.folder, state_dir / "bundle", copy_function=_link_or_copy)
    running = SystemUnderTest(state_dir, folder / "config", free_port())
    try:
        running.start()
        yield running
    finally:
        if StateFolder(state_dir).running() is not None:
            running.stop()


def _link_or_copy(source: str, target: str) -> None:
    """The models are half a gigabyte and nobody writes into them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
