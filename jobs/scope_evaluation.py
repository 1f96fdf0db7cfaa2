"""How well a gate decides what a query is about, by cosine alone or verified. Each measure is a list of scores on which
every threshold can be tried: scores that should be in scope, and scores that should not.

CounterFact is in reduced form: its `rephrase_prompt` is mostly a generation prompt, not a published paraphrase.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.evaluation.gate import Scorer
from jobs.evaluation.gate_scores import WRONG, Nearest, nearest, paired
from jobs.scope_domains import Templates
from jobs.scope_pairs import PairSource, fill
from jobs.scope_relations import (
    Record,
    World,
    all_relations,
    counterfact,
    relation_of,
    same_subject_facts,
    subjects_of,
)
from jobs.scope_split import HELD_OUT_RELATIONS
from jobs.scope_statements import Relation, Wordings, draw
from memory_actor.types import Float32Array
from workers.asked_sentence import key_texts

Encode = Callable[[Sequence[str]], Float32Array]
Scores = NDArray[np.float32]
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
THRESHOLDS = np.round(np.arange(0.2, 0.951, 0.01), 2)
_MANY = 2_000


@dataclass(frozen=True, slots=True)
class Bar:
    """One measure's target: the share of errors that may be left, and whether it counts for the choice of threshold."""

    key: str
    errors_max: float
    inside: bool  # errors are misses (else: false alarms)


BARS = (
    Bar("rephrase_1", 0.02, True),
    Bar("front_1", 0.05, True),
    Bar("neighbour_1", 0.005, False),
    Bar("same_subject_1", 0.03, False),
    Bar("rephrase_2000", 0.05, True),
    Bar("front_2000", 0.10, True),
    Bar("neighbour_2000", 0.02, False),
    Bar("same_subject_2000", 0.04, False),
    Bar("held_out_relation", 0.05, True),
    Bar("held_out_relation_other", 0.03, False),
    Bar("held_out_domain", 0.05, True),
    Bar("held_out_domain_other", 0.02, False),
)
PRIVATE_BARS = (
    Bar("private_question", 0.05, True),
    Bar("private_same_subject", 0.02, False),
    Bar("private_same_relation", 0.02, False),
    Bar("private_unrelated", 0.02, False),
)


@dataclass(frozen=True)
class Questions:
    """Validation texts. Pairs are (stored, asked)."""

    records: tuple[Record, ...]
    more_prompts: tuple[str, ...]  # stored beside the records' to make 2,000; nobody asks for them
    fronts: tuple[str, ...]  # one per record
    same_subject: tuple[tuple[str, str], ...]
    same_subject_many: tuple[str, ...]  # another relation of the subject of each record
    held_out_relation: tuple[tuple[str, str], ...]
    held_out_relation_other: tuple[tuple[str, str], ...]
    held_out_domain: tuple[tuple[str, str], ...]
    held_out_domain_other: tuple[tuple[str, str], ...]


