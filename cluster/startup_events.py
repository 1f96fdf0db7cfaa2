"""What a starting system tells whoever waits for it: events as JSON lines over a pipe, or straight to a listener.

The pipe keeps the admin key off the disk and out of the process list.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class StageReached:
    """Work on `stage` has begun or progressed; `share` (0 to 1) is None when it cannot be known."""

    stage: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The system answers. `admin_key` is set only when it was made in this start."""

    url: str
    admin_key: str | None
    start_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The system does not start; `code` and `message` are those of the error."""

    code: str
    message: str


Event = StageReached | Ready | Failed
Listener = Callable[[Event], None]

_KINDS: dict[str, type[Any]] = {"stage": StageReached, "ready": Ready, "failed": Failed}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class PipeWriter:
    """A Listener that writes to an inherited descriptor. A reader that has gone away is not an error."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # Ray's processes must not hold the pipe open
        self._descriptor = descriptor

    def __call__(self, event: Event) -> None:
        line = json.dumps({"kind": _NAMES[type(event)], **asdict(event)}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, line.encode())

    def close(self) -> None:
        """Tell the reader that nothing more will come."""
        os.close(self._descriptor)


def read_events(file: IO[str]) -> Iterator[Event]:
    """The events of the other end, until it closes the pipe or dies."""
    for line in file:
        fields = json.loads(line)
        yield _KINDS[fields.pop("kind")](**fields)
