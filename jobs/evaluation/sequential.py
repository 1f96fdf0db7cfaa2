"""Sequential editing (the paper's Fig. 2b in our form): how past edits fare while the edits go on.

CounterFact edits are written one after another; every so often a sample of all past ones is asked for again. Rows that
keep facts as numbers are read directly: whole-fact recall, every token of prompt and target right. For a part of the
sample the decoder answers too. Fine-tuning edit after edit, without going back, is a row of its own, and a short one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jobs.evaluation.asks import Ask
from jobs.evaluation.fine_tuning import FineTuner
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import EditedMemory, LarimarMemory, NearestFact, Recollection, as_ask, whole
from jobs.evaluation.outcome import Figure, Outcome
from jobs.evaluation.paper_memory import PaperMemory
from jobs.evaluation.recalls import encode_ahead, figures, says
from jobs.evaluation.records import EditRecord
from jobs.evaluation.statistics import share
from memory_actor.types import FactText
from workers.ports import AnswerMode
from workers.row_codec import RowCodec

NAME = "sequential"
STOPS = (10, 50, 100, 200, 500, 1000, 2000)  # edits after which past ones are asked for
SAMPLE, SPOKEN = 100, 50  # past edits asked for at a stop; the decoder answers the first of them
TOKENS_MAX = 16
FINE_TUNED_STOPS = (1, 5, 10, 25)


@dataclass(slots=True)
class Stop:
    """What one row showed after so many edits."""

    row: str
    edits: int
    asked: Sequence[int]  # positions of past edits
    found: Sequence[Recollection]  # one per asked edit, by its own prompt
    rephrased: dict[int, Recollection]  # by position, where the edit has a rephrasing
    said: list[bool] = field(default_factory=list)  # of the first asked edits: the answer contains the target


def run(lab: Lab) -> Outcome:
    """`limit` is the number of edits; without one, the last stop that the data reaches."""
    records = lab.data.records
    edits = lab.limit or STOPS[-1]
    facts = lab.data.facts(edits)
    encode_ahead(lab, facts, [])
    stops = [stop for stop in STOPS if stop < edits] + [edits]
    reached = [stop for memory in _memories(lab) for stop in _edit(lab, memory, facts, records, stops)]
    _speak(lab, reached, facts)
    outcome = Outcome(NAME, {f"{NAME}.n": len(facts)})
    for stop in reached:
        outcome.summary |= stop_figures(stop, facts, lab.codec)
        outcome.items += _items(stop, facts)
    if lab.rows == "all":
        _fine_tune(lab, records, outcome)
    return outcome


def sample_of_past(edits: int, seed: int) -> list[int]:
    """Positions of past edits in random order: all when there are few. Every row and every run asks for the same."""
    return random.Random(f"{seed}:{edits}").sample(range(edits), min(edits, SAMPLE))  # noqa: S311 - reproducible


def _memories(lab: Lab) -> Iterator[EditedMemory]:
    yield LarimarMemory(lab)
    if lab.rows == "all":
        yield NearestFact(lab)
        yield PaperMemory(lab, addressing="pinv")
        yield PaperMemory(lab, addressing="gaussian")


def _edit(
    lab: Lab, memory: EditedMemory, facts: Sequence[FactText], records: Sequence[EditRecord], stops: Sequence[int]
) -> Iterator[Stop]:
    memory.clear()
    with lab.progress(f"{NAME}: {memory.name} is edited", len(facts)) as advance:
        for count, fact in enumerate(facts, 1):
            memory.write([fact])
            advance(1)
            if count in stops:
                yield _ask_for_past(memory, count, facts, records, lab.seed)
    memory.close()


def _ask_for_past(
    memory: EditedMemory, edits: int, facts: Sequence[FactText], records: Sequence[EditRecord], seed: int
) -> Stop:
    asked = sample_of_past(edits, seed)
    # The facts beyond the records come from elsewhere and have no rephrasings.
    wordings = {index: records[index].rephrasings[0] for index in asked if index < len(records)}
    found = memory.recall([facts[index].prompt for index in asked])
    rephrased = dict(zip(wordings, memory.recall(list(wordings.values())), strict=True)) if wordings else {}
    return Stop(memory.name, edits, asked, found, rephrased)


def _speak(lab: Lab, stops: Sequence[Stop], facts: Sequence[FactText]) -> None:
    """Note for each stop whether the decoder's answers contain the targets; one call for all rows and stops."""
    asks = [
        as_ask(one, facts[index].prompt, mode=AnswerMode.COMPLETE, max_tokens=TOKENS_MAX)
        for stop in stops
        for index, one in list(zip(stop.asked, stop.found, strict=True))[:SPOKEN]
    ]
    answers = iter(lab.pool.answer(asks, f"{NAME}: the decoder answers"))
    for stop in stops:
        stop.said = [says(next(answers).text, facts[index].target or "") for index in stop.asked[:SPOKEN]]


def stop_figures(stop: Stop, facts: Sequence[FactText], codec: RowCodec) -> dict[str, Figure]:
    """One point of each curve. Rows that keep the words themselves have no readout to compare: no `recall`."""
    place = NAME if stop.row == LarimarMemory.name else f"{NAME}.{stop.row}"
    end = f"_{stop.edits}"
    summary = figures(f"{place}.generation{end}", share(stop.said))
    if stop.row != NearestFact.name:
        right = [whole(one, facts[index], codec) for index, one in zip(stop.asked, stop.found, strict=True)]
        summary |= figures(f"{place}.recall{end}", share(right))
    if stop.rephrased:
        in_scope = [one.index is not None for one in stop.rephrased.values()]
        right = [one.index == index for index, one in stop.rephrased.items()]
        summary |= figures(f"{place}.rephrase_in_scope{end}", share(in_scope))
        summary |= figures(f"{place}.rephrase_right{end}", share(right))
    return summary


def _items(stop: Stop, facts: Sequence[FactText]) -> Iterator[dict[str, object]]:
    for turn, (index, one) in enumerate(zip(stop.asked, stop.found, strict=True)):
        item = {"row": stop.row, "edits": stop.edits, "edit": index, "query": facts[index].prompt}
        item |= {"matched": one.index, "score": round(one.score, 4)}
        if turn < len(stop.said):
            item["said"] = stop.said[turn]
        if index in stop.rephrased:
            item["rephrase_matched"] = stop.rephrased[index].index
        yield item


def _fine_tune(lab: Lab, records: Sequence[EditRecord], outcome: Outcome) -> None:
    """The decoder tuned on edit after edit: does it still say the past ones, its own tokens unbiased?"""
    edits = records[: min(FINE_TUNED_STOPS[-1], lab.limit or FINE_TUNED_STOPS[-1])]
    tuner = FineTuner(lab.bundle)
    with lab.progress(f"{NAME}: the decoder is tuned on edit after edit", len(edits)) as advance:
        for count, record in enumerate(edits, 1):
            tuner.edit(record)
            advance(1)
            if count not in FINE_TUNED_STOPS and count != len(edits):
                continue
            past = edits[:count]
            asks = [Ask(one.prompt, mode=AnswerMode.COMPLETE, max_tokens=TOKENS_MAX) for one in past]
            answers = tuner.answer(asks)
            said = [says(answer.text, one.target_new) for answer, one in zip(answers, past, strict=True)]
            outcome.summary |= figures(f"{NAME}.fine_tuned.generation_{count}", share(said))
            outcome.items += [
                {"row": "fine_tuned", "edits": count, "query": one.prompt, "text": answer.text, "said": right}
                for one, answer, right in zip(past, answers, said, strict=True)
            ]
