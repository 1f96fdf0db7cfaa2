"""The writer: order, groups, replays, refusals, poison. Over a log of lists; threads meet at events, never by time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import pytest

from memory_actor.errors import (
    DeadlineExceeded,
    Fenced,
    IdempotencyKeyReused,
    LedgerFailed,
    NotFound,
    Overloaded,
    StorageFull,
    TenantQuarantined,
    Unavailable,
)
from memory_actor.ledger_rows import TenantDamaged
from memory_actor.types import Idempotency
from memory_actor.writer import Command, Group, Plan, Writer
from tests.memory_fixtures import once

TIMEOUT_S = 10


@dataclass
class Entry:
    effect: Any
    idempotency: Idempotency | None
    reply: bytes
    scope: str


@dataclass
class ListLog:
    """Commits into a list. `hold` blocks the next commit until it is set; `failure` is raised by it.

    `full` refuses commits of more than that many entries, `damaged` those with an effect on that tenant.
    """

    commits: list[list[Entry]] = field(default_factory=list)
    failure: BaseException | None = None
    full: int | None = None
    damaged: str | None = None
    held: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)

    def commit(self, entries, now) -> None:
        self.entered.set()
        if self.held is not None:
            assert self.held.wait(TIMEOUT_S)
        if self.failure is not None:
            raise self.failure
        if self.damaged is not None and any(getattr(one.effect, "tenant", "") == self.damaged for one in entries):
            raise TenantDamaged(self.damaged, "row 3")
        if self.full is not None and len(entries) > self.full:
            raise StorageFull("path", 1, 64)
        self.commits.append(list(entries))

    def idempotent_reply(self, tenant, idempotency) -> bytes | None:
        for entry in (entry for group in self.commits for entry in group):
            if entry.scope == tenant and entry.idempotency is not None and entry.idempotency.key == idempotency.key:
                if entry.idempotency.request_digest != idempotency.request_digest:
                    raise IdempotencyKeyReused(entry.idempotency.endpoint)
                return entry.reply
        return None


def fail(*args: Any) -> Any:
    raise ZeroDivisionError("bug")


class Harness:
    """A writer over a ListLog, and the order in which things happened to it."""

    def __init__(self, **limits: int) -> None:
        self.log, self.now = ListLog(), 100.0
        self.events: list[str] = []
        self.poisons: list[BaseException] = []
        self.poisoned = threading.Event()
        self.damage: list[tuple[str, str]] = []
        self.writer = Writer(
            self.log,
            Entry,
            clock=lambda: self.now,
            timer=lambda: self.now,
            group_facts_max=limits.get("group_facts_max", 256),
            queue_max=limits.get("queue_max", 1024),
            on_poison=self._on_poison,
            on_damage=lambda name, reason: self.damage.append((name, reason)),
        )

    def _on_poison(self, error: BaseException) -> None:
        self.poisons.append(error)
        self.poisoned.set()

    def submit(self, name: str, *, refuse: Exception | None = None, effect: Any = ..., **fields: Any) -> Future[Any]:
        def plan(group: Group) -> Plan:
            if refuse is not None:
                raise refuse
            self.events.append(f"plan {name}")
            return Plan(name if effect is ... else effect, f"reply {name}", lambda: self.events.append(f"apply {name}"))

        command = Command(
            fields.pop("tenant", "acme"), plan, record=lambda reply: reply.encode(), replay=bytes.decode, **fields
        )
        return self.writer.submit(command)

    def hold(self) -> None:
        """From here on, commands pile up behind one whose commit waits for `release`."""
        self.log.held, self.log.entered = threading.Event(), threading.Event()
        self.submit("first")
        assert self.log.entered.wait(TIMEOUT_S)

    def release(self) -> None:
        assert self.log.held is not None
        self.log.held.set()

    @property
    def effects(self) -> list[list[Any]]:
        return [[entry.effect for entry in group] for group in self.log.commits]


@pytest.fixture
def harness(request):
    made = Harness(**getattr(request, "param", {}))
    yield made
    if made.log.held is not None:
        made.log.held.set()
    made.writer.close()


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(TIMEOUT_S) for future in futures]


# -- groups -----------------------------------------------------------------------------------------------------


def test_a_lone_command_is_planned_committed_applied_and_answered(harness):
    assert harness.submit("a").result(TIMEOUT_S) == "reply a"
    assert harness.events == ["plan a", "apply a"]
    assert harness.effects == [["a"]]


def test_what_waits_is_committed_together_and_in_order(harness):
    """Five commands that queue up behind a commit share the next one: planned in order, then applied in order."""
    harness.hold()
    futures = [harness.submit(str(i)) for i in range(5)]
    harness.release()
    assert results(futures) == [f"reply {i}" for i in range(5)]
    assert harness.effects == [["first"], list("01234")]
    assert harness.events[2:] == [f"plan {i}" for i in range(5)] + [f"apply {i}" for i in range(5)]


@pytest.mark.parametrize("harness", [{"group_facts_max": 10}], indirect=True)
def test_a_group_is_bounded_by_facts(harness):
    """Groups close at 10 facts; a larger request goes whole, in a group of its own."""
    harness.hold()
    futures = [harness.submit(str(i), facts=facts) for i, facts in enumerate([4, 4, 4, 25, 1])]
    harness.release()
    results(futures)
    assert harness.effects == [["first"], list("012"), ["3"], ["4"]]


def test_nothing_is_answered_before_it_is_durable(harness):
    harness.hold()
    future = harness.submit("a")
    assert not future.done()
    harness.release()
    assert future.result(TIMEOUT_S) == "reply a"


def test_a_command_without_effect_and_key_costs_no_commit(harness):
    """A dry run is answered without a transaction; with an idempotency key its reply is kept."""
    assert harness.submit("dry", effect=None).result(TIMEOUT_S) == "reply dry"
    assert harness.log.commits == []
    harness.submit("kept", effect=None, idempotency=once("k")).result(TIMEOUT_S)
    assert harness.effects == [[None]]


def test_cancelled_commands_are_skipped(harness):
    harness.hold()
    cancelled, other = harness.submit("cancelled"), harness.submit("other")
    assert cancelled.cancel()
    harness.release()
    assert other.result(TIMEOUT_S) == "reply other"
    assert harness.effects == [["first"], ["other"]]


# -- refusals ---------------------------------------------------------------------------------------------------


def test_a_refusal_does_not_touch_its_neighbours(harness):
    harness.hold()
    futures = [
        harness.submit("a"),
        harness.submit("b", refuse=NotFound("tenant", "x")),
        harness.submit("c"),
    ]
    harness.release()
    assert futures[0].result(TIMEOUT_S) == "reply a"
    assert futures[2].result(TIMEOUT_S) == "reply c"
    assert isinstance(futures[1].exception(TIMEOUT_S), NotFound)
    assert harness.effects == [["first"], ["a", "c"]]
    assert harness.poisons == []


def test_a_fault_in_planning_stops_its_tenant_for_that_commit_only(harness):
    """What a bug left half-drafted is used no further: same tenant, same commit is refused; all else goes on."""
    harness.hold()
    futures = [
        harness.submit("before"),
        harness.submit("bug", refuse=ZeroDivisionError("bug")),
        harness.submit("after"),
        harness.submit("other", tenant="globex"),
    ]
    harness.release()
    wait(futures, TIMEOUT_S)
    assert isinstance(futures[1].exception(), ZeroDivisionError)
    assert isinstance(futures[2].exception(), Unavailable)
    assert harness.effects == [["first"], ["before", "other"]]
    assert harness.submit("next").result(TIMEOUT_S) == "reply next"


def test_a_command_that_waited_too_long_is_refused_with_nothing_stored(harness):
    harness.hold()
    late, patient = harness.submit("late", timeout_s=5), harness.submit("patient", timeout_s=6)
    unhurried = harness.submit("unhurried")
    harness.now += 5.5
    harness.release()
    assert patient.result(TIMEOUT_S) == "reply patient"
    assert unhurried.result(TIMEOUT_S) == "reply unhurried"
    assert late.exception(TIMEOUT_S).args == ("the request", 5)
    assert isinstance(late.exception(), DeadlineExceeded)
    assert harness.effects == [["first"], ["patient", "unhurried"]]


def test_what_becomes_late_while_others_are_planned_is_not_committed(harness):
    """Planning takes its time: the late one is refused before the commit, and whoever built on it is planned anew."""
    harness.hold()
    late = harness.submit("late", timeout_s=5, idempotency=once("k"))
    same = harness.submit("same", idempotency=once("k"))
    known = harness.submit("known", effect=None, timeout_s=5)

    def slow(group: Group) -> Plan:
        harness.now += 6 if harness.now < 106 else 0
        return Plan("slow", "reply slow", lambda: harness.events.append("apply slow"))

    slowly = harness.writer.submit(Command("acme", slow))
    harness.release()
    assert isinstance(late.exception(TIMEOUT_S), DeadlineExceeded)
    assert same.result(TIMEOUT_S) == "reply same"  # the first reply to its key was never given
    assert slowly.result(TIMEOUT_S) == "reply slow"
    assert isinstance(known.exception(TIMEOUT_S), DeadlineExceeded)  # in the second round it had not begun in time
    assert harness.effects == [["first"], ["same", "slow"]]
    applied = [event for event in harness.events if event.startswith("apply")]
    assert applied == ["apply first", "apply same", "apply slow"]


def test_a_full_disk_refuses_what_needs_room(harness):
    """Those that add are refused and nothing of them is stored; those that free, and mere replies, go on."""
    harness.hold()
    adds = [harness.submit(str(i), adds=True, idempotency=once(f"k{i}")) for i in range(2)]
    frees = [harness.submit("forget"), harness.submit("reply", effect=None, idempotency=once("r"))]
    harness.log.full = 2
    harness.release()
    assert all(isinstance(one.exception(TIMEOUT_S), StorageFull) for one in adds)
    assert results(frees) == ["reply forget", "reply reply"]
    assert harness.effects == [["first"], ["forget", None]]
    harness.log.full = None
    assert harness.submit("again", adds=True, idempotency=once("k0")).result(TIMEOUT_S) == "reply again"
    assert harness.poisons == []


def test_a_full_disk_that_refuses_what_needs_no_room_poisons(harness):
    harness.log.full = 0
    assert isinstance(harness.submit("forget").exception(TIMEOUT_S), StorageFull)
    assert harness.poisoned.wait(TIMEOUT_S)
    harness.writer.close()


@dataclass(frozen=True)
class On:
    """An effect on one tenant."""

    tenant: str


def test_a_damaged_tenant_is_refused_out_of_its_commit(harness):
    """Known in planning or not before the commit: its commands are refused, it is reported, the others are stored."""
    harness.hold()
    futures = [
        harness.submit("a", effect=On("globex"), tenant="globex"),
        harness.submit("b", effect=On("acme")),
        harness.submit("c", effect=On("acme")),
        harness.submit("d", tenant="initech", refuse=TenantDamaged("initech", "row 9")),
    ]
    harness.log.damaged = "acme"
    harness.release()
    assert futures[0].result(TIMEOUT_S) == "reply a"
    for future in futures[1:]:
        assert type(future.exception(TIMEOUT_S)) is TenantQuarantined
    assert sorted(harness.damage) == [("acme", "row 3"), ("initech", "row 9")]
    assert harness.effects == [["first"], [On("globex")]]
    assert harness.poisons == []


def test_while_suspended_nothing_is_committed(harness):
    """Not what is queued, not what comes; afterwards all goes on."""
    harness.hold()
    queued = harness.submit("queued")
    harness.writer.suspend(Unavailable("the memory actor", "a newer process took over"))
    harness.release()
    assert isinstance(queued.exception(TIMEOUT_S), Unavailable)
    with pytest.raises(Unavailable, match="newer process"):
        harness.submit("later")
    assert harness.effects == [["first"]]
    harness.writer.suspend(None)
    assert harness.submit("again").result(TIMEOUT_S) == "reply again"


def test_suspended_while_it_plans_nothing_is_committed_either(harness):
    def plan(group: Group) -> Plan:
        harness.writer.suspend(Unavailable("the memory actor", "its raylet is gone"))
        return Plan("effect", "reply", fail)

    assert isinstance(harness.writer.submit(Command("acme", plan)).exception(TIMEOUT_S), Unavailable)
    assert harness.log.commits == []


def test_a_failed_read_in_planning_poisons(harness):
    """Storage that cannot be read is no refusal: whoever waits is told that the outcome is unknown."""
    error = harness.submit("a", refuse=LedgerFailed("path", "the disk reports an error")).exception(TIMEOUT_S)
    assert isinstance(error, LedgerFailed)
    assert harness.poisoned.wait(TIMEOUT_S)


def test_an_error_beside_the_writer_poisons_it(harness):
    harness.writer.poison(LedgerFailed("vault", "the disk is full"))
    assert harness.poisoned.wait(TIMEOUT_S)
    with pytest.raises(LedgerFailed):
        harness.submit("later")


@pytest.mark.parametrize("harness", [{"queue_max": 3}], indirect=True)
def test_a_full_queue_refuses(harness):
    """Three wait, the fourth is refused with both numbers; when they are done there is room again."""
    harness.hold()
    waiting = [harness.submit(str(i)) for i in range(3)]
    with pytest.raises(Overloaded) as refused:
        harness.submit("4th")
    assert refused.value.args == ("the memory actor", 3, 3)
    harness.release()
    results(waiting)
    assert harness.submit("5th").result(TIMEOUT_S) == "reply 5th"


# -- idempotency ------------------------------------------------------------------------------------------------


def test_a_repeated_key_gets_the_first_reply(harness):
    """After its commit, and inside the commit it waits for: planned once, stored once, answered as often as asked."""
    harness.submit("a", idempotency=once("k")).result(TIMEOUT_S)
    assert harness.submit("again", idempotency=once("k")).result(TIMEOUT_S) == "reply a"
    harness.hold()
    futures = [harness.submit(name, idempotency=once("l")) for name in ("b", "c", "d")]
    assert not any(future.done() for future in futures)
    harness.release()
    assert results(futures) == ["reply b"] * 3
    assert harness.effects == [["a"], ["first"], ["b"]]


def test_a_reused_key_is_refused(harness):
    """Another request under the same key: refused, whether the first is stored or in the same commit."""
    harness.submit("a", idempotency=once("k")).result(TIMEOUT_S)
    harness.hold()
    stored = harness.submit("x", idempotency=once("k", 1))
    first, same_commit = harness.submit("b", idempotency=once("l")), harness.submit("y", idempotency=once("l", 1))
    other_endpoint = harness.submit("z", idempotency=once("l", endpoint="forget"))
    harness.release()
    assert first.result(TIMEOUT_S) == "reply b"
    for future in (stored, same_commit, other_endpoint):
        assert isinstance(future.exception(TIMEOUT_S), IdempotencyKeyReused)
    assert harness.effects == [["a"], ["first"], ["b"]]


def test_keys_belong_to_their_tenant(harness):
    """Two tenants may use one key, for effects and for replies without effect; each reply is kept in its scope."""
    harness.submit("a", idempotency=once("k"), effect=None).result(TIMEOUT_S)
    other = harness.submit("b", idempotency=once("k"), effect=None, tenant="globex").result(TIMEOUT_S)
    assert other == "reply b"
    assert [entry.scope for group in harness.log.commits for entry in group] == ["acme", "globex"]


def test_a_refused_key_may_be_tried_again(harness):
    harness.hold()
    first = harness.submit("a", idempotency=once("k"), refuse=NotFound("tenant", "x"))
    second = harness.submit("b", idempotency=once("k"))
    harness.release()
    assert isinstance(first.exception(TIMEOUT_S), NotFound)
    assert second.result(TIMEOUT_S) == "reply b"


# -- poison and close -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [LedgerFailed("path", "disk full"), Fenced(1, 2), OSError("gone")])
def test_a_failed_commit_poisons(harness, failure):
    """Nobody is acknowledged, nothing is applied: those of the group, those behind it (cancelled ones aside), and
    whoever comes later all get the error; the process is ended once."""
    harness.hold()
    group = [harness.submit("a"), harness.submit("b", idempotency=once("k")), harness.submit("c", effect=None)]
    refused = harness.submit("d", refuse=NotFound("tenant", "x"))
    harness.log.entered.clear()
    harness.log.failure = None
    held, harness.log.held = harness.log.held, threading.Event()
    held.set()  # `first` is committed; the group above is next, and waits
    assert harness.log.entered.wait(TIMEOUT_S)
    cancelled, behind = harness.submit("cancelled"), harness.submit("behind")
    assert cancelled.cancel()
    harness.log.failure = failure
    harness.release()
    assert harness.poisoned.wait(TIMEOUT_S)
    expected = LedgerFailed if isinstance(failure, OSError) else type(failure)
    for future in (*group, behind):
        assert type(future.exception(TIMEOUT_S)) is expected
    assert isinstance(refused.exception(TIMEOUT_S), NotFound)
    with pytest.raises(expected):
        harness.submit("later")
    assert harness.poisons == [failure]
    assert harness.effects == [["first"]]
    assert "apply first" in harness.events
    assert not any(event in harness.events for event in ("apply a", "apply b", "apply c"))


def test_a_failing_apply_poisons_too(harness):
    """Durable but not applied: no acknowledgement, the next incarnation replays it."""
    command = Command("acme", lambda group: Plan("effect", "reply", fail))
    error = harness.writer.submit(command).exception(TIMEOUT_S)
    assert isinstance(error, LedgerFailed)
    assert error.outcome == "unknown"
    assert harness.poisoned.wait(TIMEOUT_S)
    assert isinstance(harness.poisons[0], ZeroDivisionError)


def test_a_reply_that_cannot_be_recorded_poisons_and_is_told(harness):
    """A fault between planning and commit must not leave its caller, nor those behind it, without an answer."""
    bad = Command("acme", lambda group: Plan("effect", "reply", lambda: None), record=fail)
    harness.hold()
    futures = [harness.writer.submit(bad), harness.submit("behind")]
    harness.release()
    assert all(isinstance(future.exception(TIMEOUT_S), LedgerFailed) for future in futures)
    assert harness.poisoned.wait(TIMEOUT_S)
    assert harness.effects == [["first"]]


def test_closing_finishes_what_is_queued_and_refuses_what_comes_later():
    harness = Harness()
    harness.hold()
    futures = [harness.submit(str(i)) for i in range(3)]
    closer = threading.Thread(target=harness.writer.close)
    closer.start()
    harness.release()
    closer.join(TIMEOUT_S)
    assert results(futures) == [f"reply {i}" for i in range(3)]
    with pytest.raises(Unavailable):
        harness.submit("late")
    harness.writer.close()  # twice is harmless
