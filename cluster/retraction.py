"""Retracting: afterwards the answer is "unknown". Unlike forgetting, it leaves a trace by design."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory_actor.errors import InvalidField
from memory_actor.types import FactRecord, FactText, WriteReply

UNKNOWN = "unknown"  # what a retracted fact answers, as in the paper
PROBLEMS_MAX = 20


@dataclass(frozen=True, slots=True)
class Retraction:
    """Facts superseded by others that answer "unknown"."""

    retracted: tuple[str, ...]
    written: WriteReply


def unknowns_over(fact_ids: Sequence[str], found: Sequence[FactRecord | None]) -> list[FactText]:
    """The facts that supersede `found`. Raises InvalidField naming every fact that cannot be retracted."""
    problems = []
    facts = []
    for index, (fact_id, record) in enumerate(zip(fact_ids, found, strict=True)):
        if record is None:
            problems.append(_problem(index, fact_id, "does not exist"))
        elif record.prompt is None:
            problems.append(
                _problem(index, fact_id, "its tenant keeps no text (retention 'latent'); forget it instead")
            )
        elif record.target is None:
            problems.append(_problem(index, fact_id, "is a sentence without a target; forget it instead"))
        else:
            facts.append(FactText(record.prompt, UNKNOWN, record.tags))
    if problems:
        raise InvalidField(f"{len(problems)} of {len(fact_ids)} facts cannot be retracted", problems[:PROBLEMS_MAX])
    return facts


def _problem(index: int, fact_id: str, message: str) -> dict[str, Any]:
    return {"loc": ["body", "ids", index], "msg": message, "got": fact_id}
