"""What one experiment found: a flat summary of figures, and every raw item behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

#: What a summary may hold. Shares are fractions from 0 to 1, times are milliseconds; None is "could not be measured".
Figure: TypeAlias = float | int | str | None


@dataclass
class Outcome:
    """What an experiment gives back.

    Summary keys are flat: "counterfact.edit_success" is our own row's, its 95 % interval is "…_low" and "…_high",
    "counterfact.n" the number of records; other rows carry their names: "counterfact.unedited.edit_success".
    Items are JSON objects, one per row and query: what was asked, what was recalled, what came out.
    Raises: ValueError for a key outside the experiment's name, or a figure that JSON cannot hold.
    """

    name: str
    summary: dict[str, Figure]
    items: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, figure in self.summary.items():
            if not key.startswith(f"{self.name}."):
                raise ValueError(f"figure '{key}' does not begin with the experiment's name, '{self.name}.'")
            if isinstance(figure, float) and not math.isfinite(figure):
                raise ValueError(f"figure '{key}' is {figure}; what could not be measured is None")

    def renamed(self, name: str) -> Outcome:
        """The same figures under another name: the same experiment at another size, beside the first."""
        end = len(self.name)
        return Outcome(name, {name + key[end:]: figure for key, figure in self.summary.items()}, self.items)
