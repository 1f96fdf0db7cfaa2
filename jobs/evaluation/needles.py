"""Needles: made-up single facts, each about a subject of its own, that nobody can guess and no decoder has read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from jobs.scope_domains import Domain, Templates
from memory_actor.types import FactText

NEEDLES_FILE = Path(__file__).with_name("needles.txt")
#: Every domain is asked for at most a tenth of the subjects it can name, so that drawing new ones stays cheap.
COUNT_MAX: Final = 150_000


@dataclass(frozen=True, slots=True)
class Needle:
    """A fact, a question that asks for it in other words, and what a right answer holds: the whole target.

    `fact.prompt` and `fact.target` with a space between are one sentence without its full stop.
    """

    fact: FactText
    question: str
    answer: str


def needles(count: int, seed: int) -> list[Needle]:
    """`count` needles about as many different subjects, letter case aside; fewer are the beginning of more.

    The same count and seed give the same needles. Targets may repeat: two people can come from one town.
    Raises: ValueError for a count below 0 or above COUNT_MAX.
    """
    if not 0 <= count <= COUNT_MAX:
        raise ValueError(f"{count} needles asked for; between 0 and {COUNT_MAX} can be made")
    templates = _templates()
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    taken: set[str] = set()
    made: list[Needle] = []
    while len(made) < count:
        domain = rng.choice(templates.domains)
        subject = templates.fill(rng.choice(domain.patterns), rng)
        if subject.casefold() not in taken:
            taken.add(subject.casefold())
            made.append(_needle(domain, subject, templates, rng))
    return made


@cache
def _templates() -> Templates:
    return Templates(NEEDLES_FILE)


def _needle(domain: Domain, subject: str, templates: Templates, rng: random.Random) -> Needle:
    relation = rng.choice(domain.relations)
    prompt = rng.choice(relation.prompts).replace("{s}", subject)
    question = rng.choice(relation.questions).replace("{s}", subject)
    target = templates.fill(rng.choice(relation.targets), rng)
    return Needle(FactText(_sentence(prompt), target), _sentence(question), target)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
