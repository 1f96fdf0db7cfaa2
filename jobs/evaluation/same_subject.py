"""Questions about another relation of a CounterFact subject: what a memory must not answer from the edit.

A record names no relation, but its prompt is one of CounterFact's templates, and those are bundled by relation. Kinds
of subject, near relations and questions are those of jobs/scope_relations.txt.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.evaluation.records import EditRecord
from jobs.scope_pairs import fill
from jobs.scope_relations import all_relations, counterfact, declared_relations
from jobs.scope_statements import Relation, Wordings, normal

TEMPLATES_FILE = Path(__file__).with_name("counterfact_templates.json")
_CLOZE_WORDS_MIN = 2  # beside the subject: "{s}, in" asks for nothing in particular
LICENCE = (  # of CounterFact; it asks to be handed on with what is taken from there
    "MIT License. Copyright (c) 2022 Kevin Meng. Permission is hereby granted, free of charge, to any person obtaining "
    'a copy of this software and associated documentation files (the "Software"), to deal in the Software without '
    "restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, "
    "sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, "
    "subject to the following conditions: The above copyright notice and this permission notice shall be included in "
    'all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY '
    "KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A "
    "PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY "
    "CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR "
    "IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."
)


@dataclass(frozen=True)
class _World:
    """All declared relations, with CounterFact's wordings where it has the relation."""

    relations: dict[str, Relation]
    wordings: Wordings
    by_prompt: dict[str, frozenset[str]]


def relations_of(record: EditRecord) -> frozenset[str]:
    """Names of the relations that the record's prompt can stand for; empty if it is none of CounterFact's templates."""
    return _world().by_prompt.get(normal(_wording(record)), frozenset())


def other_relation(record: EditRecord, rng: random.Random) -> str | None:
    """A question or cloze about the record's subject and a relation that is surely another than the record's.

    Neither near it nor one that shares its wording, and of a kind that fits the subject. The same state of `rng` gives
    the same text. None if the relation is unknown.
    """
    names = relations_of(record)
    if not names:
        return None
    for other in _fitting(names, rng):
        forms = [_apart(record, other, wordings) for wordings in (other.questions, _clozes(other))]
        if forms := [form for form in forms if form]:
            return fill(rng.choice(rng.choice(forms)), record.subject)
    return None


def _wording(record: EditRecord) -> str:
    return record.prompt.replace(record.subject, "{s}")


def _clozes(relation: Relation) -> list[str]:
    """Its prompts that ask for something."""
    beside = {prompt: re.findall(r"\w+", prompt.replace("{s}", " ")) for prompt in relation.prompts}
    return [prompt for prompt, words in beside.items() if len(words) >= _CLOZE_WORDS_MIN]


def _fitting(names: frozenset[str], rng: random.Random) -> list[Relation]:
    """Other relations that the subjects of these ones can have; first those that fit most of their kinds."""
    relations = _world().relations
    kinds = frozenset[str]().union(*(relations[name].kinds for name in names))
    others = [other for name, other in sorted(relations.items()) if name not in names and kinds & other.kinds]
    rng.shuffle(others)
    return sorted(others, key=lambda other: -len(kinds & other.kinds))


def _apart(record: EditRecord, other: Relation, wordings: Sequence[str]) -> list[str]:
    """The wordings of another relation that cannot mean the record's either."""
    known = _world().wordings
    (own, *_) = relations_of(record)
    means = known.means(_wording(record), own)
    return [wording for wording in wordings if not known.related(means, known.means(wording, other.name))]


@cache
def _world() -> _World:
    bundled: dict[str, dict[str, list[str]]] = json.loads(TEMPLATES_FILE.read_bytes())["relations"]
    relations = declared_relations()
    by_prompt: dict[str, frozenset[str]] = {}
    for name, known in bundled.items():
        prompts, rephrasings = tuple(known["prompts"]), tuple(known["rephrasings"])
        relations[name] = replace(relations[name], prompts=prompts, rephrasings=rephrasings)
        for prompt in prompts:
            by_prompt[normal(prompt)] = by_prompt.get(normal(prompt), frozenset()) | {name}
    return _World(relations, Wordings(list(relations.values())), by_prompt)


def templates_of(data: Path) -> dict[str, Any]:
    """What `TEMPLATES_FILE` holds, made from a folder with CounterFact's training records, PARAREL and LRE."""
    seen = {record.prompt.replace(record.subject, "{s}") for record in counterfact(data / "counterfact" / "train.json")}
    relations = {
        name: {"prompts": prompts, "rephrasings": list(relation.rephrasings)}
        for name, relation in all_relations(data).items()
        if relation.rephrasings and (prompts := [prompt for prompt in relation.prompts if prompt in seen])
    }
    return {
        "about": "Prompt templates and generation prompts of CounterFact by relation; {s} is the subject. Derived from "
        "the CounterFact training records by `python -m jobs.evaluation.same_subject DATA`.",
        "source": "CounterFact: Meng et al., Locating and Editing Factual Associations in GPT, 2022",
        "licence": LICENCE,
        "relations": relations,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write `TEMPLATES_FILE` again from a data folder."""
    parser = argparse.ArgumentParser(prog="jobs.evaluation.same_subject", description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder with counterfact/, pararel/ and lre_relations/")
    content = templates_of(parser.parse_args(argv).data)
    TEMPLATES_FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
