"""Training batches for the scope encoder: blocks of subjects by relations by views, so that every text is compared
with its own rephrasing, with the same relation of other subjects, with other relations of the same subject, and with
strangers.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.scope_domains import Domain, Templates
from jobs.scope_relations import World, load_world
from jobs.scope_statements import Relation, Statement, Wordings, draw, dress

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_FRONTS_MAX = 12_000


@dataclass(frozen=True, slots=True)
class Mix:
    """What a batch is made of. A block holds subjects x relations x 2 texts."""

    world_blocks: int = 5  # of 6 subjects x 2 relations
    domain_blocks: int = 7  # of 4 subjects x 2 relations
    common_blocks: int = 1  # attributes and deeds, of 4 subjects x 2 relations
    strangers: int = 4  # sentences about nothing that is stored
    front_share: float = 0.1  # of asked texts: unrelated sentence in front (queries are split before encoding)


class PairSource:
    """Draws batches of statements. The same seed gives the same batches."""

    def __init__(self, world: World, templates: Templates, fronts: Sequence[str], *, held_out: bool = False) -> None:
        self.templates = templates
        self.fronts = tuple(fronts)
        self._world = world.relations
        self._domains = [domain for domain in templates.domains if domain.held_out == held_out]
        self.wordings = Wordings([*self._world, *templates.all_relations()])
        self._by_kind: dict[str, list[Relation]] = defaultdict(list)
        for relation in self._world:
            for kind in sorted(relation.kinds):
                self._by_kind[kind].append(relation)
        self._companions = {relation.name: _sharing_subjects(relation, self._world) for relation in self._world}
        # CounterFact's relations are what most of its users ask; LRE adds many small ones, of which those with the same
        # subjects (mother and father, inside and outside) are the hardest to tell apart.
        self._weights = [
            3.0 if relation.rephrasings else 2.0 if self._companions[relation.name] else 1.0 for relation in self._world
        ]
        self._similar = {relation.name: _by_shared_word(relation.subjects) for relation in self._world}

    @classmethod
    def load(cls, data: Path) -> PairSource:
        """From the data folder: CounterFact-train, PARAREL and LRE; sentences in front also from CREAK and text."""
        world = load_world(data)
        templates = Templates()
        templates.add_names(_names_of(world))
        return cls(world, templates, [*world.fronts, *sentences_of(data)])

    def batches(self, seed: int, mix: Mix = Mix()) -> Iterator[list[Statement]]:
        """Endless batches of about 240 statements."""
        rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        while True:
            yield self.batch(rng, mix)

    def batch(self, rng: random.Random, mix: Mix = Mix()) -> list[Statement]:
        statements: list[Statement] = []
        for _ in range(mix.world_blocks):
            statements += self._world_block(rng, mix)
        for _ in range(mix.domain_blocks):
            domain = rng.choice(self._domains)
            relations = rng.sample(domain.relations, 2)
            if rng.random() < 0.25:
                relations[1] = rng.choice(self.templates.common)
            statements += self._block(self.templates.subjects(domain, 4, rng), relations, rng, mix)
        for _ in range(mix.common_blocks):
            statements += self._block(self._any_subjects(rng), rng.sample(self.templates.common, 2), rng, mix)
        for index in range(mix.strangers if self.fronts else 0):
            text = rng.choice(self.fronts)
            statements.append(Statement(text, f"\0{index}", "", frozenset()))
        return statements

    def _world_block(self, rng: random.Random, mix: Mix) -> list[Statement]:
        (first,) = rng.choices(self._world, self._weights)
        others = [r for kind in sorted(first.kinds) for r in self._by_kind[kind] if r.name != first.name]
        companions = self._companions[first.name]
        chance = rng.random()
        if companions and chance < 0.4:
            second = rng.choice(companions)
        elif others and chance < 0.8:
            second = rng.choice(others)
        elif "person" in first.kinds and chance < 0.95:
            second = rng.choice(
                [r for d in self._domains if d.name == "people" for r in d.relations] or self.templates.common
            )
        else:
            second = rng.choice(self.templates.common)
        count = min(6, len(first.subjects))
        subjects = rng.sample(first.subjects, count)
        if rng.random() < 0.4:
            alike = self._similar[first.name]
            if alike:
                group = rng.choice(alike)
                subjects = [*rng.sample(group, min(3, len(group))), *subjects]
                subjects = list(dict.fromkeys(subjects))[:count]
        return self._block(subjects, [first, second], rng, mix)

    def _any_subjects(self, rng: random.Random) -> list[str]:
        large = [relation for relation in self._world if len(relation.subjects) >= 4]
        if rng.random() < 0.4 and large:
            return rng.sample(rng.choice(large).subjects, 4)
        return self.templates.subjects(rng.choice(self._domains), 4, rng)

    def _block(
        self, subjects: Sequence[str], relations: Sequence[Relation], rng: random.Random, mix: Mix
    ) -> list[Statement]:
        """For every subject and relation one text as it is stored, and one in other words as it is asked."""
        statements = []
        for subject in subjects:
            for relation in relations:
                stored = draw(relation, rng, stored=True)
                asked = draw(relation, rng, stored=False)
                for _ in range(3):
                    if asked != stored:
                        break
                    asked = draw(relation, rng, stored=False)
                statements.append(self._statement(stored, subject, relation, rng))
                plain = self._statement(asked, subject, relation, rng)
                statements.append(replace(plain, text=dress(plain.text, rng, self.fronts, mix.front_share)))
        return statements

    def _statement(self, wording: str, subject: str, relation: Relation, rng: random.Random) -> Statement:
        text = fill(wording, subject, self.templates.fill(rng.choice(relation.targets or ("",)), rng))
        return Statement(text, subject, relation.name, self.wordings.means(wording, relation.name))


def fill(wording: str, subject: str, target: str = "") -> str:
    """A wording about `subject`; its first letter is made a capital."""
    text = wording.replace("{s}", subject).replace("{t}", target)
    return text[:1].upper() + text[1:]


def sentences_of(data: Path) -> list[str]:
    """Sentences about anything, 4 to 16 words long: CREAK's claims and two textbooks, evenly spaced."""
    claims = [json.loads(line)["sentence"] for line in (data / "creak" / "train.json").read_text("utf-8").splitlines()]
    prose: list[str] = []
    for name in ("openstax-psychology.txt", "openstax-world-history.txt"):
        for paragraph in (data / "text" / name).read_text("utf-8").splitlines():
            prose += _SENTENCE.split(paragraph)
    found = [
        " ".join(text.split()) for text in [*claims, *prose] if 4 <= len(text.split()) <= 16 and text[:1].isupper()
    ]
    return found[:: max(1, len(found) // _FRONTS_MAX)]


def _names_of(world: World) -> dict[str, list[str]]:
    """Names for the slots of private templates, so that thousands of names are told apart and not a hundred."""
    people = sorted(
        {s for r in world.relations if r.name in {"P19", "P20", "P27", "P103", "person_father"} for s in r.subjects}
    )
    full = [name.split() for name in people if 2 <= len(name.split()) <= 3]
    places = sorted(
        {s for r in world.relations if r.name in {"P131", "P36", "P37"} for s in r.subjects if len(s.split()) <= 2}
    )
    works = sorted({s for r in world.relations if r.name in {"P364", "P449", "P176"} for s in r.subjects})
    return {
        "first": sorted({words[0] for words in full if words[0].isalpha()}),
        "last": sorted({words[-1] for words in full if words[-1].isalpha()}),
        "city": places,
        "code": sorted({word for name in works for word in name.split() if word.isalpha() and len(word) > 3}),
    }


def _sharing_subjects(relation: Relation, relations: Sequence[Relation]) -> list[Relation]:
    """Relations that a fifth of these subjects have as well: their near misses are real questions."""
    own = set(relation.subjects)
    return [
        other
        for other in relations
        if other.name != relation.name
        and other.name not in relation.near
        and relation.name not in other.near
        and len(own & set(other.subjects)) >= 0.2 * len(own)
    ]


def _by_shared_word(subjects: Sequence[str]) -> list[list[str]]:
    """Groups of at least three subjects that share their first or their last word."""
    groups: dict[str, list[str]] = defaultdict(list)
    for subject in subjects:
        words = subject.lower().split()
        if len(words) > 1:
            groups["^" + words[0]].append(subject)
            groups[words[-1] + "$"].append(subject)
    return [group for _, group in sorted(groups.items()) if len(group) >= 3]


def domain_named(templates: Templates, name: str) -> Domain:
    """The domain of that name."""
    (found,) = (domain for domain in templates.domains if domain.name == name)
    return found
