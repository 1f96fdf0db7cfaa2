"""What both workers set up in their own process before a model is loaded."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; other names are taken as they are."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def quiet_transformers() -> None:
    """No progress bars and no advice on stderr: workers log events, not decoration."""
    from transformers.utils import logging  # noqa: PLC0415 - slow import, wanted only where a model is loaded

    logging.disable_progress_bar()
    logging.set_verbosity_error()
