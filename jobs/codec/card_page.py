"""The card of the shipped latent codec as documentation: the tables of docs/latent.md.

python -m jobs.codec.card_page        rewrites them from workers/latent_smollm2_135m/card.json
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.codec_card import LATENT_CODEC, read_codec

PAGE = Path(__file__).parents[2] / "docs" / "latent.md"
_TARGET = "≥ 60 % of tokens with 16 in memory, trained on two cores; ≥ 95 % of sentences, trained on a data-centre GPU"


def markdown(card: dict[str, Any]) -> str:
    """How it was trained, what comes back, how fast a step was; a test holds docs/latent.md to it."""
    return "\n\n".join([_training(card), _reconstruction(card), _throughput(card["throughput"])])


def _training(card: dict[str, Any]) -> str:
    start, sentences, rank = card.get("start"), card["sentences"], card["adapters"]["rank"]
    counts = f"{sentences['training']:,} to train on, {sentences['held_out']:,} of other sources held out"
    rows = [
        ("trained between", f"`{card['encoder']}` and `{card['decoder']}`, both frozen"),
        ("parameters", f"{card['parameters'] / 1e6:.1f} M: queries, slots, adapters of rank {rank}"),
        ("latent", f"C = {card['shape']['latent_size']}, {card['shape']['slots']} slots"),
        ("hardware", card["hardware"]),
        ("this run", _run(card["steps"], card["cpu_minutes"]) + f", {card['wall_hours']:.1f} hours by the clock"),
    ]
    if start is not None:
        rows.append(("begun with", f"a codec of {_run(start['steps'], start['cpu_minutes'])}"))
    rows.append(("sentences", counts))
    return _table(("", "value"), rows)


def _run(steps: int, cpu_minutes: float) -> str:
    return f"{steps:,} steps in {cpu_minutes:.0f} CPU minutes"


def _reconstruction(card: dict[str, Any]) -> str:
    heads = ("in memory", "tokens decoded", "sentences decoded exactly", "tokens that slots spell", "nearest block")
    rows = [
        (size, *(f"{100 * shares[name]:.1f} %" for name in ("token", "exact", "spelled", "nearest")))
        for size, shares in card["reconstruction"].items()
    ]
    return f"{_table(heads, rows)}\n\nTarget: {_TARGET}."


def _throughput(figures: dict[str, float]) -> str:
    rate = figures["flops_per_step"] / figures["seconds_per_step"] / 1e9
    return (
        f"A step is {figures['flops_per_step'] / 1e9:,.0f} GFLOP in {figures['seconds_per_step']:.1f} s: {rate:.0f} "
        f"GFLOP/s beside {figures['matmul_flops_per_s'] / 1e9:.0f} of bare products, {figures['share']:.0%} "
        "(target: ≥ 35 %)."
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}" if len(heads) > 2 else "|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def main() -> int:
    """Rewrite the page's block."""
    text = PAGE.read_text(encoding="utf-8")
    block = f"<!-- card -->\n{markdown(read_codec(LATENT_CODEC))}\n<!-- /card -->"
    PAGE.write_text(re.sub(r"<!-- card -->.*<!-- /card -->", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
