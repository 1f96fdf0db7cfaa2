"""Private facts to train on: templates over many domains, filled with made-up names, from a text file."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from jobs.scope_statements import Relation

DOMAINS_FILE = Path(__file__).with_name("scope_domains.txt")
_SLOT = re.compile(r"\{(\w+)\}")
_ATTRIBUTE_QUESTIONS = (
    "What is the {a} of {s}?",
    "What is {s}'s {a}?",
    "What's the {a} of {s}?",
    "Do you remember the {a} of {s}?",
    "Which {a} does {s} have?",
    "Tell me {s}'s {a}.",
    "I need the {a} of {s}.",
)
_ATTRIBUTE_PROMPTS = ("The {a} of {s} is", "{s}'s {a} is", "The {a} of {s}:", "{s} has the {a}")
_ATTRIBUTE_SENTENCES = ("The {a} of {s} is {t}.", "{s}'s {a} is {t}.", "{s} has the {a} {t}.")
_ALSO = {  # how else one asks for an attribute
    "name": ("called",),
    "age": ("how old",),
    "weight": ("how heavy", "weigh"),
    "price": ("how much",),
    "length": ("how long",),
    "height": ("how tall", "how high"),
    "owner": ("belong", "own", "whose"),
    "top speed": ("how fast", "how quick"),
    "area": ("how large", "square"),
    "maintainer": ("maintain",),
    "director": ("in charge", "runs", "heads", "lead", "responsible"),
    "profession": ("for a living", "work as", "works as", "job"),
    "employer": ("work for", "works for"),
    "native language": ("speak", "language"),
    "language": ("speak",),
    "nationality": ("citizen",),
    "brand": ("made", "built", "produce", "company"),
    "founder": ("founded",),
    "travel time": ("how long",),
    "favourite food": ("like to eat",),
    "favourite drink": ("like to drink",),
    "vet": ("treats",),
    "doctor": ("treats",),
    "status": ("how is",),
    "fear": ("afraid", "scare"),
    "number of employees": ("how many people", "how many employees"),
    "number of seats": ("how many",),
    "next step": ("prepare",),
    "side effect": ("ill",),
    "purpose": ("goal", "about"),
    "origin": ("come from", "from"),
    "hobby": ("free time",),
    "cause": ("why",),
}
_DEED_QUESTIONS = ("Who {v} {s}?", "By whom is {s} {p}?", "Which person {v} {s}?", "Who is it that {v} {s}?")
_DEED_SENTENCES = ("{s} is {p} by {t}.", "{t} {v} {s}.", "It is {t} who {v} {s}.")


@dataclass(frozen=True, slots=True)
class Domain:
    """Subjects of one kind, as patterns with slots, and the relations one can store about them."""

    name: str
    patterns: tuple[str, ...]
    relations: tuple[Relation, ...]
    held_out: bool


class Templates:
    """The parsed file: domains, attributes and deeds, and the slots that names are drawn from."""

    def __init__(self, path: Path = DOMAINS_FILE) -> None:
        self.slots: dict[str, tuple[str, ...]] = {}
        self.domains: list[Domain] = []
        self.common: tuple[Relation, ...] = ()  # attributes and deeds: of any subject
        self._more: dict[str, list[str]] = {}
        current: tuple[str, tuple[str, ...], bool] | None = None
        relations: list[Relation] = []
        for line in [*path.read_text(encoding="utf-8").splitlines(), "domain end | end"]:
            head, _, rest = line.strip().partition(" ")
            if not head or head == "#":
                continue
            if head == "slot":
                name, _, values = rest.partition(" = ")
                self.slots[name] = tuple(values.split(" / "))
            elif head in {"attributes", "deeds"}:
                make = _attribute if head == "attributes" else _deed
                self.common += tuple(make(words.split("|")) for words in rest.removeprefix("= ").split(" / "))
            elif head == "domain":
                if current is not None:
                    self.domains.append(Domain(current[0], current[1], tuple(relations), current[2]))
                title, _, patterns = rest.partition(" | ")
                current = (title.removeprefix("held out "), tuple(patterns.split(" / ")), title.startswith("held out "))
                relations = []
            else:
                if current is None:
                    raise ValueError(f"{path}: a relation before the first domain: {line!r}")
                relations.append(_relation(current[0], line.strip(), self.slots))

    def add_names(self, names: dict[str, list[str]]) -> None:
        """More values for some slots; one draw in two still comes from the file."""
        self._more = {slot: values for slot, values in names.items() if values}

    def _draw(self, slot: str, rng: random.Random) -> str:
        if slot in self._more and rng.random() < 0.5:
            return rng.choice(self._more[slot])
        return rng.choice(self.slots[slot])

    def fill(self, pattern: str, rng: random.Random) -> str:
        """`pattern` with every slot replaced by one of its values, and the slots of these."""
        while _SLOT.search(pattern):
            pattern = _SLOT.sub(lambda match: self._draw(match[1], rng), pattern)
        return pattern

    def subjects(self, domain: Domain, count: int, rng: random.Random) -> list[str]:
        """`count` different subjects; half of the time they differ in one slot only, so they are hard to tell apart."""
        base = self._half_filled(rng.choice(domain.patterns), rng) if rng.random() < 0.5 else None
        found: dict[str, None] = {}
        for attempt in range(20 * count):
            alike = base is not None and attempt < 10 * count
            found.setdefault(self.fill(base if alike and base is not None else rng.choice(domain.patterns), rng))
            if len(found) == count:
                break
        return list(found)

    def _half_filled(self, pattern: str, rng: random.Random) -> str:
        """`pattern` with all its slots but one replaced."""
        places = list(_SLOT.finditer(pattern))
        for match in reversed(rng.sample(places, max(0, len(places) - 1))):
            pattern = pattern.replace(match[0], self._draw(match[1], rng), 1)
        return pattern

    def all_relations(self) -> list[Relation]:
        return [*self.common, *(relation for domain in self.domains for relation in domain.relations)]


def _relation(domain: str, line: str, slots: dict[str, tuple[str, ...]]) -> Relation:
    """`name : target = wording / wording`; a sentence that ends in its target is a prompt as well."""
    name, rest = line.split(" : ", 1)
    target, wordings = rest.split(" = ", 1)
    texts = wordings.split(" / ")
    sentences = tuple(text for text in texts if "{t}" in text)
    return Relation(
        name=f"{domain}.{name}",
        kinds=frozenset({domain}),
        prompts=tuple(text.split(" {t}")[0] for text in sentences if re.search(r"\{s\}.* \{t\}\W*$", text)),
        questions=tuple(text for text in texts if "{t}" not in text),
        sentences=sentences,
        targets=slots[target],
    )


def _attribute(words: list[str]) -> Relation:
    def with_words(forms: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(form.replace("{a}", word) for form in forms for word in words)

    return Relation(
        name=f"attribute.{words[0]}",
        kinds=frozenset({"any"}),
        prompts=with_words(_ATTRIBUTE_PROMPTS),
        questions=with_words(_ATTRIBUTE_QUESTIONS),
        sentences=with_words(_ATTRIBUTE_SENTENCES),
        targets=("{number}", "{who}", "{what}", "{where}", "{when}", "{digits}", "{code}"),
        words=(*words, *_ALSO.get(words[0], ())),
    )


def _deed(words: list[str]) -> Relation:
    present, participle = words

    def with_words(forms: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(form.replace("{v}", present).replace("{p}", participle) for form in forms)

    return Relation(
        name=f"deed.{present}",
        kinds=frozenset({"any"}),
        prompts=with_words(("{s} is {p} by", "The person who {v} {s} is")),
        questions=with_words(_DEED_QUESTIONS),
        sentences=with_words(_DEED_SENTENCES),
        targets=("{who}",),
        words=(present, participle),
    )
