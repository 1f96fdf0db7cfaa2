"""Selective forgetting (the paper's Table 4): N facts written, every second one forgotten, all of them asked for.

A forgotten fact counts as recalled when its own prompt still matches it, or when all its words come back from whatever
is matched instead. Beside that the memory is read at the forgotten prompts' own addresses with no gate before it, and
its state is compared, to the bit, with that of a memory that never saw them, over random histories (`histories.py`).
Row paper: eqs. (3)-(4) with alpha = -1, then "unknown" written in the fact's place. It holds one latent to a fact, and
is not asked for retained facts that are longer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from jobs.evaluation.histories import Played, Script, Stage
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import LarimarMemory, Recollection, whole
from jobs.evaluation.outcome import Figure, Outcome
from jobs.evaluation.paper_memory import PaperMemory
from jobs.evaluation.recalls import evenly, figures
from jobs.evaluation.statistics import share
from memory_actor.types import FactText

NAME = "forget"
LARGEST = 4096
HISTORIES, HISTORIES_OF_LARGEST = 20, 3
RETAINED_ASKED = 1_000  # retained facts asked for at one size


def run(lab: Lab) -> Outcome:
    """N = 1, K, 2K and 4,096. `limit` takes the place of the sizes above it, and caps histories and facts asked."""
    addresses = lab.bundle.manifest.memory.address_size
    sizes = sorted({min(size, lab.limit or LARGEST) for size in (1, addresses, 2 * addresses, LARGEST)})
    facts = lab.data.facts(sizes[-1])
    outcome = Outcome(NAME, {})
    for size in sizes:
        part = facts[:size]
        _ask(lab, LarimarMemory(lab), part, outcome)
        _play(lab, part, outcome)
        if lab.rows == "all":
            _ask(lab, PaperMemory(lab, addressing="pinv"), part, outcome)
    outcome.summary |= worst(outcome.summary, sizes)
    return outcome


def doomed(count: int) -> list[int]:
    """Every second fact is forgotten, from the first on: half of them, and the one of one."""
    return list(range(0, count, 2))


def worst(summary: dict[str, Figure], sizes: Sequence[int]) -> dict[str, Figure]:
    """Of every row the worst figure over all sizes: most forgotten facts recalled, fewest retained, fewest equal."""
    found: dict[str, Figure] = {}
    for row in ("", ".paper"):
        for name, pick in (("forgotten", max), ("forgotten_soft", max), ("retained", min), ("hash_identity", min)):
            values = [summary.get(f"{NAME}{row}.n_{size}.{name}") for size in sizes]
            measured = [value for value in values if isinstance(value, float)]
            if measured:
                found[f"{NAME}{row}.{name}"] = pick(measured)
    return found


def _ask(lab: Lab, memory: LarimarMemory | PaperMemory, facts: Sequence[FactText], outcome: Outcome) -> None:
    """Write, forget half, ask for both halves with their own prompts."""
    ours, gone = memory.name == "larimar", doomed(len(facts))
    rows = lab.encoder.facts(facts).rows
    kept = [index for index in sorted(set(range(len(facts))) - set(gone)) if ours or rows[index] == 1]
    kept = [kept[turn] for turn in evenly(len(kept), min(RETAINED_ASKED, lab.limit or RETAINED_ASKED))]
    place = f"{NAME}{'' if ours else '.' + memory.name}.n_{len(facts)}"
    with lab.progress(f"forget: {memory.name}, {len(facts)} facts", 4) as advance:
        memory.write(facts)
        advance(1)
        memory.forget(gone)
        advance(1)
        for name, asked in (("forgotten", gone), ("retained", kept)):
            if asked:  # nothing is retained of one fact
                found = memory.recall([facts[index].prompt for index in asked])
                matched = [one.index == index for index, one in zip(asked, found, strict=True)]
                back = [whole(one, facts[index], lab.codec) for index, one in zip(asked, found, strict=True)]
                if ours and name == "forgotten":  # the paper's gate is meant to match: "unknown" is what it then says
                    back = [was or own for was, own in zip(back, matched, strict=True)]
                outcome.summary |= figures(f"{place}.{name}", share(back))
                outcome.items += [
                    {
                        "row": memory.name,
                        "facts": len(facts),
                        "asked": name,
                        "index": i,
                        "matched": own,
                        "recalled": was,
                    }
                    for i, own, was in zip(asked, matched, back, strict=True)
                ]
            advance(1)
    memory.close()


def _play(lab: Lab, facts: Sequence[FactText], outcome: Outcome) -> None:
    """Random histories: equal hashes, and reads at the forgotten addresses without a gate."""
    size, gone = len(facts), doomed(len(facts))
    encoded = lab.encoder.facts(facts)
    turns = HISTORIES_OF_LARGEST if size == LARGEST else HISTORIES
    turns = min(turns, lab.limit or turns)
    equal: list[bool] = []
    back: list[bool] = []
    with (
        Stage(lab.bundle.memory_config()) as stage,
        lab.progress(f"forget: histories of {size} facts", turns) as advance,
    ):
        for turn in range(turns):
            rng = random.Random(f"{lab.seed}:{size}:{turn}")  # noqa: S311 - reproducible, not secret
            with stage.played(Script.drawn(size, gone, rng), facts, encoded) as played:
                equal.append(played.state_hash() == played.never_saw(rng))
                if turn == 0 and played.ids:
                    back = [_comes_back(lab, played, facts[i], int(encoded.rows[i])) for i in gone]
            advance(1)
    outcome.summary |= figures(f"{NAME}.n_{size}.hash_identity", share(equal))
    if back:
        outcome.summary |= figures(f"{NAME}.n_{size}.forgotten_soft", share(back))
    outcome.items.append({"row": "larimar", "facts": size, "asked": "histories", "equal": equal})


def _comes_back(lab: Lab, played: Played, fact: FactText, rows: int) -> bool:
    """Whether a forgotten fact's words can be read at the address of its prompt, whatever is matched there."""
    readout = played.read_softly(lab.encoder.queries([fact.prompt])[0]).readout
    if readout is None or len(readout) != rows:
        return False
    prompt, target = lab.codec.tokens(fact)
    condition = lab.codec.condition(readout, len(prompt), len(target))
    return whole(Recollection(index=0, score=1.0, condition=condition), fact, lab.codec)
