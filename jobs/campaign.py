"""`larimar campaign NAME`: break the system on purpose, again and again, and count what was lost.

    python -m jobs.campaign NAME [--count N] [--seed S] [--json FILE] [--table FILE] …

Exit code 0 when nothing that must not happen happened, 1 otherwise; the seed finds the same trials again. Campaigns of
the engine work in folders of their own. `actor_kills` and `erase_scan` start a system of their own.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobs.campaign_outcome import VIOLATIONS_SHOWN, Advance, Outcome
from jobs.campaign_table import update
from jobs.machine import machine

STATE_DIR = Path.home() / ".larimar" / "campaign"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the name of the campaign."""

    count: int
    seed: int
    ledger_url: str | None = None
    state_dir: Path = STATE_DIR


@dataclass(frozen=True, slots=True)
class Entry:
    """One campaign: what it does, how often in CI and in a release, steps of progress per count."""

    what: str
    ci: int
    release: int
    run: Callable[[Options, Advance], Outcome]
    steps: int = 1


def _kills(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_kills import kills  # noqa: PLC0415 - torch

    return kills(options.count, options.seed, advance)


def _crash_points(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_points import crash_points  # noqa: PLC0415 - torch

    return crash_points(options.count, options.seed, advance)


def _actor_kills(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_ray import actor_kills  # noqa: PLC0415 - so that all of them are alike
    from jobs.own_system import own_system  # noqa: PLC0415

    with own_system(options.state_dir) as system:
        return actor_kills(options.count, options.seed, advance, system=system)


def _stale_incarnation(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_stale import stale_incarnation  # noqa: PLC0415 - Ray

    return stale_incarnation(options.count, options.seed, advance, ledger_url=options.ledger_url)


def _bit_flips(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_flips import bit_flips  # noqa: PLC0415 - torch

    return bit_flips(options.count, options.seed, advance)


def _replies_dropped(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_replies import replies_dropped  # noqa: PLC0415 - torch

    return replies_dropped(options.count, options.seed, advance)


def _erase_scan(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_erase import erase_scan  # noqa: PLC0415 - torch
    from jobs.own_system import own_system  # noqa: PLC0415

    with own_system(options.state_dir) as system:
        return erase_scan(options.count, options.seed, advance, system=system)


def _state_hash(options: Options, advance: Advance) -> Outcome:
    from jobs.campaign_states import state_hash  # noqa: PLC0415 - torch

    return state_hash(options.count, options.seed, advance, ledger_url=options.ledger_url)


CAMPAIGNS = {
    "kills": Entry("engine killed -9 at random times under write load", 300, 10_000, _kills),
    "crash_points": Entry(
        "every named crash point, met by kill, EIO, ENOSPC, duplicate call", 1, 20, _crash_points, 100
    ),
    "actor_kills": Entry("Ray memory actor killed -9 under HTTP load", 20, 500, _actor_kills),
    "stale_incarnation": Entry("SIGSTOP of the actor's raylet, second incarnation, SIGCONT", 1, 20, _stale_incarnation),
    "bit_flips": Entry("one flipped bit in ledger, vault or checkpoint", 500, 10_000, _bit_flips),
    "replies_dropped": Entry("each write sent 1 to 5 times with replies dropped", 2_000, 100_000, _replies_dropped),
    "erase_scan": Entry("forget, then search every byte for words, vectors and keys", 50, 1_000, _erase_scan),
    "state_hash": Entry("one hash: live, replayed, restored, merged, other threads, PostgreSQL", 5, 200, _state_hash),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one campaign; 0 when it passed."""
    parser = argparse.ArgumentParser(
        prog="larimar campaign",
        description="Break the system on purpose and count what is lost.",
        epilog="; ".join(f"{name}: {entry.what}" for name, entry in CAMPAIGNS.items()),
    )
    parser.add_argument("name", choices=sorted(CAMPAIGNS), metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument("--count", type=int, help="trials; the default is what CI runs")
    parser.add_argument("--seed", type=int, default=1, help="what all random choices are drawn from")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--table", type=Path, help="put the result into this table, docs/reliability.json")
    parser.add_argument(
        "--ledger-url",
        help="a PostgreSQL database for tests (schemas stay in it), for state_hash and stale_incarnation",
    )
    parser.add_argument("--state-dir", type=Path, default=STATE_DIR, help="of the system that is started")
    arguments = parser.parse_args(argv)
    entry = CAMPAIGNS[arguments.name]
    count = entry.ci if arguments.count is None else arguments.count
    # What the campaigns provoke is warned of thousands of times.
    logging.basicConfig(level=logging.CRITICAL)
    console = Console()
    options = Options(count, arguments.seed, arguments.ledger_url, arguments.state_dir)
    outcome = _run(entry, options, console)
    _show(outcome, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(outcome.as_json(), indent=2) + "\n", encoding="utf-8")
    if arguments.table is not None:
        update(arguments.table, outcome.as_json(), machine())
    return 0 if outcome.passed else 1


def _run(entry: Entry, options: Options, console: Console) -> Outcome:
    columns = (TextColumn(entry.what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=entry.steps * options.count)
        return entry.run(options, lambda steps: progress.advance(task, steps))


def _show(outcome: Outcome, console: Console) -> None:
    for name, value in outcome.as_json().items():
        if name != "violations":
            console.print(f"{name:<24} {value}")
    for violation in outcome.violations[:VIOLATIONS_SHOWN]:
        console.print(f"[red]violation[/] {violation}", highlight=False, markup=True)
    verdict = "[green]passed[/]" if outcome.passed else f"[red]{len(outcome.violations)} violations[/]"
    console.print(f"{verdict}; repeat with: {outcome.command}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
