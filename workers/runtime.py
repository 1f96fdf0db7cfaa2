"""What both workers set up in their own process before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Below this many tokens a second thread saves nothing (measured on MiniLM and SmolLM2), and its waiting for work takes
# a core from the processes that bring it.
SMALL_PASS_TOKENS = 128


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


@contextmanager
def threads_for(tokens: int) -> Iterator[None]:
    """Run a pass over so many tokens on one thread if it is small, else on as many as torch is set to."""
    threads = torch.get_num_threads()
    if tokens >= SMALL_PASS_TOKENS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
