"""The watchdog: when it refuses, when it exits, what it forgives; and what it makes of /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from memory_actor.watchdog import Verdict, Watchdog, raylet_problem

TIMEOUT_S = 10


class World:
    """A clock and a probe that the test sets."""

    def __init__(self) -> None:
        self.now, self.problem = 100.0, None
        self.dog = Watchdog(lambda: self.problem, timer=lambda: self.now)

    def look(self, problem: str | None, at: float) -> Verdict:
        self.problem, self.now = problem, 100.0 + at
        return self.dog.tick()


def test_five_bad_seconds_refuse_and_ten_exit():
    """Looks a second apart: served up to 4 s of trouble, refused from 5, over from 10; the reason is told."""
    world = World()
    verdicts = [world.look("its raylet is gone", at) for at in range(11)]
    assert verdicts == [Verdict.SERVE] * 5 + [Verdict.REFUSE] * 5 + [Verdict.EXIT]
    assert world.dog.reason == "its raylet is gone"


def test_one_good_look_starts_the_count_again():
    world = World()
    for at in range(9):
        world.look("bad", at)
    assert world.look(None, 9) is Verdict.SERVE
    assert world.dog.reason == ""
    assert [world.look("bad", at) for at in (10, 14, 15, 19, 20)] == [
        Verdict.SERVE,
        Verdict.SERVE,
        Verdict.REFUSE,
        Verdict.REFUSE,
        Verdict.EXIT,
    ]


def test_a_long_gap_between_two_bad_looks_counts():
    """A process that was stopped for a minute together with its raylet does not serve a single second more."""
    world = World()
    assert world.look("bad", 0) is Verdict.SERVE
    assert world.look("bad", 60) is Verdict.EXIT


def test_limits_must_rise():
    with pytest.raises(ValueError, match="must rise"):
        Watchdog(lambda: None, timer=lambda: 0.0, refuse_after_s=10, exit_after_s=5)


def test_a_process_is_seen_running_stopped_zombie_and_gone():
    """A real child: running is fine; SIGSTOP, death without a parent that reaps it, and being reaped are not."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert raylet_problem(child.pid) is None
        child.send_signal(signal.SIGSTOP)
        until(lambda: "stopped" in (raylet_problem(child.pid) or ""))
        child.send_signal(signal.SIGCONT)
        until(lambda: raylet_problem(child.pid) is None)
        child.send_signal(signal.SIGKILL)
        until(lambda: "zombie" in (raylet_problem(child.pid) or ""))
    finally:
        child.kill()
        child.wait(TIMEOUT_S)
    assert "gone" in (raylet_problem(child.pid) or "")


def test_a_name_with_parentheses_hides_nothing(tmp_path):
    """Whatever a process calls itself, the state after its name is read."""
    for name, state, bad in (("a) R (b", "Z", True), ("ray::(x) Z 1", "S", False), ("raylet", "T", True)):
        (tmp_path / "7").mkdir(exist_ok=True)
        (tmp_path / "7" / "stat").write_text(f"7 ({name}) {state} 1 7 7 0")
        assert (raylet_problem(7, tmp_path) is not None) == bad
    (tmp_path / "7" / "stat").write_text("")
    assert "inspected" in (raylet_problem(7, tmp_path) or "")


def test_this_process_is_fine():
    assert raylet_problem(os.getpid()) is None


def until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()
