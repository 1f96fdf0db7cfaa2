"""What commands show: tables for people, JSON for programs, one line and a documented exit code for refusals.

Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from cluster.startup_events import Event, StageReached
from memory_actor.errors import LarimarError

if TYPE_CHECKING:
    from rich.progress import Progress

P = ParamSpec("P")
R = TypeVar("R")

WIDTH_WITHOUT_TERMINAL = 160


class Format(StrEnum):
    """How results are shown."""

    TABLE = "table"
    JSON = "json"


class Exit(IntEnum):
    """Exit codes of all commands."""

    OK = 0
    FAILED = 1
    USAGE = 2
    AUTH = 3
    NOT_FOUND = 4
    CONFLICT = 5
    LIMITS = 6
    UNAVAILABLE = 7
    DAMAGED = 8


_BY_STATUS = {
    400: Exit.USAGE,
    401: Exit.AUTH,
    403: Exit.AUTH,
    404: Exit.NOT_FOUND,
    409: Exit.CONFLICT,
    410: Exit.NOT_FOUND,
    413: Exit.LIMITS,
    415: Exit.USAGE,
    422: Exit.USAGE,
    429: Exit.LIMITS,
    503: Exit.UNAVAILABLE,
    504: Exit.UNAVAILABLE,
    507: Exit.LIMITS,
}
_BY_CODE = {
    "memory_capacity_exceeded": Exit.LIMITS,
    "text_too_long": Exit.LIMITS,
    "settings_invalid": Exit.USAGE,
    "exposure_refused": Exit.USAGE,
    "already_running": Exit.CONFLICT,
    "port_taken": Exit.CONFLICT,
    "model_missing": Exit.NOT_FOUND,
    "tenant_quarantined": Exit.DAMAGED,
    "checkpoint_damaged": Exit.DAMAGED,
    "ledger_corrupt": Exit.DAMAGED,
    "vault_locked": Exit.DAMAGED,
    "receipt_invalid": Exit.FAILED,
    "ledger_server_unusable": Exit.UNAVAILABLE,
}


def exit_code(code: str, status: int) -> Exit:
    """The exit code for an error's `code` and HTTP status."""
    return _BY_CODE.get(code, _BY_STATUS.get(status, Exit.FAILED))


class Output:
    """Where one command writes."""

    def __init__(self, form: Format) -> None:
        self.form = form
        width = None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
        self.console = Console(width=width, soft_wrap=False, highlight=False)
        self.errors = Console(stderr=True, highlight=False)

    @property
    def json(self) -> bool:
        return self.form is Format.JSON

    def show_json(self, value: Any) -> None:
        self.console.out(json.dumps(value, ensure_ascii=False, indent=2), highlight=False)

    def fields(self, values: Mapping[str, Any], title: str | None = None) -> None:
        """One record: a JSON object, or a table of names and values."""
        if self.json:
            self.show_json(dict(values))
            return
        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(name.replace("_", " "), _cell(value))
        self.console.print(table)

    def rows(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Records: a JSON list with all fields, or a table of `columns`."""
        rows = list(rows)
        if self.json:
            self.show_json([dict(row) for row in rows])
            return
        table = Table()
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        self.console.print(table)

    def note(self, text: str) -> None:
        """A remark beside the result, on stderr."""
        self.errors.print(text, markup=False)

    def refuse(self, code: str, message: str, more: Mapping[str, Any] | None = None) -> None:
        """An error, on stderr in the form asked for."""
        if self.json:
            self.errors.out(json.dumps({"code": code, "detail": message, **(more or {})}), highlight=False)
        else:
            self.errors.print(f"error: {message}", style="red", markup=False, soft_wrap=True)

    @contextmanager
    def start_progress(self) -> Iterator[Callable[[Event], None]]:
        """A listener for the events of a starting system: a live bar, or plain lines without a terminal."""
        if not self.errors.is_terminal:
            yield _StageLines(self.errors)
            return
        with progress_bar(self.errors) as progress:
            yield _StageBar(progress)


class _StageBar:
    """One line per stage with its elapsed time; the share when it is known."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = ""
        self._task: Any = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, StageReached):
            return
        if event.stage != self._stage:
            if self._task is not None:
                self._progress.update(self._task, total=1.0, completed=1.0)
            self._stage = event.stage
            self._task = self._progress.add_task(event.stage, total=None)
        if event.share is not None:
            self._progress.update(self._task, total=1.0, completed=event.share)


class _StageLines:
    """One plain line per stage, with the seconds since the beginning."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageReached) and event.stage != self._stage:
            self._stage = event.stage
            self._console.print(f"{time.monotonic() - self._began:6.1f} s  {event.stage}", markup=False)


def progress_bar(console: Console) -> Progress:
    """A live display with description, bar, share and elapsed time."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - slow

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_cell(item)}" for name, item in value.items())
    return str(value)


def reporting(command: Callable[P, R]) -> Callable[P, R]:
    """Turn expected failures of a command into a message and its exit code. The command has an `output` parameter."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            code = _explain(Output(Format(str(kwargs.get("output", Format.TABLE)))), error)
            if code is None:
                raise
            raise typer.Exit(int(code)) from None

    return wrapped


def _explain(output: Output, error: Exception) -> Exit | None:
    """Say what went wrong and choose the exit code; None for a bug, which deserves its traceback."""
    from httpx2 import TransportError  # noqa: PLC0415 - only commands that fail pay for the import

    from cluster.client import ApiError  # noqa: PLC0415
    from cluster.credentials import CredentialsDamaged  # noqa: PLC0415
    from cluster.launcher import StartRefused  # noqa: PLC0415

    if isinstance(error, ApiError):
        output.refuse(error.code, str(error), {"problem": error.problem.model_dump(exclude_none=True)})
        return exit_code(error.code, error.status)
    if isinstance(error, StartRefused):
        output.refuse(error.args[0], str(error))
        return exit_code(error.args[0], 0)
    if isinstance(error, LarimarError):
        output.refuse(error.code, str(error))
        return exit_code(error.code, error.http_status)
    if isinstance(error, TransportError):
        output.refuse("unreachable", f"no answer from the server ({error}); is it running? 'larimar up' starts one")
        return Exit.UNAVAILABLE
    if isinstance(error, CredentialsDamaged):
        output.refuse("credentials_damaged", str(error))
        return Exit.FAILED
    return None
