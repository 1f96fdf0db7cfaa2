"""The figures of a run as PNG: the paper's, in our form. What was not measured is not drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.evaluation.charts import (
    PAPER_COLOUR,
    ROWS,
    Point,
    Results,
    canvas,
    draw_curves,
    draw_paper,
    key_of,
    log_numbers,
    numbered,
    percent,
    save,
    shared_legend,
)
from jobs.evaluation.paper_rows import PAPER_ROWS
from jobs.evaluation.run_folder import RunFolder

_EDITS: Final = {"counterfact": "1 edit in memory", "counterfact_2000": "2,000 edits in memory"}
_SUCCESSES: Final = {
    "edit_success": "edit",
    "rephrase_success": "rephrase",
    "rephrase_distractor_success": "sentence\nin front",
    "neighbourhood_success": "neighbours",
}


def draw(folder: RunFolder, results: Results) -> list[str]:
    """Write every figure there is data for to `folder`/figures. Returns their names, without ".png"."""
    place = folder.path / "figures"
    place.mkdir(parents=True, exist_ok=True)
    names = []
    for name, make in FIGURES.items():
        figure = make(results, folder)
        path = place / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        save(figure, path)
        names.append(name)
    return names


# -- edits ------------------------------------------------------------------------------------------------------------


def counterfact(results: Results, _: RunFolder) -> Figure | None:
    """Success by kind of prompt, a bar for each row, with one edit in memory and with 2,000."""
    places = _measured(results, _EDITS)
    if not places:
        return None
    with canvas(5.2 * len(places), 3.6, len(places)) as (figure, panels):
        for axes, place in zip(panels, places, strict=True):
            _bars(axes, results, place)
            axes.set_title(_EDITS[place], fontsize=10)
        percent(panels[0], "likelier than the other answer")
        shared_legend(figure, panels)
        return figure


def _bars(axes: Axes, results: Results, place: str) -> None:
    rows = [row for row in ROWS if key_of(place, row, "edit_success") in results]
    width = 0.8 / max(1, len(rows))
    for turn, row in enumerate(rows):
        label, colour, _ = ROWS[row]
        for position, measure in enumerate(_SUCCESSES):
            point = Point.at(results, key_of(place, row, measure))
            if point is None:
                continue
            x = position + (turn - (len(rows) - 1) / 2) * width
            error = [[point.value - point.low], [point.high - point.value]]
            axes.bar(x, point.value, width, color=colour, label=label if position == 0 else None)
            axes.errorbar(x, point.value, yerr=error, color="black", lw=0.8, capsize=1.5)
    percent(axes, "")
    axes.set_ylabel("")
    axes.set_xticks(range(len(_SUCCESSES)), list(_SUCCESSES.values()))
    axes.grid(visible=False, axis="x")


def locality(results: Results, _: RunFolder) -> Figure | None:
    """Rephrasings that follow the edit against neighbours that stay: an edit should be in the upper right."""
    places = _measured(results, _EDITS)
    if not places:
        return None
    with canvas(4.6 * len(places), 4.2, len(places)) as (figure, panels):
        for axes, place in zip(panels, places, strict=True):
            for row, (label, colour, marker) in ROWS.items():
                x = Point.at(results, key_of(place, row, "neighbourhood_success"))
                y = Point.at(results, key_of(place, row, "rephrase_success"))
                if x is not None and y is not None:
                    error = [[[p.value - p.low], [p.high - p.value]] for p in (x, y)]
                    axes.errorbar(
                        x.value,
                        y.value,
                        xerr=error[0],
                        yerr=error[1],
                        color=colour,
                        fmt=marker,
                        ms=7,
                        lw=1,
                        label=label,
                    )
            base = Point.at(results, f"{place}.base_neighbourhood_success")
            if base is not None:
                axes.axvline(base.value, color="#999999", lw=1, ls=":", label="neighbours, unedited")
            _paper_edits(axes, place)
            axes.set_title(_EDITS[place], fontsize=10)
            axes.set_xlabel("neighbours keep their answer, %")
            percent(axes, "rephrasings follow the edit")
        shared_legend(figure, panels)
        return figure


def _paper_edits(axes: Axes, place: str) -> None:
    """The paper's own rows, one edit at a time: hollow, on other models."""
    rows = (
        [row for row in PAPER_ROWS["counterfact"] if row.model.startswith("Larimar")] if place == "counterfact" else []
    )
    for row in rows:
        x, y = 100 * row.figures["neighbourhood_success"], 100 * row.figures["rephrase_success"]
        label = "paper's Larimar, other models" if row is rows[0] else None
        axes.plot(x, y, "o", mfc="white", color=PAPER_COLOUR, label=label)


