"""Batch editing (the paper's Figs. 2a and 3): N facts written into one memory, each asked for with its own prompt.

A fact counts as recalled when every token of its prompt and target comes back. Rows: ours; the paper's recursion with
pseudo-inverse addresses, and with its Gaussian filter. The paper's memory holds one latent to a fact: it is not asked
for facts that are longer. For a sample of our own the decoder answers too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import EditedMemory, LarimarMemory, Recollection, as_ask, whole
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.paper_memory import PaperMemory
from jobs.evaluation.recalls import evenly, figures, says
from jobs.evaluation.statistics import share
from memory_actor.types import FactText
from workers.ports import AnswerMode

NAME = "batch"
SIZES = (512, 1024, 4096, 10_000)
SAMPLE = 2_000  # facts asked for at one size
WRITE_FACTS = 250  # of one batch
SPOKEN_SIZE, SPOKEN = 4096, 100  # the decoder answers so many prompts at this size


def run(lab: Lab) -> Outcome:
    """Recall at every size. `limit` leaves out the sizes above it (never the smallest) and caps the facts asked for."""
    sizes = [size for size in SIZES if lab.limit is None or size <= lab.limit] or [SIZES[0]]
    facts = lab.data.facts(sizes[-1])
    outcome = Outcome(NAME, {f"{NAME}.n": len(facts)})
    for memory in _rows(lab):
        for size in sizes:
            _measure(lab, memory, facts[:size], outcome)
        memory.close()
    return outcome


def _rows(lab: Lab) -> list[EditedMemory]:
    rows: list[EditedMemory] = [LarimarMemory(lab)]
    if lab.rows == "all":
        rows += [PaperMemory(lab, addressing="pinv"), PaperMemory(lab, addressing="gaussian")]
    return rows


def _measure(lab: Lab, memory: EditedMemory, facts: Sequence[FactText], outcome: Outcome) -> None:
    """Write `facts` into the emptied memory and ask for a sample of them."""
    ours = memory.name == "larimar"
    place = NAME if ours else f"{NAME}.{memory.name}"
    size = len(facts)
    seconds = _write(lab, memory, facts)
    storable = [index for index, rows in enumerate(lab.encoder.facts(facts).rows.tolist()) if ours or rows == 1]
    asked = [storable[turn] for turn in evenly(len(storable), min(SAMPLE, lab.limit or SAMPLE))]
    with lab.progress(f"batch: {memory.name} asked for {size} facts", len(asked)) as advance:
        found = memory.recall([facts[index].prompt for index in asked])
        recalled = [whole(one, facts[index], lab.codec) for index, one in zip(asked, found, strict=True)]
        advance(len(asked))
    outcome.summary |= figures(f"{place}.recall_{size}", share(recalled))
    if ours:
        outcome.summary[f"{NAME}.writes_per_s_{size}"] = round(size / seconds, 1)
    outcome.items += [
        {"row": memory.name, "facts": size, "index": index, "score": round(one.score, 4), "whole": correct}
        for index, one, correct in zip(asked, found, recalled, strict=True)
    ]
    if ours and size == SPOKEN_SIZE:
        chosen = evenly(len(asked), SPOKEN)
        _speak(lab, [facts[asked[turn]] for turn in chosen], [found[turn] for turn in chosen], outcome)


def _write(lab: Lab, memory: EditedMemory, facts: Sequence[FactText]) -> float:
    """Seconds that the memory took to write `facts` in batches. Our own encodings are made ahead and not counted."""
    memory.clear()
    seconds = 0.0
    with lab.progress(f"batch: {memory.name} writes {len(facts)} facts", len(facts)) as advance:
        for start in range(0, len(facts), WRITE_FACTS):
            part = facts[start : start + WRITE_FACTS]
            lab.encoder.facts(part)  # kept by the encoder: what follows is the memory's own work
            started = time.perf_counter()
            memory.write(part)
            seconds += time.perf_counter() - started
            advance(len(part))
    return seconds


def _speak(lab: Lab, facts: Sequence[FactText], found: Sequence[Recollection], outcome: Outcome) -> None:
    """Whether the decoder's continuation of a fact's prompt contains its target."""
    asks = [
        as_ask(one, fact.prompt, mode=AnswerMode.COMPLETE, max_tokens=24)
        for one, fact in zip(found, facts, strict=True)
    ]
    answers = lab.pool.answer(asks, f"batch: answers with {SPOKEN_SIZE} facts in memory")
    said = [says(answer.text, fact.target or "") for answer, fact in zip(answers, facts, strict=True)]
    outcome.summary |= figures(f"{NAME}.generation_{SPOKEN_SIZE}", share(said))
    outcome.items += [
        {"row": "larimar", "facts": SPOKEN_SIZE, "query": fact.prompt, "text": answer.text, "said": right}
        for fact, answer, right in zip(facts, answers, said, strict=True)
    ]
