"""Named moments at which the crash campaigns stop, fail or repeat the process. Inert unless a harness installs a hook.

The names are a contract with `tests/crash`: each is passed by the code that it names, and the campaign fails when one
of them is never reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

CRASH_POINTS: Final = (
    # one group commit
    "keys.before_commit",
    "keys.after_commit",
    "log.before_begin",
    "log.rows_written",
    "log.after_commit_before_apply",
    "log.after_apply_before_reply",
    # taking over a ledger
    "epoch.before_slot",
    "epoch.after_slot",
    "recover.mid_replay",
    # one checkpoint
    "snap.tmp_partial",
    "snap.before_fsync",
    "snap.before_rename",
    "snap.before_dirfsync",
    "manifest.before_publish",
    "manifest.after_publish",
    "mark.before",
    # one erasure
    "erase.before_key",
    "erase.after_key",
    "erase.after_checkpoints",
    "erase.mid_file_delete",
    "truncate.before",
    "truncate.after",
    "erase.before_done",
    # one restore, one migration
    "restore.mid_copy",
    "migrate.mid_copy",
)

_hook: Callable[[str], None] | None = None


def reached(name: str) -> None:
    """Tell the harness, if there is one, that this moment has come; it may raise OSError or end the process."""
    if _hook is not None:
        _hook(name)


def install(hook: Callable[[str], None] | None) -> None:
    """Call `hook(name)` at each moment from now on; None takes it away. For crash campaigns only."""
    global _hook  # noqa: PLW0603 - one process, one campaign
    _hook = hook