def sequential(results: Results, _: RunFolder) -> Figure | None:
    """How past edits fare while the edits go on: read back, and said."""
    with canvas(9.6, 3.6, 2) as (figure, panels):
        read = draw_curves(panels[0], results, "sequential", "recall_#")
        said = draw_curves(panels[1], results, "sequential", "generation_#")
        if not (read or said):
            return None
        for axes, what in zip(panels, ("past edits read back whole", "answer contains the target"), strict=True):
            log_numbers(axes, (1, 10, 50, 200, 1000, 2000), "edits in a row")
            percent(axes, what)
        shared_legend(figure, panels)
        return figure


# -- many facts -------------------------------------------------------------------------------------------------------


def batch(results: Results, _: RunFolder) -> Figure | None:
    """Facts written together and read back whole."""
    with canvas(5.6, 3.6) as (figure, (axes,)):
        if not draw_curves(axes, results, "batch", "recall_#"):
            return None
        (paper,) = PAPER_ROWS["batch"]
        draw_paper(axes, numbered(paper.figures), "paper: Larimar-6B, K = 512")
        log_numbers(axes, (512, 1024, 4096, 10_000), "facts written")
        percent(axes, "facts read back whole")
        shared_legend(figure, (axes,))
        return figure


def capacity(results: Results, _: RunFolder) -> Figure | None:
    """Facts per address of one linear memory, and of ours, which opens another shard."""
    size = max((int(key[10:].split("_")[0]) for key in results if key.startswith("capacity.k")), default=None)
    if size is None:
        return None
    with canvas(9.6, 3.6, 2) as (figure, panels):
        for axes, measure, what in zip(
            panels, ("recall", "cosine"), ("facts read back whole", "cosine of readout and fact"), strict=True
        ):
            draw_curves(axes, results, "capacity", f"k{size}_n#.{measure}")
            log_numbers(axes, [size // 2, size, 2 * size, 4 * size], f"facts in K = {size} addresses")
            percent(axes, what)
        panels[1].set_ylabel("cosine of readout and fact, x 100")
        (paper,) = PAPER_ROWS["capacity"]
        points = {ratio * size: share for ratio, share in numbered(paper.figures).items()}
        draw_paper(panels[0], points, "paper: Larimar-6B")
        shared_legend(figure, panels)
        return figure


def forget(results: Results, _: RunFolder) -> Figure | None:
    """Forgotten facts that are recalled after all, and retained ones that still are."""
    with canvas(9.6, 3.6, 2) as (figure, panels):
        for axes, measure in zip(panels, ("forgotten", "retained"), strict=True):
            if not draw_curves(axes, results, "forget", f"n_#.{measure}"):
                return None
            rows = [row for row in PAPER_ROWS["forget"] if row.model.startswith("Larimar-6B")]
            points = {512.0 * turn: row.figures[measure] for turn, row in enumerate(rows, 1)}
            draw_paper(axes, points, "paper: Larimar-6B, K = 512")
            log_numbers(axes, (1, 512, 1024, 4096), "facts written, half of them forgotten")
            percent(axes, f"{measure} facts recalled")
        shared_legend(figure, panels)
        return figure


def context(results: Results, _: RunFolder) -> Figure | None:
    """One of n facts, asked for in other words, and what the decoder says."""
    with canvas(9.6, 4.2, 2) as (figure, panels):
        read = draw_curves(panels[0], results, "context", "recall_#")
        said = draw_curves(panels[1], results, "context", "generation_#")
        if not (read or said):
            return None
        # GPT-NeoX-20B and Llama2-13B lie below Mistral-7B; they are in the report's table.
        shown = [row for row in PAPER_ROWS["context"] if row.model.startswith(("Larimar", "Mistral", "Supersizing"))]
        for row, style in zip(shown, ("-", "-.", "--", ":"), strict=True):
            draw_paper(panels[0], numbered(row.figures), f"paper: {row.model}", style)
        for axes, what in zip(panels, ("facts recalled whole", "answer contains the fact's"), strict=True):
            log_numbers(axes, (64, 256, 1000, 10_000, 100_000), "facts in memory")
            percent(axes, what)
        shared_legend(figure, panels)
        return figure


# -- the gate, and time -----------------------------------------------------------------------------------------------


def scope(results: Results, folder: RunFolder) -> Figure | None:
    """Scores of what should be let in and what should not, one fact stored; and every threshold there could be."""
    scores: dict[str, dict[str, list[float]]] = {}
    for item in folder.experiment("scope").items():
        if "score_1" in item:
            scores.setdefault(item["row"], {}).setdefault(item["kind"], []).append(item["score_1"])
    ours = scores.get("larimar", {})
    if "rephrase" not in ours or "neighbour" not in ours:
        return None
    with canvas(9.6, 3.8, 2) as (figure, (left, right)):
        verified = results["scope.threshold"] != results.get("scope.cosine_threshold", results["scope.threshold"])
        bins = np.linspace(0.0 if verified else -0.2, 1.0, 49).tolist()
        for kind, colour in (("rephrase", "#0072B2"), ("neighbour", "#D55E00"), ("same_subject", "#E69F00")):
            if kind in ours:
                left.hist(ours[kind], bins, density=True, color=colour, alpha=0.55, label=kind.replace("_", " "))
        left.axvline(results["scope.threshold"], color="black", lw=1, ls="--", label="threshold")
        left.set_xlabel(
            "match of query and fact, 0 where the cosine is too low" if verified else "cosine of query and fact"
        )
        left.set_ylabel("density")
        if verified:
            left.set_yscale("log")  # most matches are nearly 0 or 1
        left.legend()
        for row, kinds in scores.items():
            row_name = "" if row == "larimar" else row
            _roc(right, kinds, results[key_of("scope", row_name, "threshold")], row_name)
        right.set_xlabel("neighbours let in, %")
        right.set_xscale("symlog", linthresh=1)
        right.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        percent(right, "rephrasings let in")
        right.legend(title="every threshold; marked: the one used", loc="lower right")
        return figure


def _roc(axes: Axes, kinds: Mapping[str, list[float]], threshold: float, row: str) -> None:
    label, colour, marker = ROWS[row]
    inside, outside = np.sort(kinds["rephrase"]), np.sort(kinds["neighbour"])
    every = np.append(np.unique(np.concatenate([inside, outside])), threshold)
    accepted = 100 * (1 - np.searchsorted(inside, every) / len(inside))
    let_in = 100 * (1 - np.searchsorted(outside, every) / len(outside))
    axes.plot(let_in[:-1], accepted[:-1], color=colour, lw=1.6, label=label)
    axes.plot(let_in[-1], accepted[-1], marker=marker, color=colour, ms=8)


def wallclock(results: Results, _: RunFolder) -> Figure | None:
    """Milliseconds of one edit on a logarithmic axis, the paper's on its own machine beside ours."""
    ours = {
        "encode": "wallclock.encode_ms",
        "durable write": "wallclock.write_ms",
        "one edit": "wallclock.edit_ms",
        "query: search and read": "wallclock.query_ms",
        "query: verify": "wallclock.verify_ms",
        "fine-tuning on the edit": "wallclock.finetune_ms",
    }
    measured = [(label, float(results[key])) for label, key in ours.items() if key in results]
    if not measured:
        return None
    papers = [(f"paper: {row.model} ({row.where})", row.figures["edit_ms"]) for row in PAPER_ROWS["wallclock"]]
    with canvas(7.2, 3.8) as (figure, (axes,)):
        for position, (label, value) in enumerate([*measured, *papers]):
            ours_too = position < len(measured)
            colour = "#D55E00" if "fine-tuning" in label else "#0072B2"
            face, edge = (colour, colour) if ours_too else ("white", PAPER_COLOUR)
            axes.barh(position, value, color=face, edgecolor=edge)
            number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            axes.annotate(f" {number}", (value, position), va="center", fontsize=9)
        axes.set_yticks(range(len(measured) + len(papers)), [label for label, _ in [*measured, *papers]])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel("milliseconds; hollow: the paper's, on one A100")
        axes.grid(visible=False, axis="y")
        return figure


FIGURES: Final[Mapping[str, Callable[[Results, RunFolder], Figure | None]]] = {
    "counterfact": counterfact,
    "locality": locality,
    "sequential": sequential,
    "batch": batch,
    "capacity": capacity,
    "forget": forget,
    "context": context,
    "scope": scope,
    "wallclock": wallclock,
}


def _measured(results: Results, places: Mapping[str, str]) -> list[str]:
    return [place for place in places if f"{place}.edit_success" in results]
