"""Needles: made-up facts whose subjects are all different, and that neither the encoder nor a guess can know."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from jobs.evaluation.needles import COUNT_MAX, NEEDLES_FILE, needles
from jobs.scope_domains import Templates
from jobs.scope_statements import normal


@pytest.fixture(scope="module")
def many():
    return needles(100_000, seed=0)


def test_a_hundred_thousand_needles_are_about_as_many_subjects(many):
    """No prompt, no question and no sentence occurs twice, letter case aside."""
    for texts in (
        [needle.fact.prompt for needle in many],
        [needle.question for needle in many],
        [f"{needle.fact.prompt} {needle.fact.target}" for needle in many],
    ):
        assert len({text.casefold() for text in texts}) == 100_000


def test_needles_are_the_seeds_and_fewer_are_the_beginning_of_more(many):
    assert needles(300, seed=0) == many[:300]
    assert needles(300, seed=1) != many[:300]
    assert needles(0, seed=0) == []


def test_a_needle_is_a_sentence_and_a_question_in_other_words(many):
    """Prompt and target are plain text of few words, every slot filled; the question does not give the answer away."""
    for needle in many[:5_000]:
        prompt, target = needle.fact.prompt, needle.fact.target or ""
        for text in (prompt, target, needle.question):
            assert not re.search(r"[{}]|  |^ | $", text), text
        assert not re.search(r"[.?!]$", prompt)
        assert not prompt[0].islower()
        assert needle.question[0].isupper()
        assert needle.question.endswith("?")
        assert not needle.question.startswith(prompt)
        assert needle.answer in target
        assert not re.search(rf"\b{re.escape(needle.answer)}\b", needle.question)
        assert len(f"{prompt} {target}".split()) <= 24


def test_guessing_does_not_find_an_answer(many):
    """The most frequent answer of all is right for less than one needle in a thousand, and they differ in kind."""
    answers = Counter(needle.answer for needle in many)
    assert max(answers.values()) < 100
    kinds = {re.sub(r"\d", "0", re.sub(r"[A-Za-z']+", "a", answer)) for answer in answers}
    assert len(kinds) >= 12


def test_needles_are_about_many_things():
    """At least 12 domains and 50 relations, each with two ways to state it and two to ask for it."""
    templates = Templates(NEEDLES_FILE)
    assert len(templates.domains) >= 12
    relations = templates.all_relations()
    assert len({relation.name for relation in relations}) == len(relations) >= 50
    assert all(len(relation.prompts) >= 2 and len(relation.questions) >= 2 for relation in relations)
    assert all(len(relation.prompts) == len(relation.sentences) for relation in relations)


def test_the_scope_encoder_was_not_trained_on_needles():
    """No phrasing of a needle is one of the encoder's training templates, and no name of its lists is one of theirs."""
    ours, theirs = Templates(NEEDLES_FILE), Templates()
    phrasings = [
        {normal(wording) for relation in templates.all_relations() for wording in relation.wordings()}
        for templates in (ours, theirs)
    ]
    assert phrasings[0] & phrasings[1] == set()
    people = {*ours.slots["given"], *ours.slots["surname"]}
    assert people & {*theirs.slots["first"], *theirs.slots["last"]} == set()


@pytest.mark.parametrize("count", [-1, COUNT_MAX + 1])
def test_more_than_can_be_made_is_refused(count):
    with pytest.raises(ValueError, match="needles asked for"):
        needles(count, seed=0)
