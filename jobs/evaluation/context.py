"""Long context (the paper's FastFacts, sec. 5.5): made-up facts in memory, a sample of them asked for in other words.

A needle counts as recalled when the gate lets its question in and every token of the right fact comes back. Rows:

    ours                     the flat read: one scope search over all facts, gate included
    recursive                the paper's recursive read (`recursive_read.py`) with projection weights, without a gate;
                             its readout is decoded with the right fact's number of rows and tokens: that favours it
    recursive_gaussian       the same with the Gaussian filter
    nearest                  plain MiniLM at cosine 0.70 names the right fact; its text is put before the decoder
    all_facts                all facts in the prompt; only the generated answer can be judged

Memories grow: the needles of one size are the first of the next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from jobs.evaluation.gate_scores import nearest, unit
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import AllFacts, EditedMemory, LarimarMemory, NearestFact, Recollection, as_ask, whole
from jobs.evaluation.needles import Needle, needles
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.recalls import evenly, figures, says
from jobs.evaluation.recursive_read import RecursiveReader, Weights
from jobs.evaluation.statistics import share
from memory_actor.types import EncodedFacts
from workers.ports import AnswerMode

NAME = "context"
SIZES = (64, 96, 128, 256, 1_000, 10_000, 100_000)
ASKED = 200  # needles asked for at one size
WRITE_FACTS = 1_000  # of one batch
OTHER_ROWS_MAX = 10_000  # facts up to which the other rows, and the decoder, are asked
SPOKEN = 100  # questions of one size that the decoder answers
IN_PROMPT, IN_PROMPT_ASKED = (64, 128), 50  # sizes that fit into the prompt, and questions answered there
ANSWER_TOKENS = 32
RECURSIVE = {"recursive": Weights.PROJECTION, "recursive_gaussian": Weights.GAUSSIAN}


def run(lab: Lab) -> Outcome:
    """Recall at every size. `limit` leaves out the sizes above it (never the smallest) and caps the questions."""
    sizes = [size for size in SIZES if lab.limit is None or size <= lab.limit] or [SIZES[0]]
    found = needles(sizes[-1], lab.seed)
    outcome = Outcome(NAME, {f"{NAME}.n": len(evenly(len(found), _asked(lab)))})
    _grow(lab, LarimarMemory(lab), found, sizes, outcome)
    if lab.rows == "all":
        small = [size for size in sizes if size <= OTHER_ROWS_MAX]
        _grow(lab, NearestFact(lab), found, small, outcome)
        for row, weights in RECURSIVE.items():
            for size in small:
                _recursive(lab, row, weights, found[:size], outcome)
        for size in [size for size in IN_PROMPT if size <= sizes[-1]]:
            memory = AllFacts(lab)
            memory.write([needle.fact for needle in found[:size]])
            _speak(lab, memory, found[:size], IN_PROMPT_ASKED, outcome)
            memory.close()
    return outcome


def _asked(lab: Lab) -> int:
    return min(ASKED, lab.limit or ASKED)


def _grow(lab: Lab, memory: EditedMemory, found: Sequence[Needle], sizes: Sequence[int], outcome: Outcome) -> None:
    """Write up to each size in turn, and ask there: in other words, with the facts' own prompts, aloud."""
    written, ours = 0, memory.name == "larimar"
    spent = {"encode_s": 0.0, "write_s": 0.0}
    for size in sizes:
        _write(lab, memory, found[written:size], spent)
        written = size
        _ask(lab, memory, found[:size], outcome)
        if ours:
            _ask_without_gate(lab, found[:size], outcome)
            outcome.summary |= {f"{NAME}.{name}_{size}": round(seconds, 2) for name, seconds in spent.items()}
        spoken = SPOKEN if ours and size <= OTHER_ROWS_MAX else IN_PROMPT_ASKED if size in IN_PROMPT else 0
        if spoken:
            _speak(lab, memory, found[:size], spoken, outcome)
    memory.close()


def _write(lab: Lab, memory: EditedMemory, new: Sequence[Needle], spent: dict[str, float]) -> None:
    """Write needles in batches; adds the seconds that encoding and writing took to `spent`."""
    with lab.progress(f"context: {memory.name} takes {len(new)} facts more", len(new)) as advance:
        for start in range(0, len(new), WRITE_FACTS):
            facts = [needle.fact for needle in new[start : start + WRITE_FACTS]]
            started = time.perf_counter()
            if memory.name == "larimar":
                lab.encoder.facts(facts)  # kept by the encoder: the write below is the memory's own work
            encoded = time.perf_counter()
            memory.write(facts)
            spent["encode_s"] += encoded - started
            spent["write_s"] += time.perf_counter() - encoded
            advance(len(facts))


