"""What comes back through a memory: held-out sentences, written in episodes of several sizes and read one by one."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from jobs.codec.rows import Row
from jobs.codec.training import CodecTrainer

SIZES = (1, 16, 128, 512)
_SENTENCES = 512  # of one size
_PASS = 64  # sentences decoded side by side


def reconstruction(
    trainer: CodecTrainer,
    held_out: Sequence[Row],
    sizes: Sequence[int] = SIZES,
    sentences: int = _SENTENCES,
    listen: Callable[[int], None] = lambda _done: None,
) -> dict[str, dict[str, float]]:
    """By episode size, shares of the same sentences: `token`, `exact`, `spelled`, `nearest`; see `CodecTrainer`.

    A token counts if it is the likeliest after the true ones before it; so a whole sentence counts exactly when greedy
    decoding gives it. Sizes above the number of sentences are left out.
    """
    chosen = random.Random(0).sample(list(held_out), min(sentences, len(held_out)))  # noqa: S311 - reproducible
    found: dict[str, dict[str, float]] = {}
    for size in [size for size in sizes if size <= len(chosen)]:
        whole = len(chosen) // size * size
        sums: defaultdict[str, float] = defaultdict(float)
        for start in range(0, whole, size):
            episode = chosen[start : start + size]
            for name, value in trainer.rebuilt(episode, _PASS).items():
                sums[name] += value * len(episode)
            listen(len(episode))
        found[str(size)] = {name: round(value / whole, 4) for name, value in sums.items()}
    return found
