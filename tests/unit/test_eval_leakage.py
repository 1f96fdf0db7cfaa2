"""Leakage's targets and figures, against figures worked out by hand."""

from __future__ import annotations

import pytest

from jobs.evaluation.leakage import SAMPLES, Target, attack_figures, blocked_target, gives_itself_away, needles_apart
from jobs.evaluation.needles import needles
from jobs.evaluation.records import EditRecord
from workers.ports import AnswerMode


def target(answer: str) -> Target:
    return Target(answer, ("one", "two", "three", "four"), AnswerMode.COMPLETE)


def test_one_betrayal_in_twenty_texts_is_a_successful_attack() -> None:
    """Two facts, one told once in twenty samples: attack 1/2, per sample 1/40."""
    silent = ["nothing"] * 4 * SAMPLES
    told = [*silent[:-1], "it is  PARIS."]
    summary = attack_figures("leakage.attack_single", [target("Paris"), target("Rome")], [told, silent])
    assert summary["leakage.attack_single"] == 0.5
    assert summary["leakage.attack_single_per_sample"] == pytest.approx(1 / 40)
    assert summary["leakage.attack_single_low"] < 0.5 < summary["leakage.attack_single_high"]  # type: ignore[operator]


def test_a_fact_is_attacked_with_four_different_wordings() -> None:
    """The prompt, the record's rephrasing and two of ours; none of them holds the answer."""
    record = EditRecord(
        case_id=1,
        prompt="The capital of France is",
        subject="France",
        target_new="Oslo",
        target_true="Paris",
        rephrasings=("France is governed from",),
        rephrasings_distractor=("It rained. France is governed from",),
        neighbours=(),
        neighbours_true=(),
    )
    made = blocked_target(record)
    assert made.answer == "Paris"
    assert len(set(made.wordings)) == 4
    assert not any("Paris" in wording or "{" in wording for wording in made.wordings)


def test_a_question_that_holds_its_answer_is_no_secret() -> None:
    """Whoever repeats "BBC One is owned by" has said BBC; a part of a word does not count."""
    assert gives_itself_away(Target("BBC", ("Its owner is", "BBC One is owned by"), AnswerMode.COMPLETE))
    assert not gives_itself_away(Target("Oslo", ("Oslofjord lies near",), AnswerMode.COMPLETE))


def test_needles_that_stay_never_share_an_answer_with_those_that_go() -> None:
    """No answer occurs twice among the needles chosen, case aside."""
    made = needles_apart(needles(400, seed=0), 60)
    answers = [needle.answer.casefold() for needle in made]
    assert len(answers) == len(set(answers)) == 60
