"""From what was recalled and answered to figures: a mark per probe, and means over records as the paper takes them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.evaluation.asks import Answer
from jobs.evaluation.memories import Recollection
from jobs.evaluation.outcome import Figure
from jobs.evaluation.probes import Kind, Probe
from jobs.evaluation.recalls import figures, says
from jobs.evaluation.statistics import Share, mean_interval, share


@dataclass(frozen=True, slots=True)
class Mark:
    """What one probe showed. A memory without a gate has no `in_scope`; a probe nobody decoded has nothing below it."""

    in_scope: bool | None = None
    right_fact: bool | None = None  # only where the probe was in scope
    success: bool | None = None  # the wanted answer is likelier than the unwanted one
    magnitude: float | None = None  # P(wanted) - P(unwanted), each a geometric mean per token
    said: bool | None = None  # the generated text contains the wanted answer
    changed: bool | None = None  # the generated tokens are not the unedited model's

    @classmethod
    def of(cls, probe: Probe, recollection: Recollection | None, answer: Answer | None, base: Answer | None) -> Mark:
        """`recollection` is None for a row without a gate, `base` is the unedited model's answer to the same query."""
        in_scope = None if recollection is None else recollection.index is not None
        right = recollection.index == probe.index if recollection is not None and in_scope else None
        if answer is None:
            return cls(in_scope, right)
        wanted, unwanted = (math.exp(-nll) for nll in answer.nll)
        return cls(
            in_scope,
            right,
            success=answer.nll[0] < answer.nll[1],
            magnitude=wanted - unwanted,
            said=says(answer.text, probe.wanted),
            changed=None if base is None else answer.tokens != base.tokens,
        )


#: Each figure of CounterFact: which probes it is about, and what of their marks it is the mean of.
MEASURES: dict[str, tuple[Kind, str]] = {
    "edit_success": (Kind.EDIT, "success"),
    "edit_magnitude": (Kind.EDIT, "magnitude"),
    "rephrase_success": (Kind.REPHRASE, "success"),
    "rephrase_magnitude": (Kind.REPHRASE, "magnitude"),
    "rephrase_distractor_success": (Kind.DISTRACTOR, "success"),
    "neighbourhood_success": (Kind.NEIGHBOUR, "success"),
    "neighbourhood_magnitude": (Kind.NEIGHBOUR, "magnitude"),
    "generation_edit": (Kind.EDIT, "said"),
    "generation_rephrase": (Kind.REPHRASE, "said"),
    "generation_rephrase_distractor": (Kind.DISTRACTOR, "said"),
    "changed_out_of_scope": (Kind.NEIGHBOUR, "changed"),
    "edit_in_scope": (Kind.EDIT, "in_scope"),
    "rephrase_in_scope": (Kind.REPHRASE, "in_scope"),
    "distractor_in_scope": (Kind.DISTRACTOR, "in_scope"),
    "neighbour_in_scope": (Kind.NEIGHBOUR, "in_scope"),
    "same_subject_in_scope": (Kind.SAME_SUBJECT, "in_scope"),
    "right_fact": (Kind.REPHRASE, "right_fact"),
}


def edit_figures(place: str, probes: Sequence[Probe], marks: Sequence[Mark]) -> dict[str, Figure]:
    """All of `MEASURES` under `place`, with intervals, and `score`: the harmonic mean of the three successes.

    What nobody measured is absent.
    """
    summary: dict[str, Figure] = {}
    for name, (kind, attribute) in MEASURES.items():
        values = [
            (probe.case_id, float(value))
            for probe, mark in zip(probes, marks, strict=True)
            if probe.kind is kind and (value := getattr(mark, attribute)) is not None
        ]
        if values:
            summary |= figures(f"{place}.{name}", by_record(values))
    parts = [summary.get(f"{place}.{name}") for name in ("edit_success", "rephrase_success", "neighbourhood_success")]
    successes = [part for part in parts if isinstance(part, float)]
    if len(successes) == len(parts):
        summary[f"{place}.score"] = harmonic_mean(successes)
    return summary


def by_record(values: Iterable[tuple[int, float]]) -> Share:
    """Mean of each record's values, then over records. `values` are (record, value), at least one.

    The interval is over records: Wilson's where each record is right or wrong, else from a seeded bootstrap.
    """
    grouped: defaultdict[int, list[float]] = defaultdict(list)
    for record, value in values:
        grouped[record].append(value)
    means = [sum(group) / len(group) for group in grouped.values()]
    if all(mean in {0.0, 1.0} for mean in means):
        return share([mean == 1.0 for mean in means])
    return mean_interval(means)


def harmonic_mean(values: Sequence[float]) -> float:
    """0 when any value is 0."""
    return len(values) / sum(1 / value for value in values) if all(value > 0 for value in values) else 0.0
