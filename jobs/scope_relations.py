"""Relations of the world: wordings and subjects from CounterFact, PARAREL and LRE, joined by what they mean.

A CounterFact record names no relation; PARAREL knows its fact (subject, object), and so its relation.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.scope_split import HELD_OUT_RELATIONS, is_validation_subject
from jobs.scope_statements import Relation

RELATIONS_FILE = Path(__file__).with_name("scope_relations.txt")
_LINE = re.compile(r"relation (?P<name>\S+) (?P<kinds>[a-z ]+?)(?: \| near: (?P<near>[^=]*?))? =(?P<questions>.*)")
_SPORT = "person_plays_pro_sport"  # CounterFact's one relation that PARAREL does not list: whose fact it lacks, plays
_REPHRASINGS_MIN = 3  # a rephrasing seen fewer times is one record's accident, not a wording


@dataclass(frozen=True, slots=True)
class Record:
    """One CounterFact record in reduced form."""

    prompt: str
    subject: str
    truth: str
    rephrasing: str
    neighbour: str


def counterfact(path: Path) -> list[Record]:
    """The records of a CounterFact file in reduced form."""
    return [
        Record(
            prompt=record["prompt"],
            subject=record["subject"],
            truth=record["ground_truth"],
            rephrasing=record["rephrase_prompt"],
            neighbour=record["locality_prompt"],
        )
        for record in json.loads(path.read_bytes())
    ]


@dataclass(frozen=True)
class World:
    """All relations with the subjects of one side of the split, and sentences seen in front of rephrasings."""

    relations: tuple[Relation, ...]
    fronts: tuple[str, ...]


def load_world(data: Path) -> World:
    """Relations with training subjects only, without the held-out relations."""
    declared = declared_relations()
    facts = _pararel_facts(data)
    records = counterfact(data / "counterfact" / "train.json")
    kept_out = {record.subject.lower() for record in counterfact(data / "counterfact" / "val.json")}
    prompts, rephrasings, fronts = _counterfact_wordings(records, facts)
    relations = []
    for name in sorted({*_pararel_names(data), *_lre_files(data)} - HELD_OUT_RELATIONS):
        pieces = _pararel_pieces(data, name) if name.startswith("P") else _lre_pieces(_lre_files(data)[name])
        known = pieces.subjects | (_players(records, facts) if name == _SPORT else set())
        subjects = {s for s in known if not is_validation_subject(s) and s.lower() not in kept_out}
        base = declared.get(name, Relation(name, frozenset({name})))
        relation = Relation(
            name=name,
            kinds=base.kinds,
            near=base.near,
            prompts=tuple(sorted({*pieces.prompts, *prompts[name]})),
            rephrasings=tuple(sorted(rephrasings[name])),
            questions=tuple(sorted({*pieces.questions, *base.questions})),
            sentences=tuple(sorted(pieces.sentences)),
            targets=tuple(sorted(pieces.targets)),
            subjects=tuple(sorted(subjects)),
        )
        if relation.prompts and len(relation.subjects) >= 8:
            relations.append(relation)
    return World(tuple(relations), tuple(sorted(fronts)))


def same_subject_facts(data: Path, *, validation: bool) -> dict[str, set[str]]:
    """Subjects of PARAREL and LRE that occur with several relations, on one side of the split: subject to relations."""
    found: dict[str, set[str]] = defaultdict(set)
    for (subject, _), names in _pararel_facts(data).items():
        found[subject] |= names
    for name, path in _lre_files(data).items():
        for subject in _lre_pieces(path).subjects:
            found[subject].add(name)
    kept_out = {record.subject.lower() for record in counterfact(data / "counterfact" / "val.json")}
    return {
        subject: names
        for subject, names in sorted(found.items())
        if len(names) > 1 and (is_validation_subject(subject) or subject.lower() in kept_out) == validation
    }


def all_relations(data: Path) -> dict[str, Relation]:
    """Every relation by name, held-out ones too, with all its wordings and no subjects."""
    declared = declared_relations()
    prompts, rephrasings, _ = _counterfact_wordings(
        counterfact(data / "counterfact" / "train.json"), _pararel_facts(data)
    )
    files = _lre_files(data)
    result = {}
    for name in sorted({*_pararel_names(data), *files}):
        pieces = _pararel_pieces(data, name) if name.startswith("P") else _lre_pieces(files[name])
        base = declared.get(name, Relation(name, frozenset({name})))
        result[name] = Relation(
            name=name,
            kinds=base.kinds,
            near=base.near,
            prompts=tuple(sorted({*pieces.prompts, *prompts[name]})),
            rephrasings=tuple(sorted(rephrasings[name])),
            questions=tuple(sorted({*pieces.questions, *base.questions})),
        )
    return result


def subjects_of(data: Path, name: str) -> set[str]:
    """Every subject of one relation."""
    return (_pararel_pieces(data, name) if name.startswith("P") else _lre_pieces(_lre_files(data)[name])).subjects


def relation_of(data: Path) -> Callable[[Record], str | None]:
    """A function from a CounterFact record to its relation: the one that has its fact and its wording."""
    facts = _pararel_facts(data)
    prompts, _, _ = _counterfact_wordings(counterfact(data / "counterfact" / "train.json"), facts)

    def find(record: Record) -> str | None:
        wording = record.prompt.replace(record.subject, "{s}")
        names = sorted(_relations_of(record, facts))
        return next((name for name in names if wording in prompts[name]), None)

    return find


@dataclass(frozen=True)
class _Pieces:
    """What one file says of a relation."""

    prompts: set[str]
    questions: set[str]
    sentences: set[str]
    subjects: set[str]
    targets: set[str]


def declared_relations() -> dict[str, Relation]:
    """What scope_relations.txt says of each relation, by name: kinds, near relations and questions; no prompts."""
    found = {}
    for line in RELATIONS_FILE.read_text(encoding="utf-8").splitlines():
        if match := _LINE.fullmatch(line.strip()):
            questions = tuple(part.strip() for part in match["questions"].split(" / ") if part.strip())
            found[match["name"]] = Relation(
                match["name"],
                frozenset(match["kinds"].split()),
                frozenset((match["near"] or "").split()),
                questions=questions,
            )
    return found


def _pararel_names(data: Path) -> list[str]:
    return sorted(path.stem for path in (data / "pararel" / "pattern_data" / "graphs_json").glob("P*.jsonl"))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _pararel_facts(data: Path) -> dict[tuple[str, str], set[str]]:
    facts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in _pararel_names(data):
        for fact in _lines(data / "pararel" / "trex_lms_vocab" / f"{name}.jsonl"):
            facts[fact["sub_label"], fact["obj_label"]].add(name)
    return facts


def _pararel_pieces(data: Path, name: str) -> _Pieces:
    prompts, sentences = set(), set()
    for line in _lines(data / "pararel" / "pattern_data" / "graphs_json" / f"{name}.jsonl"):
        pattern = re.sub(r"\s+([.,])", r"\1", line["pattern"].replace("[X]", "{s}").replace("[Y]", "{t}").strip())
        if re.search(r"\{t\}\W*$", pattern) and "{s}" in pattern.split("{t}")[0]:
            prompts.add(pattern.split("{t}")[0].strip())
        sentences.add(pattern)
    facts = list(_lines(data / "pararel" / "trex_lms_vocab" / f"{name}.jsonl"))
    return _Pieces(
        prompts, set(), sentences, {fact["sub_label"] for fact in facts}, {fact["obj_label"] for fact in facts}
    )


def _lre_files(data: Path) -> dict[str, Path]:
    folders = ("factual", "commonsense", "linguistic")
    return {path.stem: path for folder in folders for path in (data / "lre_relations" / folder).glob("*.json")}


def _lre_pieces(path: Path) -> _Pieces:
    content = json.loads(path.read_bytes())
    templates = [
        template.replace("{}", "{s}") for template in content["prompt_templates"] + content["prompt_templates_zs"]
    ]
    questions = {template.split("?")[0] + "?" for template in templates if "?" in template}
    sentences = {f"{template} {{t}}." for template in content["prompt_templates"]}
    subjects = {sample["subject"] for sample in content["samples"]}
    return _Pieces(
        set(templates),
        questions,
        {s.replace("{}", "{s}") for s in sentences},
        subjects,
        {s["object"] for s in content["samples"]},
    )


def _relations_of(record: Record, facts: dict[tuple[str, str], set[str]]) -> set[str]:
    """The relations a record's fact has in PARAREL."""
    return facts.get((record.subject, record.truth)) or {_SPORT}


