"""CounterFact: one edit at a time (the paper's Table 2), or many live together. Likelihoods, and what is really said.

The paper's measures, on the same records for every row: the new answer is likelier than the true one for the edit's
prompt and its rephrasings, the true one for its neighbours; means per record, then over records. Beside them: whether
the generated text contains the answer, whether a neighbour's output changed at all, and what the gate let in. The gate
sees the query only, and all candidate answers of a query are scored under one conditioning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from jobs.evaluation.asks import Answer, Ask
from jobs.evaluation.fine_tuning import FineTuner
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import (
    AllFacts,
    EditedMemory,
    LarimarMemory,
    NearestFact,
    Recollection,
    Unedited,
    as_ask,
)
from jobs.evaluation.outcome import Figure, Outcome
from jobs.evaluation.paper_memory import PaperMemory
from jobs.evaluation.probes import Episode, Kind, Probe, ProbeSet, draw_probes
from jobs.evaluation.recalls import encode_ahead, figures
from jobs.evaluation.scoring import Mark, by_record, edit_figures
from workers.ports import AnswerMode

NAME = "counterfact"
TOKENS_MAX = 10  # generated per prompt; targets have one to five
FINE_TUNED_MAX = 40  # records that the decoder is tuned on, one after the other
UNGATED = ("unedited", "all_facts")  # these rows treat every query alike

Base = Mapping[Probe, Answer]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: what it recalled for each probe (None: it has no gate), and what the decoder answered."""

    name: str
    probes: Sequence[Probe]
    recollections: Sequence[Recollection | None]
    answers: Sequence[Answer | None]


def run(lab: Lab) -> Outcome:
    """`in_memory` 1: each edit alone in memory; more: so many live at once. `limit` edits are asked for."""
    records = lab.data.records
    company = lab.data.edits(lab.in_memory)[len(records) :]
    episodes = Episode.split(records, lab.limit, lab.in_memory, company)
    drawn = [draw_probes(episode, lab.seed) for episode in episodes]
    probes = [probe for part in drawn for probe in part.probes]
    facts = [record.fact() for episode in episodes for record in episode.records]
    encode_ahead(lab, facts, [probe.query for probe in probes])
    recalled = {memory.name: _recall(lab, memory, episodes, drawn) for memory in _memories(lab)}
    base, rows = _answer(lab, probes, recalled)
    if lab.rows == "all" and lab.in_memory == 1:
        rows.append(_fine_tune(lab, episodes, drawn))
    outcome = Outcome(NAME, _counts(episodes, drawn))
    for row in rows:
        _report(row, base, outcome)
    right = [(probe.case_id, float(Mark.of(probe, None, answer, None).success or 0)) for probe, answer in base.items()]
    if right:
        outcome.summary |= figures(f"{NAME}.base_neighbourhood_success", by_record(right))
    return outcome


def _memories(lab: Lab) -> Iterator[EditedMemory]:
    yield LarimarMemory(lab)
    if lab.rows == "all":
        yield Unedited(lab)
        yield NearestFact(lab)
        yield PaperMemory(lab)
        if lab.in_memory == 1:
            yield AllFacts(lab)


def _recall(
    lab: Lab, memory: EditedMemory, episodes: Sequence[Episode], drawn: Sequence[ProbeSet]
) -> list[Recollection]:
    """Recollections of all probes, in order: each episode is written into the emptied memory and asked for."""
    found: list[Recollection] = []
    with lab.progress(f"{NAME}: {memory.name} recalls", len(episodes)) as advance:
        for episode, part in zip(episodes, drawn, strict=True):
            memory.clear()
            memory.write([record.fact() for record in episode.records])
            found += memory.recall([probe.query for probe in part.probes])
            advance(1)
    memory.close()
    return found


