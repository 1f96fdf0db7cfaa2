"""Training pairs of the scope encoder: what agrees, what differs, and that nothing leaks from what it is tested on."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.scope_domains import Templates
from jobs.scope_evaluation import choose_threshold, equal_error_rate, errors
from jobs.scope_pairs import Mix, PairSource
from jobs.scope_relations import World, split_front
from jobs.scope_split import HELD_OUT_RELATIONS, is_validation_subject
from jobs.scope_statements import Relation, Statement, Wordings, normal, relations_between

FIXTURES = Path(__file__).parents[1] / "model_fixtures"
FRONTS = ("The museum was closed that day.", "Rain is expected in the hills.")
PEOPLE = tuple(f"Person {letter}" for letter in "abcdefgh")
BORN = Relation(
    "born",
    frozenset({"person"}),
    prompts=("{s} was born in", "{s} is a native of"),
    questions=("Where was {s} born?",),
    subjects=PEOPLE,
)
TONGUE = Relation(
    "tongue",
    frozenset({"person"}),
    prompts=("{s} speaks",),
    rephrasings=("{s} was born in",),
    questions=("What does {s} speak?",),
    subjects=PEOPLE,
)
PLAYS = Relation(
    "plays", frozenset({"person"}), prompts=("{s} plays",), questions=("What does {s} play?",), subjects=PEOPLE
)


@pytest.fixture(scope="module")
def templates() -> Templates:
    return Templates()


@pytest.fixture(scope="module")
def source(templates) -> PairSource:
    return PairSource(World((BORN, TONGUE, PLAYS), FRONTS), templates, FRONTS)


def _triples() -> list[dict[str, str]]:
    return json.loads((FIXTURES / "private_scope_triples.json").read_bytes())["triples"]


def test_what_agrees_and_what_differs():
    """Same subject and relation agree; a wording that can mean both relations is neither; all else differs."""
    wordings = Wordings([BORN, TONGUE, PLAYS])

    def statement(subject: str, relation: str, wording: str) -> Statement:
        return Statement(wording.replace("{s}", subject), subject, relation, wordings.means(wording, relation))

    statements = [
        statement("Ada", "born", "{s} was born in"),
        statement("Ada", "born", "Where was {s} born?"),
        statement("Ada", "tongue", "{s} speaks"),
        statement("Ada", "plays", "{s} plays"),
        statement("Eve", "born", "{s} was born in"),
    ]
    agree, differ = relations_between(statements, wordings)
    assert {(i, j) for i, j in np.argwhere(agree) if i < j} == {(0, 1)}
    # 0 with 2 is neither: "was born in" stands for the mother tongue as well.
    assert {(i, j) for i, j in np.argwhere(differ) if i < j} == {
        (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4),
    }  # fmt: skip
    assert not (agree & differ).any()


def test_a_batch_holds_all_three_kinds_of_negatives_and_both_kinds_of_positives(source):
    """Same relation other subject, same subject other relation, unrelated; rephrased, and with a sentence in front."""
    statements = source.batch(random.Random(3), Mix(front_share=0.5))
    agree, differ = relations_between(statements, source.wordings)
    subjects = np.array([one.subject for one in statements])
    relations = np.array([one.relation for one in statements])
    same_subject = subjects[:, None] == subjects
    same_relation = (relations[:, None] == relations) & (relations != "")
    assert (differ & same_subject & ~same_relation).sum() > 50
    assert (differ & ~same_subject & same_relation).sum() > 200
    assert (differ & ~same_subject & ~same_relation).sum() > 5_000
    stored = [one for one in statements if one.relation]
    assert agree.any(1).sum() == len(stored)
    assert sum(one.text.startswith(FRONTS) for one in stored) > 20


def test_batches_are_the_seeds(source):
    texts = [[one.text for one in source.batch(random.Random(seed))] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_held_out_domains_are_never_drawn(source, templates):
    held_out = {domain.name for domain in templates.domains if domain.held_out}
    assert len(held_out) >= 3
    drawn = set()
    for seed in range(30):
        drawn |= {one.relation.split(".")[0] for one in source.batch(random.Random(seed))}
    assert not held_out & drawn
    assert len(drawn) > 10


def test_the_private_test_set_shares_no_wording_and_no_name_with_the_templates(templates):
    """Neither a written wording nor a name of the template file occurs in the test set.

    Sentences that end in their target ("{s} is {t}.") are matched with the target's place open at their end only by
    what `normal` leaves of it: left open, they would match every sentence. Questions are matched whole. Forms made from
    attribute and deed words ("Who drives {s}?") are too general to be kept apart; docs/scope.md says how many meet.
    """
    triples = _triples()
    texts = [triple[key] for triple in triples for key in ("stored", "question", "same_subject", "same_relation")]
    wordings = {
        re.sub(r"\\\{\w\\\}", ".+", re.escape(normal(wording)))
        for relation in templates.all_relations()
        for wording in relation.wordings()
    }
    pattern = re.compile("|".join(sorted(wordings)))
    assert [text for text in texts if pattern.fullmatch(normal(text))] == []
    questions = {
        ".+".join(map(re.escape, re.split(r"\{\w\}", re.sub(r"[?.!]+$", "", wording.lower()))))
        for domain in templates.domains
        if not domain.held_out
        for relation in domain.relations
        for wording in relation.questions
    }
    asked = re.compile("|".join(sorted(questions)))
    assert [text for text in texts if asked.fullmatch(normal(text))] == []
    names = [name for slot in ("first", "last", "city", "code") for name in templates.slots[slot]]
    named = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    assert [text for text in texts if named.search(text)] == []


def test_the_private_test_set_is_large_varied_and_sound():
    """At least 200 triples over many domains, sentences and prompts, every text its own."""
    triples = _triples()
    assert len(triples) >= 200
    assert len({triple["domain"] for triple in triples}) >= 30
    with_target = sum("target" in triple for triple in triples)
    assert 80 <= with_target <= len(triples) - 80
    stored = {triple["stored"] for triple in triples}
    assert len(stored) == len(triples)
    assert not stored & {triple[key] for triple in triples for key in ("question", "same_subject", "same_relation")}


def test_the_split_is_by_name_alone():
    held = [name for name in (f"Subject {n}" for n in range(2_000)) if is_validation_subject(name)]
    assert 60 <= len(held) <= 140
    assert all(is_validation_subject(name.upper()) for name in held)
    assert {"P47", "company_ceo"} <= HELD_OUT_RELATIONS


def test_sentences_in_front_are_split_off():
    assert split_front("He plays for Spezia. Sega, from", "Sega") == ("He plays for Spezia.", "{s}, from")
    assert split_front("Which position does Bo play? They play as", "Bo")[1].startswith("Which position does {s} play?")


def test_equal_error_rate_of_known_scores():
    rate, threshold = equal_error_rate(np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.4, 0.75]))
    assert rate == pytest.approx(0.25)
    assert 0.4 < threshold <= 0.75


def test_the_threshold_separates_what_can_be_separated():
    """Misses score below, false alarms above; a threshold between well separated scores makes no errors at all."""
    scores = {
        name: np.full(10, 0.8 if inside else 0.3, np.float32)
        for name, inside in (
            ("rephrase_1", True), ("front_1", True), ("neighbour_1", False), ("same_subject_1", False),
            ("rephrase_2000", True), ("front_2000", True), ("neighbour_2000", False), ("same_subject_2000", False),
            ("held_out_relation", True), ("held_out_relation_other", False),
            ("held_out_domain", True), ("held_out_domain_other", False),
        )
    }  # fmt: skip
    threshold, curve = choose_threshold(scores)
    assert 0.3 < threshold <= 0.8
    assert set(errors(scores, threshold).values()) == {0.0}
    assert len(curve) > 50
