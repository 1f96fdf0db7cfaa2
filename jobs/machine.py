"""What figures are measured on: processor, cores and the versions that matter."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "ray", "transformers", "larimar-serve")}
    return {
        "machine": f"{os.cpu_count()} cores, {processor()}, Python {platform.python_version()}",
        **{name.replace("-", "_"): version for name, version in versions.items()},
    }


def processor() -> str:
    """The name of the processor, as its maker has it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
