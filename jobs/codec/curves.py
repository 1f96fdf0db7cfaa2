"""The curves of a codec's training as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.evaluation.charts import canvas, percent, save

Curve = Sequence[Mapping[str, Any]]
_SHARES = {"token": "tokens decoded", "exact": "sentences decoded", "spelled": "tokens that slots spell"}


def draw(curve: Curve, path: Path) -> None:
    """Loss and held-out shares over CPU minutes of two cores, as a PNG."""
    with canvas(9.0, 3.4, panels=2) as (figure, (left, right)):
        for phase, label in (("spelling", "spelling alone"), ("joint", "all terms")):
            points = [one for one in curve if one["phase"] == phase]
            if points:
                left.plot([one["minutes"] for one in points], [one["loss"] for one in points], label=label)
        left.set_ylabel("training loss, nats")
        for name, label in _SHARES.items():
            points = [one for one in curve if one.get(name) is not None]
            shares = [100 * one[name] for one in points]
            right.plot([one["minutes"] for one in points], shares, marker="o", ms=3, label=label)
        percent(right, "held out, 16 in memory")
        for axes in (left, right):
            axes.set_xlabel("minutes of two cores")
            axes.legend()
        save(figure, path)
