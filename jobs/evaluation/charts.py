"""What all figures share: one look, colours that colour-blind readers can tell apart, and how points are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

Results = Mapping[str, Any]
DPI: Final = 120
COLOURS: Final = 128
OURS: Final = "larimar-serve"
PAPER_COLOUR: Final = "#555555"

#: Row to (label, colour, marker). Colours are Okabe and Ito's.
ROWS: Final[Mapping[str, tuple[str, str, str]]] = {
    "": (OURS, "#0072B2", "o"),
    "latent": ("larimar-serve, latent codec", "#000000", "*"),
    "unedited": ("unedited model", "#999999", "s"),
    "nearest": ("nearest fact in the prompt", "#E69F00", "^"),
    "all_facts": ("all facts in the prompt", "#56B4E9", "v"),
    "paper": ("paper's memory, pinv", "#009E73", "D"),
    "paper_gaussian": ("paper's memory, Gaussian", "#CC79A7", "P"),
    "fine_tuned": ("fine-tuned", "#D55E00", "X"),
    "recursive": ("paper's recursive read", "#009E73", "D"),
    "recursive_gaussian": ("recursive read, Gaussian", "#CC79A7", "P"),
    "pinv": ("one memory, pinv", "#009E73", "D"),
    "gaussian": ("one memory, Gaussian", "#CC79A7", "P"),
    "fourier": ("one memory, our addresses", "#56B4E9", "v"),
}
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Point:
    """One figure, in percent, with its interval where it has one."""

    value: float
    low: float
    high: float

    @classmethod
    def at(cls, results: Results, key: str) -> Point | None:
        value = results.get(key)
        if not isinstance(value, int | float):
            return None
        low, high = results.get(f"{key}_low", value), results.get(f"{key}_high", value)
        return cls(100 * value, 100 * low, 100 * high)


@contextmanager
def canvas(width: float, height: float, panels: int = 1) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure of this size in inches with panels side by side; one axis of percent unless a chart changes it."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        yield figure, figure.subplots(1, panels, squeeze=False)[0].tolist()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of at most `COLOURS` colours: a third of the size, and nobody sees the difference."""
    raw = BytesIO()
    figure.savefig(raw, dpi=DPI, bbox_inches="tight")
    with Image.open(raw) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def curve(results: Results, place: str, row: str, measure: str) -> list[tuple[int, Point]]:
    """All points of a row whose measure holds a number: "#" in `measure` stands for it. In order of the number."""
    start = f"{place}.{row}." if row else f"{place}."
    pattern = re.compile(re.escape(start) + re.escape(measure).replace(r"\#", r"(\d+)"))
    found = {int(match[1]): Point.at(results, key) for key in results if (match := pattern.fullmatch(key))}
    return [(number, point) for number, point in sorted(found.items()) if point is not None]


def draw_curves(axes: Axes, results: Results, place: str, measure: str) -> bool:
    """A line with its intervals for each row. Returns whether there is anything to see."""
    drawn = False
    for row, (label, colour, marker) in ROWS.items():
        points = curve(results, place, row, measure)
        if not points:
            continue
        drawn = True
        numbers = [number for number, _ in points]
        errors = [[p.value - p.low for _, p in points], [p.high - p.value for _, p in points]]
        values = [point.value for _, point in points]
        axes.errorbar(numbers, values, errors, color=colour, marker=marker, label=label, ms=5, lw=1.6, elinewidth=0.8)
    return drawn


def draw_paper(axes: Axes, points: Mapping[float, float], label: str, style: str = "--") -> None:
    """Shares of the paper at numbers: hollow points, grey, so that nobody takes them for a row of the run."""
    shares = [100 * share for share in points.values()]
    axes.plot(list(points), shares, style, marker="o", mfc="white", color=PAPER_COLOUR, lw=1, ms=5, label=label)


def log_numbers(axes: Axes, numbers: Sequence[int], what: str) -> None:
    """A logarithmic axis that names the numbers there are, and no others."""
    axes.set_xscale("log")
    axes.set_xticks(list(numbers), [f"{number:,}" for number in numbers], rotation=30)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(what)


def percent(axes: Axes, what: str) -> None:
    axes.set_ylim(-3, 103)
    axes.set_ylabel(f"{what}, %")


def key_of(place: str, row: str, measure: str) -> str:
    return f"{place}.{row}.{measure}" if row else f"{place}.{measure}"


def numbered(figures: Mapping[str, float]) -> dict[float, float]:
    """Figures whose names end in a number, by that number."""
    return {float(name.rsplit("_", 1)[1]): value for name, value in figures.items()}


def shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend under all panels, each label once."""
    labels: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=2 * len(panels))
