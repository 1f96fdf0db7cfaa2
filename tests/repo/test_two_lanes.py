"""`make test` in two processes: nothing is lost, mixed up or left running. On a tiny suite of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "in_two_lanes.sh"
TIMEOUT_S = 120

CASES = """
import os, time
from pathlib import Path

def test_{lane}_passes():
    print("output of {lane}")

def test_{lane}_breaks():
    assert os.environ.get("BREAK") != "{lane}"

def test_{lane}_waits():
    if os.environ.get("WAIT"):
        Path("{lane}.waiting").touch()
        try:
            time.sleep(100)
        finally:
            Path("{lane}.stopped").touch()
"""


@pytest.fixture
def suite(tmp_path) -> Path:
    """Three tests of each lane and the script, in a folder laid out as ours."""
    for folder, lane in (("system", "system"), ("unit", "others")):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / f"test_{lane}.py").write_text(CASES.format(lane=lane))
    shutil.copy(SCRIPT, tmp_path / "tests")
    return tmp_path


def started(suite: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [suite / "tests" / SCRIPT.name, sys.executable, *arguments],
        cwd=suite.parent,
        env={"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A run in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def ran(suite: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and output."""
    process = started(suite, *arguments, **variables)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output


def test_both_lanes_run_and_their_output_is_not_mixed(suite):
    """All six tests pass; the lines of a lane stand together, the system's first."""
    code, output = ran(suite, "-v")
    assert code == 0, output
    lines = [line for line in output.splitlines() if "PASSED" in line]
    assert ["tests/system" in line for line in lines] == [True] * 3 + [False] * 3
    assert output.count("3 passed") == 2


@pytest.mark.parametrize("lane", ["system", "others"])
def test_a_failure_of_either_lane_is_a_failure(suite, lane):
    code, output = ran(suite, BREAK=lane)
    assert code == 1, output
    assert "1 failed, 2 passed" in output
    assert "3 passed" in output


def test_a_lane_without_selected_tests_is_no_failure(suite):
    """`-k` may select from one lane only; selecting nothing at all is told apart."""
    assert ran(suite, "-k", "others_passes")[0] == 0
    assert ran(suite, "-k", "system_passes")[0] == 0
    assert ran(suite, "-k", "nothing_like_it")[0] == 5
    assert ran(suite, "-k", "others", BREAK="others")[0] == 1


def test_a_new_folder_is_run_without_being_named(suite):
    """Beside the unit tests, and behind them."""
    (suite / "tests" / "novel").mkdir()
    (suite / "tests" / "novel" / "test_novel.py").write_text("def test_novel(): pass\n")
    code, output = ran(suite, "-v")
    assert (code, output.count("4 passed")) == (0, 1), output
    assert output.index("test_others_passes") < output.index("test_novel")


def test_named_paths_are_run_once(suite):
    """Not once in each lane, and nothing else beside them."""
    code, output = ran(suite, "tests/unit/test_others.py::test_others_passes")
    assert (code, output.count("1 passed")) == (0, 1)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_both_lanes(suite, sent):
    """Each test gets to clean up, and no process is left."""
    process = started(suite, WAIT="yes")
    deadline = time.monotonic() + TIMEOUT_S
    while len(list(suite.glob("*.waiting"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between two looks; the deadline bounds the wait
    process.send_signal(sent)
    output, _ = process.communicate(timeout=TIMEOUT_S)  # ends when the last process with our pipe has ended
    assert process.returncode == 130, output
    assert sorted(path.name for path in suite.glob("*.stopped")) == ["others.stopped", "system.stopped"]
    assert output.count("KeyboardInterrupt") >= 2
