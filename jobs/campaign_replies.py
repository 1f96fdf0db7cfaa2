"""Each write is sent one to five times, its replies dropped at random: it must have exactly one effect."""

from __future__ import annotations

import random
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jobs.campaign_examiner import Examiner
from jobs.campaign_load import TENANTS, TIMEOUT_S, Answer, Request, create_tenants, draw_request
from jobs.campaign_model import TenantModel
from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_store import Store, open_store, scratch, torch_threads

SENDS_MAX = 5
_RESTART_EVERY = 200  # requests, on average; a restart falls between two sends of one request
_EXAMINE_EVERY = 500


@torch_threads(1)
def replies_dropped(count: int, seed: int, advance: Advance) -> Outcome:
    """`count` writes and forgets; what was sent is repeated at once, later, or after a restart."""
    outcome = Outcome("replies_dropped", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    examiner = Examiner(outcome, draw, {tenant: TenantModel() for tenant in TENANTS})
    with scratch(durable=False) as folder:
        sender = _Sender(folder / "state", draw)
        try:
            create_tenants(sender.store)
            for number in range(count):
                request = draw_request(draw, number, examiner.live())
                answers = sender.send(request)
                outcome.counts["sends"] += len(answers)
                outcome.counts["writes"] += 1
                outcome.counts["more_or_less_than_one_effect"] += len(set(answers)) != 1
                outcome.check(len(set(answers)) == 1, f"request {number} was answered {set(answers)}")
                examiner.follow(request, answers[0], f"request {number}")
                if number % _EXAMINE_EVERY == _EXAMINE_EVERY - 1 or number == count - 1:
                    examiner.examine(sender.store, f"after request {number}")
                advance(1)
            outcome.counts["restarts"] = sender.restarts
        finally:
            sender.store.engine.close()
    return outcome


class _Sender:
    """Sends requests several times, and restarts the engine now and then."""

    def __init__(self, state_dir: Path, draw: random.Random) -> None:
        self._state_dir, self._draw = state_dir, draw
        self.store: Store = open_store(state_dir)
        self.restarts = 0

    def send(self, request: Request) -> list[Answer]:
        """All answers to one request, those that its sender would not have heard included."""
        waiting: list[Future[Any]] = []
        answers: list[Answer] = []
        for _ in range(self._draw.randint(1, SENDS_MAX)):
            waiting.append(request.submit(self.store))
            if self._draw.random() < 0.6:  # this reply is dropped after it was made; the others are still under way
                answers += [_heard(request, future) for future in waiting]
                waiting.clear()
            if self._draw.random() < 1 / _RESTART_EVERY:
                self._restart()
        return answers + [_heard(request, future) for future in waiting]

    def _restart(self) -> None:
        self.store.engine.close()  # finishes what is queued, so that no future stays without an answer
        self.store = open_store(self._state_dir)
        self.restarts += 1


def _heard(request: Request, future: Future[Any]) -> Answer:
    return Answer.of(request.number, future.result(TIMEOUT_S))
