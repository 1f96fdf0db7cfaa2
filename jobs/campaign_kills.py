"""Kill -9 of the engine at random microseconds under write load, again and again on one store."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.campaign_examiner import Examiner
from jobs.campaign_load import TENANTS, Heard, Journal, create_tenants, drive, read_journal
from jobs.campaign_model import TenantModel
from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_store import open_store, opened, scratch, torch_threads
from jobs.campaign_zygote import Zygote, ready
from memory_actor.errors import LarimarError

# Half of the victims are killed this long after their fork, so mostly while they open and recover; the others this
# long after they opened.
OPENING_S, LOAD_S = 0.12, 0.16
_AUDIT_EVERY = 25


@torch_threads(1)
def kills(count: int, seed: int, advance: Advance) -> Outcome:
    """`count` victims write, forget, checkpoint and sleep; each is killed, and what it left is examined."""
    outcome = Outcome("kills", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    with scratch(durable=True) as folder:
        state_dir = folder / "state"
        examiner = Examiner(outcome, draw, {tenant: TenantModel() for tenant in TENANTS})
        with opened(state_dir) as store:
            create_tenants(store)
        first = 0
        with Zygote(folder / "victims.log") as zygote:
            for number in range(count):
                label = f"kill {number}"
                journal = folder / f"{number}.journal"
                arguments = {
                    "state_dir": str(state_dir),
                    "journal": str(journal),
                    "seed": draw.getrandbits(64),
                    "first": first,
                    "live": examiner.live(),
                }
                loaded = draw.random() < 0.5
                wait_s = draw.uniform(0, LOAD_S if loaded else OPENING_S)
                ended = zygote.run("jobs.campaign_kills:victim", arguments, kill_s=wait_s, ready=loaded)
                heard = read_journal(journal)
                outcome.check(ended.killed, f"{label}: the victim ended by itself: {zygote.last_words()}")
                outcome.counts["kills"] += ended.killed
                outcome.counts["killed_opening"] += "open" not in heard.said
                try:
                    _examine(examiner, heard, state_dir, label, audit=number % _AUDIT_EVERY == 0)
                    if number == count - 1:
                        _conclude(examiner, state_dir, label)
                except LarimarError as refusal:
                    outcome.violate(f"{label}: what it left is refused: {refusal}")
                    break
                first += len(heard.begun)
                journal.unlink(missing_ok=True)
                advance(1)
    outcome.counts["lost"] += 0
    outcome.counts["duplicates"] += 0
    return outcome


def _examine(examiner: Examiner, heard: Heard, state_dir: Path, label: str, *, audit: bool) -> None:
    with opened(state_dir) as store:
        examiner.take(heard, store, label)
        examiner.examine(store, label, audit=audit)


def _conclude(examiner: Examiner, state_dir: Path, label: str) -> None:
    """After the last kill: all erasures are done and signed, and nothing is left over."""
    with opened(state_dir) as store:
        examiner.finish_erasures(store, label)
        examiner.examine(store, label)
        examiner.nothing_left(store, state_dir, label)


def victim(state_dir: str, journal: str, seed: int, first: int, live: Mapping[str, Sequence[str]]) -> None:
    """What is killed: the engine under load, until it is."""
    noted = Journal(Path(journal))
    store = open_store(Path(state_dir))
    noted.say("open")
    ready()
    drive(store, noted, random.Random(seed), first, live)  # noqa: S311 - a seeded campaign
