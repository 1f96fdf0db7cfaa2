"""The table of docs/reliability.md, made from docs/reliability.json: one row per campaign, as last run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

#: Per campaign: what one trial is called, the count that has to be zero, and what else is worth showing.
_ROWS: Final[Mapping[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]]] = {
    "kills": ("kills", "kills", ("lost", "duplicates"), ("acknowledged", "in_flight_applied")),
    "crash_points": ("cells", "cells", ("failed",), ("poisoned",)),
    "actor_kills": ("kills", "kills", ("lost", "duplicates"), ("acknowledged", "recovery_p50_s", "recovery_max_s")),
    "stale_incarnation": ("take-overs", "count", ("stale_commits", "lost"), ("acknowledged", "takeover_max_s")),
    "bit_flips": ("flips", "count", ("silently_wrong",), ("detected", "same_content")),
    "replies_dropped": ("writes", "writes", ("more_or_less_than_one_effect",), ("sends", "restarts")),
    "erase_scan": ("facts", "count", ("hits",), ("searched_mb", "receipts")),
    "state_hash": ("histories", "count", ("different",), ("hashes",)),
}


def update(path: Path, result: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Put a campaign's result into the file, beside those of the others."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"campaigns": {}}
    table["machine"] = machine["machine"]
    table["campaigns"][result["campaign"]] = dict(result)
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def markdown(table: Mapping[str, Any], campaigns: Mapping[str, Any]) -> str:
    """The rows of all campaigns. `campaigns` are the entries of `jobs.campaign.CAMPAIGNS`."""
    lines = [
        "| campaign | last run | must be 0 | beside | CI | release command |",
        "|---|---:|---|---|---:|---|",
    ]
    for name, entry in campaigns.items():
        unit, trials, zeros, beside = _ROWS[name]
        result = table["campaigns"].get(name)
        command = f"`larimar campaign {name} --count {entry.release}`"
        if result is None:
            cells = ["not run yet", "", ""]
        else:
            cells = [
                f"{result[trials]:,} {unit}",
                ", ".join(f"{_words(zero)} **{result.get(zero, 0)}**" for zero in zeros),
                ", ".join(f"{_words(one)} {_number(result[one])}" for one in beside if one in result),
            ]
        lines.append(f"| {entry.what} | {' | '.join(cells)} | {entry.ci:,} | {command} |")
    return "\n".join([*lines, "", f"Machine: {table['machine']}."])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