def _answer(
    lab: Lab, probes: Sequence[Probe], recalled: Mapping[str, Sequence[Recollection]]
) -> tuple[Base, list[Row]]:
    """The unedited model's answers to the neighbours, and every row's to all probes. Equal asks are asked once."""
    neighbours = [probe for probe in probes if probe.kind is Kind.NEIGHBOUR]
    decoded = [index for index, probe in enumerate(probes) if probe.decoded]
    asks = [plain_ask(probe.query, probe.wanted, probe.unwanted) for probe in neighbours]
    for found in recalled.values():
        asks += [_ask(probes[index], found[index]) for index in decoded]
    answers = iter(lab.pool.answer(asks, f"{NAME}: the decoder answers"))
    base = {probe: next(answers) for probe in neighbours}
    rows = []
    for name, found in recalled.items():
        said: list[Answer | None] = [None] * len(probes)
        for index in decoded:
            said[index] = next(answers)
        rows.append(Row(name, probes, [None] * len(probes) if name in UNGATED else found, said))
    return base, rows


def _fine_tune(lab: Lab, episodes: Sequence[Episode], drawn: Sequence[ProbeSet]) -> Row:
    """The decoder tuned on one edit at a time and asked the same; an edit's own answers are made while it lasts."""
    tuner = FineTuner(lab.bundle)
    count = min(len(episodes), FINE_TUNED_MAX)
    probes: list[Probe] = []
    answers: list[Answer | None] = []
    with lab.progress(f"{NAME}: the decoder is tuned on one edit", count) as advance:
        for episode, part in zip(episodes[:count], drawn[:count], strict=True):
            decoded = [probe for probe in part.probes if probe.decoded]
            with tuner.edited(episode.records[0]) as decoder:
                answers += decoder.answer([plain_ask(probe.query, probe.wanted, probe.unwanted) for probe in decoded])
            probes += decoded
            advance(1)
    return Row("fine_tuned", probes, [None] * len(probes), answers)


def _ask(probe: Probe, recollection: Recollection) -> Ask:
    candidates = (probe.wanted, probe.unwanted)
    return as_ask(recollection, probe.query, mode=AnswerMode.COMPLETE, candidates=candidates, max_tokens=TOKENS_MAX)


def plain_ask(query: str, wanted: str, unwanted: str) -> Ask:
    """The query to a decoder that is given nothing else."""
    return Ask(query, mode=AnswerMode.COMPLETE, candidates=(wanted, unwanted), max_tokens=TOKENS_MAX)


def _counts(episodes: Sequence[Episode], drawn: Sequence[ProbeSet]) -> dict[str, Figure]:
    return {
        f"{NAME}.n": sum(len(episode.asked) for episode in episodes),
        f"{NAME}.in_memory": max((len(episode.records) for episode in episodes), default=0),
        f"{NAME}.neighbours_excluded": sum(part.neighbours_excluded for part in drawn),
        f"{NAME}.same_subject_excluded": sum(part.same_subject_excluded for part in drawn),
    }


def _report(row: Row, base: Base, outcome: Outcome) -> None:
    """Add a row's figures and its raw items."""
    ours = row.name == LarimarMemory.name
    marks = [
        Mark.of(probe, found, answer, base.get(probe))
        for probe, found, answer in zip(row.probes, row.recollections, row.answers, strict=True)
    ]
    place = NAME if ours else f"{NAME}.{row.name}"
    outcome.summary |= edit_figures(place, row.probes, marks)
    if row.name == "fine_tuned":
        outcome.summary[f"{place}.n"] = len({probe.case_id for probe in row.probes})
    for probe, found, answer, mark in zip(row.probes, row.recollections, row.answers, marks, strict=True):
        item = {"row": row.name, "case_id": probe.case_id, "kind": probe.kind, "query": probe.query} | asdict(mark)
        if found is not None:
            item["score"] = round(found.score, 4)
        if answer is not None:
            item |= {"wanted": probe.wanted, "unwanted": probe.unwanted, "nll": answer.nll, "text": answer.text}
        outcome.items.append(item)
