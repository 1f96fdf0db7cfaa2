"""Statements: texts that ask for, or state, one relation of one subject; what a scope encoder learns to tell apart.

Two statements *agree* when subject and relation are the same, *differ* when they are surely not the same, and are
neither where a text can mean both relations ("X speaks ..." asks for the mother tongue too) or the relations are near.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_LEADS = (
    "",
    "",
    "",
    "",
    "Do you know: ",
    "Please tell me: ",
    "Quick question: ",
    "Can you tell me: ",
    "I forgot. ",
    "Hello! ",
    "One more thing: ",
    "Question: ",
)


@dataclass(frozen=True, slots=True)
class Statement:
    """`group` is (subject, relation); `means` are the relations this text could stand for, `group`'s among them."""

    text: str
    subject: str
    relation: str
    means: frozenset[str]


@dataclass(frozen=True)
class Relation:
    """Wordings of one relation: `{s}` is the subject and, in sentences, `{t}` the target.

    `prompts` stop where the target begins; `rephrasings` only hint at the relation (they are asked, never stored).
    """

    name: str
    kinds: frozenset[str]
    near: frozenset[str] = frozenset()
    prompts: tuple[str, ...] = ()
    rephrasings: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # of an attribute or a deed: what it is called, in other relations' wordings too
    subjects: tuple[str, ...] = field(default=(), repr=False)

    def wordings(self) -> set[str]:
        return {*self.prompts, *self.rephrasings, *self.questions, *self.sentences}


class Wordings:
    """Which relations each wording can stand for, over all relations: the basis of `Statement.means`."""

    def __init__(self, relations: Sequence[Relation]) -> None:
        self._means: dict[str, set[str]] = {}
        near = {relation.name: relation.near | _near_by_word(relation, relations) for relation in relations}
        self._near: Mapping[str, frozenset[str]] = {
            name: others | frozenset(other for other in near if name in near[other]) for name, others in near.items()
        }
        for relation in relations:
            for wording in relation.wordings():
                self._means.setdefault(normal(wording), set()).add(relation.name)

    def means(self, wording: str, relation: str) -> frozenset[str]:
        """The relations that `wording` or a near relation of `relation` could stand for."""
        return frozenset(self._means.get(normal(wording), set()) | {relation})

    def related(self, one: frozenset[str], other: frozenset[str]) -> bool:
        """Whether two sets of meanings touch, directly or through near relations."""
        return bool(one & other) or any(self._near.get(name, frozenset()) & other for name in one)


def _near_by_word(relation: Relation, relations: Sequence[Relation]) -> frozenset[str]:
    """For an attribute or a deed: every relation one of whose wordings has its word in it, or asks for its like."""
    if not relation.words:
        return frozenset()
    pattern = "|".join(re.escape(word) for word in relation.words)
    if re.search(r"place|location|station|town|destination|parking", pattern):
        pattern += "|where"
    if re.search(r"date|time|birthday|deadline|anniversary|shift", pattern):
        pattern += "|when"
    found = re.compile(rf"\b(?:{pattern})", re.IGNORECASE)
    return frozenset(
        other.name
        for other in relations
        if other.name != relation.name
        and (
            any(found.search(word) for word in other.words) if other.words else any(map(found.search, other.wordings()))
        )
    )


def normal(wording: str) -> str:
    """A wording without case, punctuation and white space at its end: what counts as the same wording."""
    return re.sub(r"\W+$", "", wording.lower())


def draw(relation: Relation, rng: random.Random, *, stored: bool) -> str:
    """One wording: as it is `stored` (prompt, question, sentence) or as it is asked (rephrasing, question, prompt)."""
    choices: list[tuple[tuple[str, ...], float]] = [
        (relation.prompts, 3.0 if stored else 1.0),
        (relation.questions, 1.5),
        (relation.sentences, 1.0 if stored else 0.15),
        (() if stored else relation.rephrasings, 2.5),
    ]
    filled = [(wordings, weight) for wordings, weight in choices if wordings]
    (wordings,) = rng.choices([wordings for wordings, _ in filled], [weight for _, weight in filled])
    return rng.choice(wordings)


def dress(text: str, rng: random.Random, fronts: Sequence[str], share: float) -> str:
    """How people really ask: with an unrelated sentence in front (`share` of the time), a lead, or no question mark."""
    if text.endswith("?"):
        text = rng.choice(_LEADS) + text
        if rng.random() < 0.1:
            text = text[:-1]
    if fronts and rng.random() < share:
        text = f"{rng.choice(fronts)} {text}"
    return text


def relations_between(
    statements: Sequence[Statement], wordings: Wordings
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(agree, differ) of N statements, both (N, N); a statement does not agree with itself."""
    count = len(statements)
    agree = np.zeros((count, count), bool)
    differ = np.ones((count, count), bool)
    by_subject: dict[str, list[int]] = {}
    for index, one in enumerate(statements):
        by_subject.setdefault(one.subject.lower(), []).append(index)
    for members in by_subject.values():
        for i in members:
            for j in members:
                same = statements[i].relation == statements[j].relation
                agree[i, j] = same and i != j
                differ[i, j] = not same and not wordings.related(statements[i].means, statements[j].means)
    return agree, differ
