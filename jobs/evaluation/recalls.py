"""Small steps that the experiments share: which facts to ask for, what an answer says, how a share is written down."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.evaluation.lab import Lab
from jobs.evaluation.outcome import Figure
from jobs.evaluation.statistics import Share
from memory_actor.types import FactText


def evenly(count: int, most: int) -> list[int]:
    """At most `most` positions of `count`, spread evenly from the first on; all of them when they fit."""
    if count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]


def figures(key: str, share: Share) -> dict[str, Figure]:
    """A share under its key, with its 95 % interval beside it."""
    return {key: share.value, f"{key}_low": share.low, f"{key}_high": share.high}


def says(text: str, wanted: str) -> bool:
    """Whether a generated text contains what was wanted as whole words, case and runs of white space aside."""
    words = r"\s+".join(re.escape(word) for word in wanted.split())
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


def encode_ahead(lab: Lab, facts: Sequence[FactText], queries: Sequence[str]) -> None:
    """Encode in large batches what rows will ask for one by one; the encoders keep it."""
    for encoder in (lab.encoder, lab.plain) if lab.rows == "all" else (lab.encoder,):
        encoder.facts(facts)
        encoder.queries(queries)