def _ask_without_gate(lab: Lab, found: Sequence[Needle], outcome: Outcome) -> None:
    """How often the nearest fact to a question is the right one, whatever its score: what no threshold could better."""
    chosen = evenly(len(found), _asked(lab))
    keys = lab.encoder.facts([needle.fact for needle in found]).keys
    near = nearest(lab.encoder.queries([found[index].question for index in chosen]), keys)
    right = [position == index for position, index in zip(near.positions.tolist(), chosen, strict=True)]
    outcome.summary |= figures(f"{NAME}.ungated_recall_{len(found)}", share(right))


def _ask(lab: Lab, memory: EditedMemory, found: Sequence[Needle], outcome: Outcome) -> None:
    """Recall of a sample by its questions and by its own prompts."""
    chosen = evenly(len(found), _asked(lab))
    recalled = {
        "recall": memory.recall([found[index].question for index in chosen]),
        "prompt_recall": memory.recall([found[index].fact.prompt for index in chosen]),
    }
    _report(lab, memory.name, found, recalled, outcome)


def _recursive(lab: Lab, row: str, weights: Weights, found: Sequence[Needle], outcome: Outcome) -> None:
    """The paper's recursive read over keys of plain MiniLM and the codec's latents."""
    facts = [needle.fact for needle in found]
    encoded = lab.encoder.facts(facts)
    keys = torch.from_numpy(unit(lab.plain.facts(facts).keys))
    reader = RecursiveReader(keys, side_by_side(encoded), weights)
    chosen = evenly(len(found), _asked(lab))

    def recall(texts: Sequence[str]) -> list[Recollection]:
        recollections = []
        for index, own in zip(chosen, lab.plain.queries(texts), strict=True):
            readout = reader.read(torch.from_numpy(unit(own)[0])).reshape(-1, encoded.latents.shape[1])
            condition = lab.codec.condition(
                readout[: encoded.rows[index]].numpy(),
                int(encoded.prompt_tokens[index]),
                int(encoded.target_tokens[index]),
            )
            recollections.append(Recollection(index=index, score=1.0, condition=condition))
        return recollections

    recalled = {
        "recall": recall([found[index].question for index in chosen]),
        "prompt_recall": recall([found[index].fact.prompt for index in chosen]),
    }
    _report(lab, row, found, recalled, outcome)


def side_by_side(encoded: EncodedFacts) -> torch.Tensor:
    """The latents of N facts side by side, (N, P * C) float32 for the P rows of the longest; others end in zeros."""
    values = np.zeros((len(encoded), int(encoded.rows.max()), encoded.latents.shape[1]), np.float32)
    ends = encoded.rows.cumsum()
    for index, (end, rows) in enumerate(zip(ends, encoded.rows, strict=True)):
        values[index, :rows] = encoded.latents[end - rows : end]
    return torch.from_numpy(values.reshape(len(encoded), -1))


def _report(
    lab: Lab, row: str, found: Sequence[Needle], recalled: Mapping[str, Sequence[Recollection]], outcome: Outcome
) -> None:
    """Figures and items of what a row recalled, by the figure's name, for the needles asked for."""
    place, size = (NAME if row == "larimar" else f"{NAME}.{row}"), len(found)
    chosen = evenly(size, _asked(lab))
    for name, recollections in recalled.items():
        right = [_right(lab, one, index, found[index]) for index, one in zip(chosen, recollections, strict=True)]
        outcome.summary |= figures(f"{place}.{name}_{size}", share(right))
        outcome.items += [
            {
                "row": row,
                "facts": size,
                "asked_by": "question" if name == "recall" else "prompt",
                "index": index,
                "recalled": one.index,
                "score": round(one.score, 4),
                "right": correct,
            }
            for index, one, correct in zip(chosen, recollections, right, strict=True)
        ]


def _right(lab: Lab, one: Recollection, index: int, needle: Needle) -> bool:
    """Whether the right fact came back, word for word where it is read from a memory."""
    return one.index == index and (one.condition is None or whole(one, needle.fact, lab.codec))


def _speak(lab: Lab, memory: EditedMemory, found: Sequence[Needle], most: int, outcome: Outcome) -> None:
    """Whether the decoder's answer to a question contains the needle's."""
    chosen = [found[index] for index in evenly(len(found), min(most, lab.limit or most))]
    recollections = memory.recall([needle.question for needle in chosen])
    asks = [
        as_ask(one, needle.question, mode=AnswerMode.ANSWER, max_tokens=ANSWER_TOKENS)
        for one, needle in zip(recollections, chosen, strict=True)
    ]
    size = len(found)
    answers = lab.pool.answer(asks, f"context: {memory.name}, answers with {size} facts")
    said = [says(answer.text, needle.answer) for answer, needle in zip(answers, chosen, strict=True)]
    place = NAME if memory.name == "larimar" else f"{NAME}.{memory.name}"
    outcome.summary |= figures(f"{place}.generation_{size}", share(said))
    outcome.items += [
        {
            "row": memory.name,
            "facts": size,
            "asked_by": "aloud",
            "query": needle.question,
            "answer": needle.answer,
            "text": answer.text,
            "said": right,
        }
        for needle, answer, right in zip(chosen, answers, said, strict=True)
    ]
