"""What a campaign found: counts, and the violations that make it a failure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Advance = Callable[[int], None]

VIOLATIONS_SHOWN = 20


@dataclass
class Outcome:
    """The result of one campaign. It passed when there are no violations and each of `zero` counts is 0."""

    campaign: str
    seed: int
    count: int
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)  # measured, not judged
    violations: list[str] = field(default_factory=list)

    def violate(self, what: str) -> None:
        """Note something that must never happen. The text names the trial, so that the seed finds it again."""
        self.violations.append(what)

    def check(self, holds: bool, what: str) -> bool:
        """Violate unless `holds`."""
        if not holds:
            self.violate(what)
        return holds

    @property
    def passed(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        return {
            "campaign": self.campaign,
            "seed": self.seed,
            "count": self.count,
            "passed": self.passed,
            **{name: self.counts[name] for name in sorted(self.counts)},
            **{name: round(value, 4) for name, value in self.figures.items()},
            "violations": self.violations[:VIOLATIONS_SHOWN],
        }

    @property
    def command(self) -> str:
        """What repeats this run."""
        return f"larimar campaign {self.campaign} --count {self.count} --seed {self.seed}"

    def report(self) -> str:
        """For a failed test: every count, the first violations, and the command that repeats the run."""
        return f"{json.dumps(self.as_json(), indent=2)}\n{len(self.violations)} violations; repeat with: {self.command}"
