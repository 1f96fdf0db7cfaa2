"""The writer: one thread, one queue, group commit. The only place that changes tenants.

Order of every change: plan (may refuse) -> one ledger transaction with fsync -> apply (may not refuse) -> reply.
Whatever queued up while the previous commit was running is committed together, so a lone write never waits for
company and a burst shares its fsyncs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory_actor.crash_points import reached
from memory_actor.errors import (
    DeadlineExceeded,
    IdempotencyKeyReused,
    LarimarError,
    LedgerFailed,
    Overloaded,
    StorageFull,
    TenantQuarantined,
    Unavailable,
)
from memory_actor.ledger_rows import TenantDamaged
from memory_actor.types import Idempotency


@dataclass(frozen=True, slots=True)
class Plan:
    """What one command will do: commit `effect` (None: nothing to store), then `apply`, then answer `reply`.

    `ms`, a part of the reply, is filled with the milliseconds of each stage; those of a group are shared.
    """

    effect: Any
    reply: Any
    apply: Callable[[], None]
    ms: dict[str, float] | None = None


@dataclass(slots=True)
class Command:
    """One mutating request on its way. `plan` runs on the writer thread and may raise LarimarError to refuse."""

    tenant: str
    plan: Callable[[Group], Plan]
    facts: int = 1
    adds: bool = False  # takes room on the disk, and is refused when that is short; forgetting never is
    idempotency: Idempotency | None = None
    replay: Callable[[bytes], Any] | None = None  # stored reply -> reply
    record: Callable[[Any], bytes] | None = None  # reply -> stored reply
    timeout_s: float | None = None  # refuse, with nothing stored, when its commit has not begun by then
    queued_at: float = 0.0  # on the writer's timer; set by `Writer.submit`
    future: Future[Any] = field(default_factory=Future)


class Group:
    """Everything drafted for the commit in preparation. `drafts` is the planners' own space, one entry per tenant."""

    def __init__(self, now: float, begun_at: float) -> None:
        self.now = now  # seconds since the epoch, for what is stored
        self.begun_at = begun_at  # on the writer's timer
        self.drafts: dict[str, Any] = {}
        #: Tenants on which planning failed unexpectedly: nothing more is drafted on them in this commit.
        self.broken: set[str] = set()


@dataclass(slots=True)
class _Attempt:
    """The commands of one commit as planned, and what the ledger is to store of them."""

    group: Group
    planned: list[tuple[Command, Plan]] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    #: Replies of this very group by scope and key, for a command that repeats another of it.
    replies: dict[tuple[str, str], tuple[Idempotency, bytes]] = field(default_factory=dict)


class CommitLog(Protocol):
    """What the writer needs of the ledger."""

    def commit(self, entries: Sequence[Any], now: float) -> None:
        """Make the entries durable, all or none.

        Raises StorageFull, TenantDamaged: nothing was begun, other entries can be committed. Anything else poisons.
        """

    def idempotent_reply(self, tenant: str, idempotency: Idempotency) -> bytes | None: ...