def load_questions(data: Path, seed: int = 0) -> Questions:
    """All validation questions from the data folder; the same for every encoder."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    records = counterfact(data / "counterfact" / "val.json")
    train = counterfact(data / "counterfact" / "train.json")
    relations = all_relations(data)
    wordings = Wordings(list(relations.values()))
    inside, outside = _held_out_relations(data, relations, wordings, rng)
    domain_inside, domain_outside = _held_out_domains(rng)
    return Questions(
        records=tuple(records),
        more_prompts=tuple(record.prompt for record in rng.sample(train, max(0, _MANY - len(records)))),
        fronts=tuple(rng.choices(_fronts(data), k=len(records))),
        same_subject=tuple(_same_subject(data, relations, wordings, rng)),
        same_subject_many=tuple(_same_subject_many(data, records, relations, wordings, rng)),
        held_out_relation=tuple(inside),
        held_out_relation_other=tuple(outside),
        held_out_domain=tuple(domain_inside),
        held_out_domain_other=tuple(domain_outside),
    )


class EncodeScorer:
    """The cosines of a bare encoder, queries keyed as served: whole text and asked sentence. Keys are kept."""

    def __init__(self, encode: Encode) -> None:
        """`encode` turns N texts into unit keys (N, D)."""
        self._encode = encode
        self._kept: dict[str, Float32Array] = {}

    def paired(self, queries: Sequence[str], prompts: Sequence[str]) -> Scores:
        return paired(self._queries(queries), self._keys(prompts))

    def nearest(self, queries: Sequence[str], prompts: Sequence[str]) -> Nearest:
        return nearest(self._queries(queries), self._keys(prompts))

    def _queries(self, queries: Sequence[str]) -> list[Float32Array]:
        texts, rows = key_texts(queries)
        keys = self._keys(texts)
        return [keys[of] for of in rows]

    def _keys(self, texts: Sequence[str]) -> Float32Array:
        missing = list(dict.fromkeys(text for text in texts if text not in self._kept))
        if missing:
            self._kept.update(zip(missing, self._encode(missing), strict=True))
        return np.stack([self._kept[text] for text in texts])


def measure(scorer: Scorer, questions: Questions) -> dict[str, Scores]:
    """Scores of every measure of `BARS`. With 2,000 stored, a rephrasing whose nearest fact is wrong scores -1."""
    records = questions.records
    stored = [record.prompt for record in records]
    many = [*stored, *questions.more_prompts]
    rephrased = [record.rephrasing for record in records]
    fronted = [f"{front} {record.rephrasing}" for front, record in zip(questions.fronts, records, strict=True)]
    neighbours = [record.neighbour for record in records]
    mine = [_same_fact(record, many) for record in records]
    stranger = _is_stored_nowhere(records)
    found = {
        "rephrase_1": scorer.paired(rephrased, stored),
        "front_1": scorer.paired(fronted, stored),
        "neighbour_1": scorer.paired(neighbours, stored),
        "rephrase_2000": _right(scorer.nearest(rephrased, many), mine),
        "front_2000": _right(scorer.nearest(fronted, many), mine),
        "neighbour_2000": scorer.nearest(neighbours, many).scores[stranger],
        "same_subject_2000": scorer.nearest(questions.same_subject_many, many).scores,
    }
    pairs = ("held_out_relation", "held_out_relation_other", "held_out_domain", "held_out_domain_other")
    for key, name in (("same_subject_1", "same_subject"), *zip(pairs, pairs, strict=True)):
        texts: Sequence[tuple[str, str]] = getattr(questions, name)
        found[key] = scorer.paired([asked for _, asked in texts], [kept for kept, _ in texts])
    return found


def measure_private(scorer: Scorer, path: Path) -> dict[str, Scores]:
    """Scores of `PRIVATE_BARS` on the test set, all its facts stored together; a wrong nearest fact scores -1."""
    content = json.loads(path.read_bytes())
    triples = content["triples"]
    many = [triple["stored"] for triple in triples]
    own = [[index] for index in range(len(triples))]
    scores = {
        f"private_{name}": scorer.nearest([triple[name] for triple in triples], many).scores
        for name in ("same_subject", "same_relation")
    }
    return {
        "private_question": _right(scorer.nearest([triple["question"] for triple in triples], many), own),
        **scores,
        "private_unrelated": scorer.nearest(content["unrelated"], many).scores,
    }


def errors(scores: dict[str, Scores], threshold: float, bars: Sequence[Bar] = BARS) -> dict[str, float]:
    """Share of errors of every bar's measure at one threshold: misses inside, false alarms outside."""
    return {
        bar.key: float((scores[bar.key] < threshold).mean() if bar.inside else (scores[bar.key] >= threshold).mean())
        for bar in bars
    }


def equal_error_rate(inside: Scores, outside: Scores) -> tuple[float, float]:
    """(rate, threshold) at which as many inside scores are missed as outside scores are let in."""
    order = np.sort(np.unique(np.concatenate([inside, outside])))
    missed = np.searchsorted(np.sort(inside), order) / len(inside)
    false = 1 - np.searchsorted(np.sort(outside), order) / len(outside)
    best = int(np.abs(missed - false).argmin())
    return float((missed[best] + false[best]) / 2), float(order[best])


def choose_threshold(
    scores: dict[str, Scores], thresholds: NDArray[np.floating] = THRESHOLDS
) -> tuple[float, list[dict[str, float]]]:
    """The threshold whose errors, each in units of its target, have the least sum of squares; and the curve."""
    curve = []
    for threshold in thresholds:
        found = errors(scores, float(threshold))
        cost = sum((found[bar.key] / bar.errors_max) ** 2 for bar in BARS)
        curve.append(
            {"threshold": float(threshold), "cost": round(cost, 3), **{k: round(v, 4) for k, v in found.items()}}
        )
    return min(curve, key=lambda point: point["cost"])["threshold"], curve


def summary(scores: dict[str, Scores], threshold: float) -> dict[str, float]:
    """Flat results: both equal error rates, and for every measure the share that is right."""
    rates: dict[str, float] = {}
    for count in ("1", "2000"):
        if f"rephrase_{count}" in scores:
            rate, at = equal_error_rate(scores[f"rephrase_{count}"], scores[f"neighbour_{count}"])
            rates |= {f"eer_{count}": round(rate, 4), f"eer_{count}_threshold": round(at, 3)}
    bars = [bar for bar in (*BARS, *PRIVATE_BARS) if bar.key in scores]
    found = errors(scores, threshold, bars)
    return {
        "threshold": threshold,
        **rates,
        **{bar.key: round(1 - found[bar.key] if bar.inside else found[bar.key], 4) for bar in bars},
    }


def _right(found: Nearest, own: Sequence[Sequence[int]]) -> Scores:
    """The score of each query whose nearest fact is one of its `own`, else -1."""
    right = np.array([int(position) in mine for position, mine in zip(found.positions, own, strict=True)])
    return np.where(right, found.scores, WRONG).astype(np.float32)


def _same_fact(record: Record, prompts: Sequence[str]) -> list[int]:
    """Every stored prompt that is this record's, word for word."""
    return [index for index, prompt in enumerate(prompts) if prompt == record.prompt]


