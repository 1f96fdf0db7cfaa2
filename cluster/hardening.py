"""What our processes must not leave behind when they die."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """No core file of this process or of those it starts: it would hold facts and keys in plain bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
