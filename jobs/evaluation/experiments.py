"""The experiments by name: what each shows, what it needs, and how much of it is measured unless one asks for more."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from jobs.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from jobs.evaluation.lab import Lab


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment: the module `jobs.evaluation.NAME`, which has `run(lab) -> Outcome`.

    limit: what `--limit` is unless it is given; together these are meant to fit 90 minutes on 2 cores. None: all of it.
    many: whether `--in-memory` says how many edits are live at once.
    """

    what: str
    needs: Literal["records", "questions", "nothing"]
    limit: int | None
    many: bool = False


EXPERIMENTS: Final[Mapping[str, Experiment]] = MappingProxyType(
    {
        "counterfact": Experiment("CounterFact edits, alone in memory or many at once", "records", 300, many=True),
        "zsre": Experiment("zsRE questions, edited one after another", "questions", 500),
        "sequential": Experiment("past edits asked for while the edits go on", "records", 2_000),
        "batch": Experiment("512 to 10,000 facts written, each asked for", "nothing", None),
        "forget": Experiment("facts forgotten exactly, the others kept", "nothing", None),
        "leakage": Experiment("attacks on answers that were blocked or forgotten", "records", 8),
        "context": Experiment("64 to 100,000 facts in memory, one asked for", "nothing", None),
        "capacity": Experiment("N facts in K addresses, three ways of addressing", "nothing", None),
        "wallclock": Experiment("one edit, beside fine-tuning", "records", None),
        "scope": Experiment("what the gate lets in and what not", "records", 300),
    }
)
MANY: Final = 2_000  # edits in memory at once, for the second run of `all`


@dataclass(frozen=True, slots=True)
class Planned:
    """One experiment of one size, and the name its figures go by when several are reported together."""

    experiment: str
    in_memory: int

    @property
    def name(self) -> str:
        return self.experiment if self.in_memory == 1 else f"{self.experiment}_{self.in_memory}"

    @property
    def entry(self) -> Experiment:
        return EXPERIMENTS[self.experiment]

    def run(self, lab: Lab) -> Outcome:
        """Raises: what the experiment raises."""
        # Imported when it runs: what one experiment needs, another does not.
        found: Outcome = importlib.import_module(f"jobs.evaluation.{self.experiment}").run(lab)
        return found.renamed(self.name) if self.name != found.name else found


def everything() -> Iterator[Planned]:
    """What `larimar eval all` runs, in this order."""
    for name, entry in EXPERIMENTS.items():
        yield Planned(name, 1)
        if entry.many:
            yield Planned(name, MANY)