def _is_stored_nowhere(records: Sequence[Record]) -> NDArray[np.bool_]:
    """Which neighbours are about no stored subject: asking for a stored one would rightly be in scope."""
    subjects = {record.subject for record in records}
    pattern = re.compile("|".join(rf"\b{re.escape(subject)}\b" for subject in sorted(subjects, key=len, reverse=True)))
    return np.array([pattern.search(record.neighbour) is None for record in records])


def _fronts(data: Path) -> list[str]:
    """Unrelated sentences that no training text is taken from."""
    lines = (data / "text" / "openstax-us-history.txt").read_text("utf-8").splitlines()
    lines += (data / "text" / "openstax-astronomy.txt").read_text("utf-8").splitlines()
    found = [" ".join(text.split()) for line in lines for text in _SENTENCE.split(line)]
    return [text for text in found if 4 <= len(text.split()) <= 20 and text[:1].isupper()]


def _apart(one: Relation, one_wording: str, other: Relation, other_wording: str, wordings: Wordings) -> bool:
    return not wordings.related(wordings.means(one_wording, one.name), wordings.means(other_wording, other.name))


def _same_subject(
    data: Path, relations: dict[str, Relation], wordings: Wordings, rng: random.Random
) -> list[tuple[str, str]]:
    """Validation subjects that really have several relations: one stored, another asked."""
    pairs = []
    for subject, names in same_subject_facts(data, validation=True).items():
        ordered = sorted(names)
        for _ in range(3):
            first, second = (relations[name] for name in rng.sample(ordered, 2))
            stored = rng.choice(first.prompts)
            asked = rng.choice([*second.prompts, *second.questions])
            if _apart(first, stored, second, asked, wordings):
                pairs.append((fill(stored, subject), fill(asked, subject)))
    return sorted(set(pairs))


def _same_subject_many(
    data: Path, records: Sequence[Record], relations: dict[str, Relation], wordings: Wordings, rng: random.Random
) -> list[str]:
    """For each record, a prompt or question of another relation that its kind of subject can have."""
    find = relation_of(data)
    asked = []
    for record in records:
        name = find(record)
        if name is None:
            continue
        own = relations[name]
        others = [
            relation
            for relation in relations.values()
            if relation.kinds & own.kinds and relation.name != name and relation.rephrasings
        ]
        for _ in range(5):
            other = rng.choice(others)
            wording = rng.choice([*other.prompts, *other.questions])
            if _apart(own, record.prompt.replace(record.subject, "{s}"), other, wording, wordings):
                asked.append(fill(wording, record.subject))
                break
    return asked


def _held_out_relations(
    data: Path, relations: dict[str, Relation], wordings: Wordings, rng: random.Random
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Relations nobody trained on, of subjects nobody trained on: rephrased, and another relation or subject."""
    world = _validation_world(data)
    inside, outside = [], []
    for name in sorted(HELD_OUT_RELATIONS):
        relation = relations[name]
        subjects = world[name]
        for subject in rng.sample(subjects, min(40, len(subjects))):
            wording = draw(relation, rng, stored=True)
            others = [w for w in (*relation.prompts, *relation.questions) if w != wording]
            stored = fill(wording, subject)
            if others:
                inside.append((stored, fill(rng.choice(others), subject)))
            stranger = rng.choice([s for s in subjects if s != subject])
            outside.append((stored, fill(rng.choice([*relation.prompts, *relation.questions]), stranger)))
            other = rng.choice(
                [r for r in relations.values() if r.kinds & relation.kinds and r != relation] or [relation]
            )
            asked = rng.choice([*other.prompts, *other.questions])
            if other is not relation and _apart(relation, wording, other, asked, wordings):
                outside.append((stored, fill(asked, subject)))
    return inside, outside


def _validation_world(data: Path) -> dict[str, list[str]]:
    return {name: sorted(subjects_of(data, name)) for name in HELD_OUT_RELATIONS}


def _held_out_domains(rng: random.Random) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Private facts of domains nobody trained on."""
    templates = Templates()
    source = PairSource(World((), ()), templates, (), held_out=True)
    inside, outside = [], []
    for domain in (domain for domain in templates.domains if domain.held_out):
        for _ in range(60):
            first, second = rng.sample(domain.relations, 2)
            subject, other = templates.subjects(domain, 2, rng)
            wording = draw(first, rng, stored=True)
            target = templates.fill(rng.choice(first.targets), rng)
            stored = fill(wording, subject, target)
            asked = rng.choice([w for w in first.questions if w != wording])
            inside.append((stored, fill(asked, subject)))
            outside.append((stored, fill(rng.choice(first.questions), other)))
            near = source.wordings.related(frozenset({first.name}), frozenset({second.name}))
            if not near:
                outside.append((stored, fill(rng.choice(second.questions), subject)))
    return inside, outside


def as_percent(results: dict[str, Any]) -> dict[str, str]:
    """Results for a table: shares in percent, thresholds as they are."""
    return {key: f"{value:.2f}" if "threshold" in key else f"{100 * value:.1f} %" for key, value in results.items()}
