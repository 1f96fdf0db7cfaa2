"""How well the gate decides what a query is about: scores of questions to let in, and of questions to keep out.

Questions are CounterFact's (rephrasings, with and without an unrelated sentence in front, neighbours) and one about
another relation of each record's subject. They are asked with their own fact alone in memory, and with STORED facts in
it; then an accepted rephrasing must come to its own fact, and questions that truly touch another stored fact are left
out. Rows: the bundle's encoder at its own threshold; plain MiniLM at cosine 0.70.

Beside them, where the data folder has what they are made from, the validation measures of `scope_evaluation`, and the
private test set where a checkout has it: its facts are also asked of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs import scope_evaluation as validation
from jobs.evaluation.gate import CosineScorer, Gate, VerifiedScorer
from jobs.evaluation.gate_scores import WRONG
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import NEAREST_THRESHOLD
from jobs.evaluation.outcome import Figure, Outcome
from jobs.evaluation.private_facts import measure_private_facts
from jobs.evaluation.probes import Episode, Kind, Probe, draw_probes
from jobs.evaluation.recalls import evenly, figures
from jobs.evaluation.statistics import share
from memory_actor.types import FactText, Float32Array

NAME = "scope"
STORED = 2_000  # facts in memory beside one alone
#: What each kind of question is called in the figures, and whether it should be let in.
KINDS = {
    Kind.REPHRASE: ("rephrase_accept", True),
    Kind.DISTRACTOR: ("rephrase_distractor_accept", True),
    Kind.NEIGHBOUR: ("neighbour_accept", False),
    Kind.SAME_SUBJECT: ("same_subject_accept", False),
}


@dataclass(frozen=True, slots=True)
class Questions:
    """All probes of the asked records, each fair when its own fact is alone in memory.

    fair_among_many says which of them are so with all of `stored` in memory, as far as the records tell.
    """

    stored: tuple[FactText, ...]
    probes: tuple[Probe, ...]
    owners: tuple[int, ...]  # position in `stored` of each probe's own fact
    fair_among_many: tuple[bool, ...]


def run(lab: Lab) -> Outcome:
    """Equal error rates, and shares let in at the threshold. `limit` caps the records asked about, not those stored."""
    questions = draw(lab)
    outcome = Outcome(NAME, {f"{NAME}.n": len(set(questions.owners)), f"{NAME}.stored": len(questions.stored)})
    gates = [own_gate(lab)]
    if lab.rows == "all":
        gates.append(Gate("nearest", f"{NAME}.nearest", CosineScorer(lab.plain), NEAREST_THRESHOLD))
    outcome.summary[f"{NAME}.cosine_threshold"] = lab.bundle.manifest.scope_threshold
    known = _validation(lab)
    for gate in gates:
        lab.console.print(f"scope: {gate.row}, {len(questions.probes)} questions, {len(questions.stored)} facts stored")
        outcome.summary[f"{gate.place}.threshold"] = gate.threshold
        _measure(gate, questions, outcome)
        if known is not None:
            _validate(gate, known, outcome)
    measure_private_facts(lab, gates, outcome)
    return outcome


def own_gate(lab: Lab) -> Gate:
    """The bundle's gate: a cosine alone, or a cosine and then the verifier's match."""
    cosine, cosine_min = CosineScorer(lab.encoder), lab.bundle.manifest.scope_threshold
    if lab.matches is None:
        return Gate("larimar", NAME, cosine, cosine_min)
    return Gate("larimar", NAME, VerifiedScorer(cosine, lab.matches, cosine_min), lab.match_threshold)


def draw(lab: Lab) -> Questions:
    """The probes of the asked records, and the facts stored beside them: the records' first, then the data's others."""
    records = tuple(lab.data.records[:STORED])
    stored = tuple(lab.data.facts(STORED))
    asked = tuple(evenly(len(records), len(records) if lab.limit is None else lab.limit))
    alone = [(index, draw_probes(Episode((records[index],), (0,)), lab.seed).probes) for index in asked]
    probes = [(index, probe) for index, own in alone for probe in own if probe.kind in KINDS]
    fair = {_name(probe) for probe in draw_probes(Episode(records, asked), lab.seed).probes}
    return Questions(
        stored,
        tuple(probe for _, probe in probes),
        tuple(index for index, _ in probes),
        tuple(_name(probe) in fair for _, probe in probes),
    )


def _name(probe: Probe) -> tuple[int, Kind, str]:
    return probe.case_id, probe.kind, probe.query


def _measure(gate: Gate, questions: Questions, outcome: Outcome) -> None:
    """Scores of every probe, alone and among many, and the figures of both."""
    stored = [fact.prompt for fact in questions.stored]
    queries = [probe.query for probe in questions.probes]
    owners = list(questions.owners)
    alone = gate.scorer.paired(queries, [stored[owner] for owner in owners])
    among = gate.scorer.nearest(queries, stored)
    right = among.right(owners)
    kinds = [probe.kind for probe in questions.probes]
    many = np.where([KINDS[kind][1] for kind in kinds], right, among.scores)
    fair = np.array(questions.fair_among_many)
    outcome.summary |= gate_figures(gate, kinds, alone, 1, "")
    fair_kinds = [kind for kind, is_fair in zip(kinds, fair, strict=True) if is_fair]
    outcome.summary |= gate_figures(gate, fair_kinds, many[fair], STORED, f"_{STORED}")
    outcome.items += [
        {
            "row": gate.row,
            "kind": str(probe.kind),
            "case_id": probe.case_id,
            "query": probe.query,
            "score_1": round(float(alone[i]), 4),
            f"score_{STORED}": round(float(among.scores[i]), 4),
            "right": bool(right[i] != WRONG),
            "fair": bool(fair[i]),
        }
        for i, probe in enumerate(questions.probes)
    ]


def gate_figures(
    gate: Gate, kinds: Sequence[Kind], scores: Float32Array, stored: int, suffix: str
) -> dict[str, Figure]:
    """The share let in of each kind of question, and the rate at which rephrasings and neighbours err equally often.

    A kind nobody asked is left out. `suffix` ends the names of the shares; the error rates go by `stored`.
    """
    of = {kind: scores[[one is kind for one in kinds]] for kind in KINDS}
    found: dict[str, Figure] = {}
    for kind, (name, _) in KINDS.items():
        if len(of[kind]):
            found |= figures(f"{gate.place}.{name}{suffix}", share((of[kind] >= gate.threshold).tolist()))
    if len(of[Kind.REPHRASE]) and len(of[Kind.NEIGHBOUR]):
        rate, at = validation.equal_error_rate(of[Kind.REPHRASE], of[Kind.NEIGHBOUR])
        found |= {f"{gate.place}.eer_{stored}": rate, f"{gate.place}.eer_{stored}_threshold": at}
    return found


def _validation(lab: Lab) -> validation.Questions | None:
    """The questions that the scope encoder's threshold was chosen on, where the data folder has what they need."""
    folder = lab.data.folder
    if folder is None or not all((folder / part).is_dir() for part in ("counterfact", "pararel", "lre_relations")):
        return None
    return validation.load_questions(folder, lab.seed)


def _validate(gate: Gate, questions: validation.Questions, outcome: Outcome) -> None:
    scores = validation.measure(gate.scorer, questions)
    found = validation.summary(scores, gate.threshold)
    outcome.summary |= {f"{gate.place}.validation_{key}": value for key, value in found.items() if key != "threshold"}
    outcome.items += [
        {"row": gate.row, "kind": f"validation_{key}", "scores": [round(float(score), 4) for score in values]}
        for key, values in scores.items()
    ]
