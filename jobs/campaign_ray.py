"""Kill -9 of the Ray memory actor under HTTP write load: no acknowledged write is lost, and how long recovery takes."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

from cluster.client import ApiError, Client, Retries
from jobs.campaign_outcome import Advance, Outcome
from jobs.own_system import SystemHandle

_WRITERS = 3
_PAUSE_S = 0.25  # at most this long between a recovery and the next kill
_PATIENCE = Retries(attempts=60, timeout_s=120.0, wait_max_s=0.5)


def actor_kills(count: int, seed: int, advance: Advance, *, system: SystemHandle) -> Outcome:
    """`count` kills at random moments of three writers' load; each is followed by one write that waits for recovery."""
    outcome = Outcome("actor_kills", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    tenant = f"kills-{draw.getrandbits(40):010x}"
    recoveries = []
    with Client(system.url, system.admin_key, retries=_PATIENCE) as admin:
        admin.create_tenant(tenant)
        pid = _memory_pid(admin)
        with _writers(system, tenant) as load:
            for number in range(count):
                threading.Event().wait(draw.uniform(0, _PAUSE_S))
                os.kill(pid, signal.SIGKILL)
                killed = time.perf_counter()
                load.acknowledged += admin.write(tenant, _fact("probe", number)).ids
                recoveries.append(time.perf_counter() - killed)
                pid, before = _memory_pid(admin), pid
                outcome.check(pid != before, f"kill {number}: process {pid} lives on")
                outcome.counts["kills"] += 1
                advance(1)
        _compare(outcome, admin, tenant, load)
        admin.delete_tenant(tenant)
    outcome.figures["recovery_p50_s"] = statistics.median(recoveries)
    outcome.figures["recovery_max_s"] = max(recoveries)
    return outcome


@dataclass
class _Load:
    """What the writers heard. `unheard` were given up, so their outcome is unknown to them."""

    acknowledged: list[str] = field(default_factory=list)
    unheard: int = 0
    refusals: list[str] = field(default_factory=list)


@contextmanager
def _writers(system: SystemHandle, tenant: str) -> Iterator[_Load]:
    """Three clients that write one fact after the other until the block ends."""
    load, stop = _Load(), threading.Event()

    def write(writer: int) -> None:
        number = 0
        with Client(system.url, system.admin_key, retries=_PATIENCE) as client:
            while not stop.is_set():
                try:
                    load.acknowledged += client.write(tenant, _fact(f"writer {writer}", number)).ids
                except ApiError as refusal:
                    load.refusals.append(f"{refusal.code} {refusal.outcome}")
                    load.unheard += refusal.outcome != "not_applied"
                except httpx2.TransportError:
                    load.unheard += 1
                number += 1

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(_WRITERS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _compare(outcome: Outcome, admin: Client, tenant: str, load: _Load) -> None:
    stored = [fact.id for fact in admin.facts(tenant)]
    acknowledged = set(load.acknowledged)
    lost, extra = acknowledged - set(stored), set(stored) - acknowledged
    outcome.counts.update(
        acknowledged=len(acknowledged),
        lost=len(lost),
        duplicates=len(stored) - len(set(stored)) + max(0, len(extra) - load.unheard),
        unheard=load.unheard,
        refused=len(load.refusals),
    )
    outcome.check(not lost, f"{len(lost)} acknowledged facts are lost: {sorted(lost)[:3]}")
    outcome.check(len(extra) <= load.unheard, f"{len(extra)} facts nobody was told of, {load.unheard} replies unheard")
    outcome.check(len(stored) == len(set(stored)), "a fact is stored twice")
    outcome.check(admin.verify(tenant).identical, "the memory does not verify")


def _fact(who: str, number: int) -> dict[str, str]:
    return {"prompt": f"What is box {number} of {who} for?", "target": f"item {number}"}


def _memory_pid(admin: Client) -> int:
    return int(admin.status()["memory"][0]["pid"])
