"""What is asked about one CounterFact edit once it is in memory, and which of it is a fair question there."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jobs.evaluation.recalls import evenly
from jobs.evaluation.records import EditRecord
from jobs.evaluation.same_subject import other_relation

_WORD = re.compile(r"\w+")


class Kind(StrEnum):
    """The paper's kinds of prompt, a rephrasing with an unrelated sentence in front, and another relation asked."""

    EDIT = "edit"
    REPHRASE = "rephrase"
    DISTRACTOR = "rephrase_distractor"
    NEIGHBOUR = "neighbour"
    SAME_SUBJECT = "same_subject"


@dataclass(frozen=True, slots=True)
class Probe:
    """One query about the edit at position `index` of the memory. The decoder should find `wanted` likelier.

    A question about another relation of the same subject has no known answer: it only asks the gate.
    """

    case_id: int
    index: int
    kind: Kind
    query: str
    wanted: str = ""
    unwanted: str = ""

    @property
    def decoded(self) -> bool:
        return self.kind is not Kind.SAME_SUBJECT


@dataclass(frozen=True, slots=True)
class Episode:
    """Edits that are in memory together, in writing order, and the positions of those that are asked for."""

    records: tuple[EditRecord, ...]
    asked: tuple[int, ...]

    @classmethod
    def split(
        cls, records: Sequence[EditRecord], limit: int | None, in_memory: int, company: Sequence[EditRecord] = ()
    ) -> list[Episode]:
        """The first `limit` records each alone (in_memory 1), or the first `in_memory` together.

        Of those together `limit` are asked for, spread evenly; no limit asks for all. Where there are fewer records,
        `company` fills the memory up and is not asked for.
        """
        if in_memory == 1:
            return [cls((record,), (0,)) for record in records[:limit]]
        own = tuple(records[:in_memory])
        live = (*own, *company[: in_memory - len(own)])
        return [cls(live, tuple(evenly(len(own), len(own) if limit is None else limit)))]


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Probes of one episode, and how many others were left out because they truly ask for another live edit."""

    probes: tuple[Probe, ...]
    neighbours_excluded: int
    same_subject_excluded: int


class LiveEdits:
    """The edits that are in memory at the same time, to tell whether a query touches another one than its own."""

    def __init__(self, records: Sequence[EditRecord]) -> None:
        self._prompts: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
        self._subjects: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
        for index, record in enumerate(records):
            self._prompts[_words(record.prompt)].add(index)
            self._subjects[_words(record.subject)].add(index)
        self._longest = max((len(words) for words in self._subjects), default=0)

    def touches_another(self, query: str, own: int) -> bool:
        """Whether `query` is the prompt of, or names the subject of, another edit than the one at position `own`.

        Words are compared without case and punctuation. Cost: words of the query times words of the longest subject.
        """
        words = _words(query)
        touched = set(self._prompts.get(words, ()))
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                touched |= self._subjects.get(words[start:end], set())
        return bool(touched - {own})


def draw_probes(episode: Episode, seed: int) -> ProbeSet:
    """Every fair question about the asked edits of an episode. The same seed draws the same."""
    live = LiveEdits(episode.records)
    probes: list[Probe] = []
    excluded = {Kind.NEIGHBOUR: 0, Kind.SAME_SUBJECT: 0}
    for index in episode.asked:
        record = episode.records[index]
        rng = random.Random(f"{seed}:{record.case_id}")  # noqa: S311 - reproducible, not secret
        for probe in _all_probes(record, index, rng):
            if probe.kind in excluded and live.touches_another(probe.query, index):
                excluded[probe.kind] += 1
            else:
                probes.append(probe)
    return ProbeSet(tuple(probes), excluded[Kind.NEIGHBOUR], excluded[Kind.SAME_SUBJECT])


def _all_probes(record: EditRecord, index: int, rng: random.Random) -> Iterator[Probe]:
    new, true = record.target_new, record.target_true
    yield Probe(record.case_id, index, Kind.EDIT, record.prompt, new, true)
    for query in record.rephrasings:
        yield Probe(record.case_id, index, Kind.REPHRASE, query, new, true)
    for query in record.rephrasings_distractor:
        yield Probe(record.case_id, index, Kind.DISTRACTOR, query, new, true)
    for query, answer in zip(record.neighbours, record.neighbours_true, strict=True):
        yield Probe(record.case_id, index, Kind.NEIGHBOUR, query, answer, new)
    other = other_relation(record, rng)
    if other is not None:
        yield Probe(record.case_id, index, Kind.SAME_SUBJECT, other)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))
