"""What the scope encoder is never trained on: held-out subjects and relations, decided by name alone."""

from __future__ import annotations

import hashlib

HELD_OUT_RELATIONS = frozenset(
    {
        "P47",
        "P530",
        "P1376",
        "P279",
        "company_ceo",
        "star_constellation",
        "superhero_archnemesis",
        "superhero_person",
        "food_from_country",
        "country_currency",
        "task_done_by_tool",
        "fruit_inside_color",
    }
)
_ONE_IN = 20


def is_validation_subject(subject: str) -> bool:
    """Whether a subject belongs to the validation side: one in twenty, by a hash of its name in lower case."""
    return int.from_bytes(hashlib.sha256(subject.lower().encode()).digest()[:4], "big") % _ONE_IN == 0
