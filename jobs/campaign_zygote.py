"""A warm process that forks victims: torch and the engine are imported once, a victim starts in milliseconds.

    python -m jobs.campaign_zygote      one JSON order per line on stdin, one JSON report per line on stdout

It has one thread, so that a fork is a whole process; what it forks it also kills, at the microsecond it was told.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TIMEOUT_S = 60.0

#: Imported before the first fork: what every victim needs, and what is imported when it is first needed, by the product
#: or, pandas, by pyarrow's first array.
_WARM = ("jobs.campaign_kills", "jobs.campaign_points", "alembic.command", "pandas", "pyarrow.compute", "pyarrow.ipc")

_ready: int | None = None  # in a victim: where it says that it is ready


@dataclass(frozen=True, slots=True)
class Ended:
    """How a victim ended: `code` as `os.waitstatus_to_exitcode` (−9: SIGKILL); `late` when it had to be stopped."""

    code: int
    late: bool
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL and not self.late


class Zygote:
    """The parent's side. Use in a `with` block."""

    def __init__(self, log: Path) -> None:
        """`log`: where victims' stderr goes."""
        self._log = log
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.campaign_zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=Path(__file__).resolve().parents[1],
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def run(
        self, function: str, arguments: Mapping[str, Any], *, kill_s: float | None = None, ready: bool = False
    ) -> Ended:
        """Fork a process that calls `module:function(**arguments)`, and wait for its end.

        It is killed with SIGKILL `kill_s` after the fork (with `ready`: after it called `ready()`); without `kill_s` it
        is stopped, as late, after TIMEOUT_S.
        """
        order = {"call": function, "arguments": dict(arguments), "kill_s": kill_s, "ready": ready}
        reply = self._exchange(json.dumps(order))
        return Ended(**json.loads(reply))

    def last_words(self) -> str:
        """The last line that a victim wrote to stderr."""
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""

    def _exchange(self, order: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the zygote has no pipes")
        stdin.write(order + "\n")
        stdin.flush()
        reply = stdout.readline()
        if not reply:
            raise RuntimeError(f"the zygote ended: {self.last_words()}")
        return reply


def ready() -> None:
    """Called by a victim: the time until it is killed begins now."""
    if _ready is not None:
        os.write(_ready, b".")


def serve() -> None:
    """Take orders until stdin ends."""
    import torch  # noqa: PLC0415 - the warm part

    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    for module in _WARM:
        importlib.import_module(module)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"the zygote has {threads} threads; a fork would lose all but one")
    gc.freeze()  # or each victim's collections walk, and so copy, everything that was imported
    for line in sys.stdin:
        order = json.loads(line)
        started = time.perf_counter()
        listen, speak = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(listen)
            _be_victim(order["call"], order["arguments"], speak)
        os.close(speak)
        try:
            code, late = _wait(pid, order["kill_s"], listen if order["ready"] else None)
        finally:
            os.close(listen)
        report = {"code": code, "late": late, "seconds": time.perf_counter() - started}
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def _wait(pid: int, kill_s: float | None, listen: int | None) -> tuple[int, bool]:
    """Wait for the end of a child, killing it in time. Returns its exit code, and whether it was late."""
    descriptor = os.pidfd_open(pid)
    try:
        if listen is not None:  # readable when the victim is ready, and when it has ended
            select.select([listen], [], [], TIMEOUT_S)
        ended, _, _ = select.select([descriptor], [], [], TIMEOUT_S if kill_s is None else kill_s)
    finally:
        os.close(descriptor)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), not ended and kill_s is None


def _be_victim(call: str, arguments: Mapping[str, Any], speak: int) -> None:
    """The forked process: the orders and reports of the zygote are none of its business."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    code = 1
    try:
        # By its name, not as `__main__`: victims call `ready` there.
        importlib.import_module("jobs.campaign_zygote").__dict__["_ready"] = speak
        module, _, function = call.partition(":")
        getattr(importlib.import_module(module), function)(**arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - the last frame of a forked process: said, then the exit code tells
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