def _players(records: Iterable[Record], facts: dict[tuple[str, str], set[str]]) -> set[str]:
    return {record.subject for record in records if _relations_of(record, facts) == {_SPORT}}


def _counterfact_wordings(
    records: Iterable[Record], facts: dict[tuple[str, str], set[str]]
) -> tuple[dict[str, set[str]], dict[str, set[str]], set[str]]:
    """Prompts and rephrasings by relation, and what stood in front of rephrasings, from training records."""
    records = list(records)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        wording = record.prompt.replace(record.subject, "{s}")
        votes[wording].update(_relations_of(record, facts))
    prompts: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    fronts: set[str] = set()
    for wording, names in votes.items():
        for name, count in names.items():
            if count >= 0.15 * names.total():
                prompts[name].add(wording)
    for record in records:
        front, wording = split_front(record.rephrasing, record.subject)
        if len(front.split()) >= 3:
            fronts.add(front)
        for name in _relations_of(record, facts):
            if record.prompt.replace(record.subject, "{s}") in prompts[name]:
                counts[name][wording] += 1
    rephrasings = {name: {w for w, n in found.items() if n >= _REPHRASINGS_MIN} for name, found in counts.items()}
    return prompts, defaultdict(set, rephrasings), fronts


def split_front(rephrasing: str, subject: str) -> tuple[str, str]:
    """The sentences in front of the one that names the subject, and that one with `{s}` for the subject."""
    start = rephrasing.rfind(subject)
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\]]*\s+", rephrasing[:start])]
    cut = ends[-1] if ends else 0
    return rephrasing[:cut].strip(), rephrasing[cut:].replace(subject, "{s}")
