"""Ends what a killed supervisor leaves behind. Started before Ray, it sleeps until the supervisor is gone.

Ray has a reaper for its process group, but its agents live in groups of their own and outlast a dead node by more
than a minute, for good where nobody collects zombies (a container without an init process).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MARK = "LARIMAR_TEMP_DIR"  # in the environment of everything the supervisor starts
PASSES = 20  # a process found in one pass may have started another; two empty passes end the search
PASS_WAIT_S = 0.2


@contextmanager
def reaper(temp_dir: Path) -> Iterator[None]:
    """Run a reaper beside this process, and mark what this process starts from now on as its prey."""
    os.environ[MARK] = str(temp_dir)
    # The pipe closes when this process ends, however it ends; no other process inherits our end of it.
    process = subprocess.Popen(  # noqa: S603 - this interpreter, our module
        [sys.executable, "-m", "cluster.reaper", str(temp_dir)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        process.communicate()


def marked(temp_dir: Path, spare: int) -> list[psutil.Process]:
    """All processes that carry the mark of `temp_dir` or write into it, except this one and the process `spare`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in {os.getpid(), spare} and _belongs(process, str(temp_dir)):
                found.append(process)
    return found


def _belongs(process: psutil.Process, temp_dir: str) -> bool:
    # A process that gives itself a title, as Ray's do, overwrites its environment; its log file still tells.
    return process.environ().get(MARK) == temp_dir or any(
        opened.path.startswith(f"{temp_dir}/") for opened in process.open_files()
    )


def reap(temp_dir: Path, spare: int = 0) -> int:
    """Kill everything marked except `spare` and remove the folder; the number of processes killed."""
    killed = quiet = 0
    for _ in range(PASSES):
        prey = marked(temp_dir, spare)
        for process in prey:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
        quiet = 0 if prey else quiet + 1
        if quiet == 2:
            break
        time.sleep(PASS_WAIT_S)
    shutil.rmtree(temp_dir, ignore_errors=True)
    return killed


def main(temp_dir: Path) -> None:
    supervisor = os.getppid()  # after an orderly stop it is still there, its log files open
    while sys.stdin.buffer.read(1):
        pass
    reap(temp_dir, supervisor)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