class Writer:
    """Runs commands in order. A storage error poisons it: every caller is told, `on_poison` ends the process."""

    def __init__(
        self,
        log: CommitLog,
        entry: Callable[[Any, Idempotency | None, bytes, str], Any],
        *,
        clock: Callable[[], float],
        timer: Callable[[], float] = time.monotonic,
        group_facts_max: int,
        queue_max: int,
        on_poison: Callable[[BaseException], None],
        on_damage: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        """`on_damage` is told of tenants whose stored data turned out to be damaged, by name and reason."""
        self._on_damage = on_damage
        self._log, self._entry, self._clock = log, entry, clock
        self._timer = timer  # for waiting times: a step of the clock must not refuse a write
        self._group_facts_max, self._queue_max = group_facts_max, queue_max
        self._on_poison = on_poison
        self._queue: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._poison: LarimarError | None = None
        self._suspended: Unavailable | None = None
        self._closed = False
        #: Held to queue a command and to stop, so that nothing is queued that nobody will take.
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="larimar-writer", daemon=True)
        self._thread.start()

    def submit(self, command: Command) -> Future[Any]:
        """Queue a command; its future resolves when it is durable and applied, or refused.

        Raises Overloaded, Unavailable after `close`, and what poisoned the writer; then nothing was queued.
        """
        with self._gate:
            if self._poison is not None:
                raise self._poison
            if self._closed:
                raise Unavailable("the memory actor", "it is stopping")
            if self._suspended is not None:
                raise self._suspended
            waiting = self._queue.qsize()
            if waiting >= self._queue_max:
                raise Overloaded("the memory actor", waiting, self._queue_max)
            command.queued_at = self._timer()
            self._queue.put(command)
        return command.future

    def suspend(self, refusal: Unavailable | None) -> None:
        """Refuse everything with `refusal` from now on, what is queued or planned included; None goes on again."""
        self._suspended = refusal

    def poison(self, error: BaseException) -> None:
        """Storage failed outside a commit: refuse what comes, and end the process as after a failed commit."""
        self._fail(error, [])

    def close(self) -> None:
        """Finish what is queued and stop. May be called twice."""
        with self._gate:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        self._thread.join()

    def _run(self) -> None:
        while self._poison is None:
            command = self._queue.get()
            if command is None:
                return
            commands, stopping = self._gather(command)
            try:
                self._commit(commands)
            except BaseException as error:  # noqa: BLE001 - nothing may be acknowledged after this; replay decides
                self._fail(error, commands)
            if stopping:
                return

    def _gather(self, first: Command) -> tuple[list[Command], bool]:
        """The first command and those already waiting, up to `group_facts_max` facts; and whether to stop after."""
        commands, facts = [first], first.facts
        while facts < self._group_facts_max:
            try:
                command = self._queue.get_nowait()
            except queue.Empty:
                break
            if command is None:
                return commands, True
            commands.append(command)
            facts += command.facts
        return commands, False

    def _commit(self, commands: list[Command]) -> None:
        """Plan, commit, apply, answer. Whatever this raises poisons the writer."""
        waiting = [command for command in commands if command.future.set_running_or_notify_cancel()]
        while waiting:
            attempt = self._planned(waiting)
            refused = self._refused_before_commit(attempt)
            planned_at = self._timer()
            if not refused and attempt.entries:
                try:
                    self._log.commit(attempt.entries, attempt.group.now)
                except (StorageFull, TenantDamaged) as refusal:
                    refused = self._concerned(attempt, refusal)
                    if not refused:
                        raise
            if not refused:
                self._finish(attempt, planned_at)
                return
            # Others may be drafted on what is refused now, or repeat its reply: all that is left is planned afresh.
            waiting = [command for command, _ in attempt.planned if id(command) not in refused]
            for command, _ in attempt.planned:
                if id(command) in refused:
                    command.future.set_exception(refused[id(command)])

    def _planned(self, commands: list[Command]) -> _Attempt:
        """Plan each command on what those before it will have done; whoever is refused is told at once."""
        attempt = _Attempt(Group(self._clock(), self._timer()))
        for command in commands:
            plan, fresh = self._plan_or_refuse(command, attempt.group, attempt.replies)
            if plan is None:
                continue
            attempt.planned.append((command, plan))
            if not fresh:
                continue
            reply = command.record(plan.reply) if command.record else b""
            if command.idempotency is not None:
                attempt.replies[command.tenant, command.idempotency.key] = (command.idempotency, reply)
            if plan.effect is not None or command.idempotency is not None:
                attempt.entries.append(self._entry(plan.effect, command.idempotency, reply, command.tenant))
        return attempt

    def _refused_before_commit(self, attempt: _Attempt) -> dict[int, LarimarError]:
        """Planned changes that may not be stored any more, by command: late ones, or all when serving stopped."""
        changes = [command for command, plan in attempt.planned if plan.effect is not None]
        if self._suspended is not None:
            return {id(command): self._suspended for command in changes}
        now = self._timer()
        return {
            id(command): DeadlineExceeded("the request", command.timeout_s)
            for command in changes
            if command.timeout_s is not None and now - command.queued_at > command.timeout_s
        }

    def _concerned(self, attempt: _Attempt, refusal: StorageFull | TenantDamaged) -> dict[int, LarimarError]:
        """The commands that a commit was refused for: those that need room, or those of the damaged tenant."""
        if isinstance(refusal, StorageFull):
            return {id(command): refusal for command, _ in attempt.planned if command.adds}
        told, name = self._quarantined(refusal), refusal.args[0]
        return {id(command): told for command, plan in attempt.planned if getattr(plan.effect, "tenant", None) == name}

    def _quarantined(self, damage: TenantDamaged) -> TenantQuarantined:
        self._on_damage(*damage.args)
        return TenantQuarantined(*damage.args)

    def _finish(self, attempt: _Attempt, planned_at: float) -> None:
        """Apply what is durable, then answer."""
        committed_at = self._timer()
        for _, plan in attempt.planned:
            plan.apply()
        reached("log.after_apply_before_reply")
        begun_at = attempt.group.begun_at
        shared = {
            "plan": planned_at - begun_at,
            "commit": committed_at - planned_at,
            "apply": self._timer() - committed_at,
        }
        for command, plan in attempt.planned:
            if plan.ms is not None:
                stages = {"queue": begun_at - command.queued_at, **shared}
                plan.ms.update({stage: round(seconds * 1e3, 3) for stage, seconds in stages.items()})
            command.future.set_result(plan.reply)

    def _plan_or_refuse(
        self, command: Command, group: Group, replies: dict[tuple[str, str], tuple[Idempotency, bytes]]
    ) -> tuple[Plan | None, bool]:
        """The command's plan and whether it is new (not a replay); no plan when its caller was told of a refusal."""
        try:
            replayed = self._replayed(command, replies)
            if replayed is not None:
                return replayed, False
            self._check_admissible(command, group)
            return command.plan(group), True
        except LedgerFailed:
            raise  # of a read: what the disk refuses to one command it must not half-give to the next
        except TenantDamaged as damage:
            command.future.set_exception(self._quarantined(damage))
        except LarimarError as refusal:
            command.future.set_exception(refusal)
        except Exception as bug:  # noqa: BLE001 - told to its caller; the half-made draft is used no further
            group.broken.add(command.tenant)
            command.future.set_exception(bug)
        return None, False

    def _check_admissible(self, command: Command, group: Group) -> None:
        """Raise when nothing is served, the command waited too long, or its tenant's draft cannot be trusted."""
        if self._suspended is not None:
            raise self._suspended
        if command.timeout_s is not None and group.begun_at - command.queued_at > command.timeout_s:
            raise DeadlineExceeded("the request", command.timeout_s)
        if command.tenant in group.broken:
            raise Unavailable(f"tenant {command.tenant!r}", "an earlier request of the same commit failed")

    def _replayed(self, command: Command, replies: dict[tuple[str, str], tuple[Idempotency, bytes]]) -> Plan | None:
        """A plan that repeats the first reply to this idempotency key, or None when the key is new."""
        given = command.idempotency
        if given is None or command.replay is None:
            return None
        if (command.tenant, given.key) in replies:
            first, stored = replies[command.tenant, given.key]
            if (first.request_digest, first.endpoint) != (given.request_digest, given.endpoint):
                raise IdempotencyKeyReused(first.endpoint)
        else:
            found = self._log.idempotent_reply(command.tenant, given)
            if found is None:
                return None
            stored = found
        return Plan(None, command.replay(stored), _nothing)

    def _fail(self, error: BaseException, commands: list[Command]) -> None:
        """Poison: tell every caller who has no answer yet, waiting or not, and end the process."""
        poison = error if isinstance(error, LarimarError) else LedgerFailed("of this actor", repr(error))
        with self._gate:
            self._poison = poison
            waiting = list(_drained(self._queue))
        for command in [*commands, *waiting]:
            future = command.future
            if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
                future.set_exception(poison)
        self._on_poison(error)


def _drained(commands: queue.SimpleQueue[Command | None]) -> Iterator[Command]:
    """All commands in the queue, taken out of it."""
    while True:
        try:
            command = commands.get_nowait()
        except queue.Empty:
            return
        if command is not None:
            yield command


def _nothing() -> None:
    """The change that a replayed reply makes."""
