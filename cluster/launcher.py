"""Starting and stopping a system from outside: what `larimar up` and `larimar down` do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import psutil

from cluster.preflight import preflight
from cluster.settings import Settings
from cluster.startup_events import Failed, Listener, Ready, read_events
from cluster.state_folder import StateFolder
from memory_actor.errors import LarimarError, NotRunning, StartupFailed

STOP_TIMEOUT_S = 60.0


class StartRefused(LarimarError):
    """The supervisor refused to start, in its words; `refused_as` is the code of its error."""

    fields = ("refused_as", "message")
    template = "{message}"


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a stop went: the supervisor's pid, how many processes had to be killed."""

    pid: int
    killed: int


def start(settings: Settings, tell: Listener) -> Ready:
    """Start a system in a session of its own and return when it answers; it outlives this process.

    An interrupt (Ctrl-C) while starting stops it again. Raises: StartupError, StartRefused.
    """
    preflight(settings)
    folder = StateFolder(settings.state_dir)
    folder.prepare()
    reader, writer = os.pipe()
    with folder.log.open("ab") as log_file, os.fdopen(reader, encoding="utf-8") as events:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, our module
            [sys.executable, "-m", "cluster.supervisor", str(writer)],
            pass_fds=(writer,),
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )
        os.close(writer)
        try:
            _hand_over(process, settings)
            for event in read_events(events):
                if isinstance(event, Ready):
                    return event
                if isinstance(event, Failed):
                    raise StartRefused(event.code, event.message)
                tell(event)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        code = process.wait()
    raise StartupFailed("the supervisor", f"it ended with {code} without a word", folder.log)


def _hand_over(process: subprocess.Popen[bytes], settings: Settings) -> None:
    """Send the settings on stdin: the process list shows nothing of them."""
    if process.stdin is not None:
        with process.stdin as pipe, contextlib.suppress(BrokenPipeError):  # it died at once; its exit code says so
            pipe.write(settings.model_dump_json().encode())


def stop(folder: StateFolder) -> Stopped:
    """Stop the system of `folder` and wait until all of its processes are gone. Raises: NotRunning."""
    system = folder.running()
    if system is None:
        folder.forget_recorded()
        raise NotRunning(folder.path)
    try:
        supervisor = psutil.Process(system.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        supervisor.terminate()
    except psutil.NoSuchProcess:
        return Stopped(system.pid, 0)
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
    folder.forget_recorded()
    return Stopped(system.pid, len(alive))
