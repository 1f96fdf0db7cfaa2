"""The examiner of the campaigns sees each kind of loss: a campaign that cannot fail proves nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.campaign_examiner import Examiner
from jobs.campaign_load import Answer, Journal, Request, create_tenants, read_journal
from jobs.campaign_model import TenantModel
from jobs.campaign_outcome import Outcome
from jobs.campaign_store import PlannedFact, Store, opened

TENANT = "ant"


def told(store: Store, examiner: Examiner, number: int, *facts: PlannedFact) -> Answer:
    """A write that its sender and the examiner heard of."""
    request = Request(number, TENANT, facts)
    answer = Answer.of(number, request.submit(store).result(30))
    examiner.follow(request, answer, "write")
    return answer


def fresh() -> Examiner:
    return Examiner(Outcome("test", 1, 1), random.Random(1), {TENANT: TenantModel()})


def examined(tmp_path: Path, spoil: Callable[[Store, Examiner, Answer], None]) -> Outcome:
    """What an examination finds after three writes and something that nobody told the examiner."""
    examiner = fresh()
    with opened(tmp_path / "state") as store:
        create_tenants(store, (TENANT,))
        told(store, examiner, 0, PlannedFact(1, 11), PlannedFact(2, 12, rows=2))
        answer = told(store, examiner, 1, PlannedFact(3, 13))
        told(store, examiner, 2, PlannedFact(1, 14))
        spoil(store, examiner, answer)
        examiner.examine(store, "now")
    return examiner.outcome


def test_a_sound_store_passes(tmp_path):
    """Nothing is found where nothing is wrong, and erasures end in receipts."""
    assert examined(tmp_path, lambda store, examiner, answer: None).passed


def lose(store: Store, examiner: Examiner, answer: Answer) -> None:
    Request(90, TENANT, fact_ids=answer.fact_ids).submit(store).result(30)


def repeat(store: Store, examiner: Examiner, answer: Answer) -> None:
    Request(91, TENANT, (PlannedFact(3, 13, keep_both=True),)).submit(store).result(30)


def alter(store: Store, examiner: Examiner, answer: Answer) -> None:
    live = examiner.models[TENANT].live
    (fact_id,) = answer.fact_ids
    live[fact_id] = type(live[fact_id])(PlannedFact(3, 99), live[fact_id].version)


def miscount(store: Store, examiner: Examiner, answer: Answer) -> None:
    examiner.models[TENANT].version += 1


def unsum(store: Store, examiner: Examiner, answer: Answer) -> None:
    examiner.models[TENANT].cross[0, 0] += 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose, "lost"),
        (repeat, "which nobody wrote"),
        (alter, "other words"),
        (miscount, "is at 3, not 4"),
        (unsum, "not that of its facts"),
    ],
)
def test_each_kind_of_wrong_is_found(tmp_path, spoil, says):
    """A lost fact, one too many, other words, a change too few, a sum off by one."""
    outcome = examined(tmp_path, spoil)

    assert not outcome.passed
    assert any(says in violation for violation in outcome.violations), outcome.violations


def test_a_gap_in_what_was_applied_is_found(tmp_path):
    """Of two requests in flight, the second applied and the first not: a commit overtook another."""
    examiner = fresh()
    journal = Journal(tmp_path / "journal")
    first, second = (Request(number, TENANT, (PlannedFact(number, number),)) for number in range(2))
    for request in (first, second):
        journal.begin(request)
    journal.close()
    with opened(tmp_path / "state") as store:
        create_tenants(store, (TENANT,))
        second.submit(store).result(30)
        examiner.take(read_journal(tmp_path / "journal"), store, "now")

    assert any("an earlier one is not" in violation for violation in examiner.outcome.violations)


def test_a_journal_survives_being_cut_short(tmp_path):
    """A line that the end of its writer cut counts as not written; those before it count."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.say("open")
    journal.begin(Request(0, TENANT, (PlannedFact(1, 2),)))
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"answer": {"num')

    heard = read_journal(path)
    assert heard.said == ("open",)
    assert heard.in_flight == [Request(0, TENANT, (PlannedFact(1, 2),))]
