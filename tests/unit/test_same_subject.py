"""Another relation of the same subject: known by the record's template, surely another, and the seed's."""

from __future__ import annotations

import json
import random

import pytest

from jobs.evaluation.records import EditRecord
from jobs.evaluation.same_subject import TEMPLATES_FILE, other_relation, relations_of
from jobs.scope_relations import declared_relations


def record(prompt: str, subject: str) -> EditRecord:
    return EditRecord(1, prompt, subject, "new", "true", ("r",), ("f r",), ("n",), ("a",))


@pytest.mark.parametrize(
    ("prompt", "subject", "relation"),
    [
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "P103"),
        ("Danielle Darrieux spoke the language", "Danielle Darrieux", "P103"),
        ("The headquarters of Nortel is in", "Nortel", "P159"),
        ("What sport does Hal play? They play", "Hal", "person_plays_pro_sport"),
    ],
)
def test_a_relation_is_known_by_its_template(prompt, subject, relation):
    """Templates of CounterFact, under the names that Wikidata gives the relations."""
    assert relations_of(record(prompt, subject)) == {relation}


def test_a_template_of_several_relations_stands_for_all():
    """ "X was created in" is said of works and of groups."""
    assert relations_of(record("Milanesa originated in", "Milanesa")) == {"P495", "P740"}


def test_an_unknown_template_has_no_other_relation():
    assert relations_of(record("Ada's favourite shade of green is", "Ada")) == frozenset()
    assert other_relation(record("Ada's favourite shade of green is", "Ada"), random.Random(0)) is None


def relations_asked(subject: str, texts: set[str]) -> list[set[str]]:
    """For each text the relations it is a bundled prompt or a declared question of."""
    wordings: dict[str, set[str]] = {}
    bundled = json.loads(TEMPLATES_FILE.read_bytes())["relations"]
    for name, relation in declared_relations().items():
        for wording in (*relation.questions, *bundled.get(name, {}).get("prompts", ())):
            filled = wording.replace("{s}", subject)
            wordings.setdefault(filled[0].upper() + filled[1:], set()).add(name)
    return [wordings[text] for text in texts]


@pytest.mark.parametrize(
    "template", ["The mother tongue of {s} is", "The headquarters of {s} is in", "{s} is located in"]
)
def test_the_other_relation_is_neither_the_records_nor_near_it_and_fits_the_subject(template):
    """In 300 draws: every text names the subject, none can mean the record's relation or one declared near it."""
    declared = declared_relations()
    one = record(template.replace("{s}", "Zorn"), "Zorn")
    own = relations_of(one)
    texts = {other_relation(one, random.Random(seed)) for seed in range(300)} - {None}
    assert len(texts) >= 10
    kinds = set().union(*(declared[name].kinds for name in own))
    for text, names in zip(texts, relations_asked("Zorn", texts), strict=True):
        assert "Zorn" in text
        assert not names & own
        assert not any(other in declared[name].near or name in declared[other].near for name in own for other in names)
        assert any(declared[name].kinds & kinds for name in names)


def test_questions_and_clozes_are_both_drawn():
    one = record("The mother tongue of Ada is", "Ada")
    questions = [str(other_relation(one, random.Random(seed))).endswith("?") for seed in range(200)]
    assert 50 < sum(questions) < 195


def test_the_draw_is_the_generators():
    """The same state gives the same text; other states give other texts."""
    one = record("The mother tongue of Ada is", "Ada")
    texts = [other_relation(one, random.Random(seed)) for seed in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 2


def test_the_bundled_templates_carry_their_licence_and_belong_to_declared_relations():
    """CounterFact is MIT: its notice goes along. Every relation has kinds, and every template names the subject."""
    content = json.loads(TEMPLATES_FILE.read_bytes())
    assert "MIT License. Copyright (c) 2022 Kevin Meng" in content["licence"]
    assert TEMPLATES_FILE.stat().st_size < 50_000
    assert set(content["relations"]) <= set(declared_relations())
    assert len(content["relations"]) >= 30
    for relation in content["relations"].values():
        assert relation["prompts"]
        assert all("{s}" in wording for wording in (*relation["prompts"], *relation["rephrasings"]))
