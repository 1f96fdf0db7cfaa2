"""Process settings of one memory actor, and what they default to."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """May change at restart. `locations` are URIs or folders by name; `local` is the state folder's unless given."""

    device: str = "cpu"
    group_facts_max: int = 256
    queue_max: int = 1024
    idempotency_hours: float = 24.0
    hot_mb: int = 2048  # of tenants in memory
    erase_window_s: float = 60.0
    checkpoints_keep: int = 2  # per tenant and location
    locations: Mapping[str, str] = field(default_factory=dict)
    ledger_url: str | None = None  # PostgreSQL; None: SQLite in the state folder
    reserve_mb: int = 64  # free disk kept for forgetting
    keys_folder: Path | None = None  # None: in the state folder


def random_fact_id() -> str:
    """`f_` and 26 characters of 5 random bits each: 130 bits, unguessable and unique."""
    return _random_id("f_")


def random_receipt_id() -> str:
    """`r_` and 26 such characters: who knows it may see how far an erasure is."""
    return _random_id("r_")


def random_uid() -> str:
    """32 hex digits that name one incarnation of a tenant."""
    return secrets.token_hex(16)


def _random_id(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ID_ALPHABET) for _ in range(26))
