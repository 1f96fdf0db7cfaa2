"""A system of one's own, started through the command line as a user would, on a free port and an empty ledger."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.ray_environment import free_port
from cluster.state_folder import StateFolder

#: What an earlier run left in a state folder that is used again; the models stay.
_LEFTOVERS = ("ledger", "keys", "checkpoints", "control.sqlite", "control.sqlite-wal", "control.sqlite-shm")


@dataclass(frozen=True, slots=True)
class SystemHandle:
    """A running system, as much of it as a campaign needs."""

    url: str
    admin_key: str
    state_dir: Path
    temp_dir: Path  # Ray's, with its logs
    pid: int  # of the supervisor


class OwnSystem:
    """Started by the constructor, which takes until it is ready; end it with `stop`."""

    def __init__(self, state_dir: Path) -> None:
        for leftover in _LEFTOVERS:
            path = state_dir / leftover
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        self._state_dir = state_dir
        self._environment = {**os.environ, "LARIMAR_CONFIG_DIR": str(state_dir / "client")}
        started = time.perf_counter()
        reply = json.loads(self._larimar("up", "--port", str(free_port()), "-o", "json"))
        self.warm_start_s = time.perf_counter() - started
        recorded = StateFolder(state_dir).running()
        if recorded is None:
            raise RuntimeError("the system is up but left no record of itself")
        self.handle = SystemHandle(
            recorded.url, str(reply["admin_key"]), state_dir, Path(recorded.temp_dir), recorded.pid
        )

    def stop(self) -> None:
        self._larimar("down")

    def _larimar(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "cluster", *arguments, "--state-dir", str(self._state_dir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"larimar {arguments[0]} failed ({done.returncode}): {done.stderr or done.stdout}")
        return done.stdout


@contextmanager
def own_system(state_dir: Path) -> Iterator[SystemHandle]:
    """A system that is stopped at the end."""
    system = OwnSystem(state_dir)
    try:
        yield system.handle
    finally:
        system.stop()
