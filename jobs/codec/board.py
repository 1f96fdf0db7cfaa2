"""What the processes of a training say of themselves, in an actor that imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Board:
    """Who runs, how often they were started, and how far they are."""

    pids: dict[int, int] = field(default_factory=dict)
    starts: int = 0
    latest: tuple[int, float, float] = (0, 0.0, 0.0)

    def started(self, rank: int, pid: int) -> None:
        self.pids[rank] = pid
        self.starts += rank == 0

    def stepped(self, steps: int, share: float, loss: float) -> None:
        self.latest = (steps, share, loss)

    def read(self) -> Board:
        return self
