"""Every named crash point, killed, failed and repeated at. The campaign fails when a point is never reached."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from jobs.campaign_examiner import Examiner
from jobs.campaign_load import Journal, read_journal
from jobs.campaign_migration import migrated, migrating, old_state
from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_scenario import Scenario
from jobs.campaign_store import Store, open_store, opened, scratch, torch_threads
from jobs.campaign_zygote import Zygote
from memory_actor import crash_points as points
from memory_actor.errors import LarimarError

FAULTS: Final = ("kill", "EIO", "ENOSPC", "duplicate")
CELLS: Final = len(points.CRASH_POINTS) * len(FAULTS)
MIGRATING: Final = "migrate.mid_copy"  # passed by the opening of an old ledger only
EXIT_POISONED: Final = 70
ATTEMPTS: Final = 4
#: Passed in the midst of work in memory: an error there is a fault of ours, told to the caller as such.
IN_MEMORY: Final = ("recover.mid_replay", "restore.mid_copy")
RETRY_S: Final = 0.3
RIVAL_S: Final = 10.0


@torch_threads(1)
def crash_points(count: int, seed: int, advance: Advance) -> Outcome:
    """The whole matrix `count` times, each cell at another passage of its point."""
    outcome = Outcome("crash_points", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    with scratch(durable=True) as folder, Zygote(folder / "log") as zygote:
        matrix = _Matrix(outcome, draw, folder, zygote)
        for _ in range(count):
            for point in points.CRASH_POINTS:
                for fault in FAULTS:
                    matrix.cell(point, fault)
                    advance(1)
    return outcome


class _Matrix:
    """Runs cells: prepare a store, let a victim meet the fault, open what it left, play everything again, examine."""

    def __init__(self, outcome: Outcome, draw: random.Random, folder: Path, zygote: Zygote) -> None:
        self._outcome, self._draw, self._folder, self._zygote = outcome, draw, folder, zygote
        self._new, self._old = folder / "new", folder / "old"
        with opened(self._new):
            pass
        old_state(self._old)
        self._passages = self._count_passages()

    def cell(self, point: str, fault: str) -> None:
        passages = self._passages[point]
        if not self._outcome.check(passages > 0, f"{point} is never reached"):
            return
        nth = self._draw.randint(1, passages)
        label = f"{point} met by {fault} at passage {nth} of {passages}"
        state_dir, journal = self._prepare(point)
        violations = len(self._outcome.violations)
        ended = self._zygote.run("jobs.campaign_points:victim", _order(state_dir, journal, point, fault, nth))
        heard = read_journal(journal)
        self._outcome.check("reached" in heard.said, f"{label}: not reached")
        expected = (-signal.SIGKILL,) if fault == "kill" else (0, EXIT_POISONED)
        self._outcome.check(
            ended.code in expected and not ended.late,
            f"{label}: the victim ended with {ended.code}: {self._zygote.last_words()}",
        )
        for said in heard.said:
            self._outcome.check(not said.startswith("wrong"), f"{label}: {said}")
        self._outcome.counts["cells"] += 1
        self._outcome.counts["poisoned"] += ended.code == EXIT_POISONED
        try:
            self._examine(state_dir, point, heard.said, label)
        except (LarimarError, AssertionError, OSError) as error:
            self._outcome.violate(f"{label}: afterwards {type(error).__name__}: {error}")
        self._outcome.counts["failed"] += len(self._outcome.violations) > violations
        shutil.rmtree(state_dir)

    def _examine(self, state_dir: Path, point: str, said: tuple[str, ...], label: str) -> None:
        """Open without a manual step, play the scenario to its end, compare, erase, compare again after a restart."""
        if point == MIGRATING:
            self._outcome.check(migrated(state_dir), f"{label}: the migrated ledger is not what the old one was")
            return
        scenario = Scenario(_reopen(state_dir), lambda: _reopen(state_dir))
        try:
            scenario.play(lambda _, action: action())
            self._compare(scenario, {name: answer for name, answer in map(_noted, said) if name}, label)
            examiner = Examiner(self._outcome, self._draw, scenario.models, receipts=scenario.receipts)
            examiner.examine(scenario.store, label)
            examiner.finish_erasures(scenario.store, label)
        finally:
            scenario.store.engine.close()
        with opened(state_dir) as store:
            examiner.examine(store, f"{label}, after a restart")
            examiner.nothing_left(store, state_dir, label)

    def _compare(self, scenario: Scenario, answered: dict[str, Any], label: str) -> None:
        """What the victim was answered is what the same steps are answered now."""
        again = json.loads(json.dumps(scenario.answers, default=str))
        for name, answer in answered.items():
            if again[name] is not None or not scenario.ended:
                self._outcome.check(again[name] == answer, f"{label}: {name!r} answered {again[name]}, first {answer}")

    def _count_passages(self) -> Counter[str]:
        """How often an undisturbed victim passes each point."""
        passages: Counter[str] = Counter()
        for point in ("", MIGRATING):
            state_dir, journal = self._prepare(point)
            ended = self._zygote.run("jobs.campaign_points:victim", _order(state_dir, journal, point, "count", 0))
            self._outcome.check(
                ended.code == 0, f"an undisturbed victim ended with {ended.code}: {self._zygote.last_words()}"
            )
            passed = [word.removeprefix("at ") for word in read_journal(journal).said if word.startswith("at ")]
            passages.update(name for name in passed if (name == MIGRATING) == (point == MIGRATING))
            shutil.rmtree(state_dir)
        return passages

    def _prepare(self, point: str) -> tuple[Path, Path]:
        state_dir, journal = self._folder / "state", self._folder / "journal"
        shutil.copytree(self._old if point == MIGRATING else self._new, state_dir)
        journal.unlink(missing_ok=True)
        return state_dir, journal


def _reopen(state_dir: Path) -> Store:
    return open_store(state_dir, erase_window_s=3600.0)


def _order(state_dir: Path, journal: Path, point: str, fault: str, nth: int) -> dict[str, Any]:
    return {"state_dir": str(state_dir), "journal": str(journal), "point": point, "fault": fault, "nth": nth}


def _noted(said: str) -> tuple[str, Any]:
    """Name and answer of a step that a victim noted, or two blanks."""
    if not said.startswith("did "):
        return "", None
    name, answer = json.loads(said.removeprefix("did "))
    return name, answer


# -- the victim -------------------------------------------------------------------------------------------------


class Fault:
    """The hook: at the nth passage of `point` the process is killed, an error raised, or `repeat` called beside it."""

    def __init__(self, point: str, fault: str, nth: int, journal: Journal) -> None:
        self._point, self._fault, self._nth, self._journal = point, fault, nth, journal
        self._seen = 0
        self._lock = threading.Lock()
        self.repeat: Callable[[], Any] = lambda: None
        self._rivals: list[threading.Thread] = []

    def __call__(self, name: str) -> None:
        if self._fault == "count":
            self._journal.say(f"at {name}")
            return
        if name != self._point:
            return
        with self._lock:
            self._seen += 1
            if self._seen != self._nth:
                return
        self._journal.say("reached")
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "duplicate":
            rival = threading.Thread(target=self._repeat, args=(self.repeat,))
            rival.start()
            self._rivals.append(rival)
            return
        number = getattr(errno, self._fault)
        raise OSError(number, os.strerror(number))

    def join(self) -> None:
        """Wait for the repeated call, which must not have brought anything but an answer or a refusal."""
        for rival in self._rivals:
            rival.join(RIVAL_S)
            if rival.is_alive():
                self._journal.say("wrong: the repeated call never returned")
        self._rivals.clear()

    def _repeat(self, repeat: Callable[[], Any]) -> None:
        try:
            repeat()
        except LarimarError as refusal:
            self._journal.say(f"repeated call refused: {refusal.code}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the examiner must hear of it
            self._journal.say(f"wrong: the repeated call raised {error!r}")


def victim(state_dir: str, journal: str, point: str, fault: str, nth: int) -> None:
    """Play the scenario (or open an old ledger) with the fault installed; a refused step is tried again."""
    noted = Journal(Path(journal))
    hook = Fault(point, fault, nth, noted)
    points.install(hook)

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        for _ in range(ATTEMPTS):
            hook.repeat = action if name != "restart" else _nothing
            try:
                answer = action()
            except LarimarError as refusal:
                noted.say(f"refused {name}: {refusal.code} {refusal.outcome}")
                time.sleep(RETRY_S)  # a process that was poisoned ends meanwhile
                continue
            except OSError as error:
                if point not in IN_MEMORY or error.errno != getattr(errno, fault, None):
                    raise
                noted.say(f"refused {name}: internal")
                continue
            hook.join()
            noted.say("did " + json.dumps([name, answer]))
            return answer
        raise AssertionError(f"{name} was refused {ATTEMPTS} times")

    if point == MIGRATING:
        _attempt_opening(noted, hook, lambda: migrating(Path(state_dir)))
        return
    opening: Callable[[], Store] = lambda: _open(Path(state_dir))  # noqa: E731
    store = _attempt_opening(noted, hook, opening)
    scenario = Scenario(store, lambda: _attempt_opening(noted, hook, opening))
    scenario.play(attempt)
    scenario.store.engine.close()


def _attempt_opening(noted: Journal, hook: Fault, action: Callable[[], Any]) -> Any:
    """As the actor's process does: an opening that fails is tried again, by a new incarnation."""

    def rival() -> None:
        other = action()
        if other is not None:
            other.engine.close()

    for _ in range(ATTEMPTS):
        hook.repeat = rival
        try:
            opened_store = action()
        except (LarimarError, OSError) as refusal:
            noted.say(f"refused open: {refusal!r}")
            hook.join()
            continue
        hook.join()
        return opened_store
    raise AssertionError(f"opening was refused {ATTEMPTS} times")


def _open(state_dir: Path) -> Store:
    return open_store(state_dir, on_poison=_exit, erase_window_s=3600.0)


def _nothing() -> None:
    """The repetition of what cannot be repeated."""


def _exit(error: BaseException) -> None:
    sys.stderr.write(f"poisoned: {error!r}\n")
    sys.stderr.flush()
    os._exit(EXIT_POISONED)
