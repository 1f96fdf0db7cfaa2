"""docs/results.md, made from docs/results.json: our rows, the baselines', the paper's, and where we lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from jobs.evaluation.paper_rows import CITATION, PAPER_ROWS, PaperRow
from jobs.evaluation.report_sections import ROWS, SECTIONS, Column, Section
from jobs.evaluation.targets import TARGETS, Target
from workers.codec_card import TOKEN_CODEC

Results = Mapping[str, Any]
NOT_MEASURED: Final = "not measured"
OURS: Final = "larimar-serve"
PAPER_NOTE: Final = (
    "*Rows in italics are the paper's: other models, another machine, CounterFact's full form, gates that saw the "
    "candidate answers. They are no baselines of this run.*"
)
INTRODUCTION: Final = (
    "Generated from `docs/results.json`, which `larimar eval` wrote; nothing is typed in by hand. How it is "
    "measured and what every key means is in [evaluation.md](evaluation.md). The CounterFact here is its *reduced "
    'form*, whose "rephrase" is mostly a generation prompt of the original: these are not the published paraphrase '
    "scores."
)
#: Shown in the README; the rest is in the report.
HEADLINES: Final = (
    "counterfact.edit_success",
    "counterfact.rephrase_success",
    "counterfact.neighbourhood_success",
    "counterfact.generation_rephrase",
    "counterfact.changed_out_of_scope",
    "counterfact_2000.rephrase_success",
    "zsre.f1_all_edits",
    "batch.recall_10000",
    "forget.forgotten",
    "forget.retained",
    "context.recall_10000",
    "scope.private_answered",
    "wallclock.finetune_ms",
)


def markdown(results: Results) -> str:
    """The whole page. What is absent from `results` is said to be not measured."""
    parts = [
        "# Results",
        INTRODUCTION,
        "## Targets",
        target_table(TARGETS, results),
        *(part for section in SECTIONS for part in _section(section, results)),
        "## Where we lose",
        "\n".join(losses(results)),
        "## Machine and commands",
        *_provenance(results),
        f"The paper: {CITATION}.",
    ]
    return "\n\n".join(parts) + "\n"


def readme_markdown(results: Results) -> str:
    """The README's table: the headlines, and how many targets were missed."""
    shown = [target for target in TARGETS if target.key in HEADLINES]
    measured = [(target, value) for target in TARGETS if (value := target.value(results)) is not None]
    missed = sum(target.missed_by(value) > 0 for target, value in measured)
    counted = f"Of {len(TARGETS)} targets {len(measured)} were measured and {missed} missed."
    return "\n".join([target_table(shown, results), "", counted])


def target_table(targets: Sequence[Target], results: Results) -> str:
    lines = ["| measure | ours | 95 % interval | target | met |", "|---|---:|---:|---:|:-:|"]
    group = ""
    for target in targets:
        value = target.value(results)
        what = f"… {target.what}" if target.group == group else f"{target.group}: {target.what}"
        group = target.group
        bar = bar_text(target)
        if value is None:
            lines.append(f"| {what} | {NOT_MEASURED} | | {bar} | |")
            continue
        interval = target.interval(results)
        shown = f"{_percent(interval[0])}-{_percent(interval[1])} %" if interval and target.unit == "%" else ""
        lines.append(f"| {what} | {in_unit(value, target.unit)} | {shown} | {bar} | {_verdict(target, value)} |")
    return "\n".join(lines)


def losses(results: Results) -> Iterator[str]:
    """One line for each missed target, and for each baseline of the same run that beats our row in a measure."""
    found = False
    for target in TARGETS:
        value = target.value(results)
        if value is not None and target.missed_by(value) > 0:
            found = True
            figure = f"{in_unit(value, target.unit)} ({_short_of(target, value)})"
            yield f"- Target missed: {target.group}, {target.what}: {figure}."
    for section in SECTIONS:
        for column in (column for table in section.tables for column in table.columns):
            for row in _baselines(section.place, (column,), results):
                better = _beats(section.place, row, column, results)
                if better:
                    found = True
                    yield f"- {section.title}, {column.heading}: {ROWS[row]} is better, {better}."
    if not found:
        yield f"- {'Nowhere in what was measured.' if results else NOT_MEASURED.capitalize() + '.'}"


# -- one experiment ---------------------------------------------------------------------------------------------------


def _section(section: Section, results: Results) -> Iterator[str]:
    yield f"## {section.title}"
    own = {key for key in results if key.startswith(f"{section.place}.")}
    if not own:
        yield f"{section.text} {NOT_MEASURED.capitalize()}."
        return
    sizes = [f"n = {results[key]:,}" for key in (f"{section.place}.n",) if isinstance(results.get(key), int)]
    yield " ".join([section.text, *(f"{size}." for size in sizes)])
    paper_shown = False
    for table in section.tables:
        columns = [column for column in table.columns if _rows_with(section.place, (column,), results)]
        if not columns:
            continue
        papers = [row for row in PAPER_ROWS.get(section.paper, ()) if any(c.measure in row.figures for c in columns)]
        paper_shown = paper_shown or bool(papers)
        if table.caption:
            yield table.caption
        yield _table(section, columns, papers, results)
    if paper_shown:
        yield PAPER_NOTE
    for picture in section.pictures:
        if picture in results.get("figures", ()):
            yield f"![{section.title}: {picture}](figures/{picture}.png)"


def _table(section: Section, columns: Sequence[Column], papers: Sequence[PaperRow], results: Results) -> str:
    lines = [
        f"| row | {' | '.join(column.heading for column in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for row in _rows_with(section.place, columns, results):
        place = f"{section.place}.{row}" if row else section.place
        label = f"**{OURS}**" if not row else ROWS[row]
        if row and f"{place}.n" in results:
            label += f" (n = {results[f'{place}.n']:,})"
        lines.append(f"| {label} | {' | '.join(_cell(place, column, results) for column in columns)} |")
    for paper in papers:
        cells = [_plain(paper.figures[c.measure], c) if c.measure in paper.figures else "" for c in columns]
        lines.append(f"| *{paper.model} ({paper.where})* | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows_with(place: str, columns: Sequence[Column], results: Results) -> list[str]:
    """The rows that have a figure in any of the columns: "" is ours, always first."""
    ours = [""] if any(_key(place, "", column) in results for column in columns) else []
    return ours + _baselines(place, columns, results)


def _baselines(place: str, columns: Sequence[Column], results: Results) -> list[str]:
    return [row for row in ROWS if any(_key(place, row, column) in results for column in columns)]


def _key(place: str, row: str, column: Column) -> str:
    return f"{place}.{row}.{column.measure}" if row else f"{place}.{column.measure}"


def _cell(place: str, column: Column, results: Results) -> str:
    value = results.get(f"{place}.{column.measure}")
    if not isinstance(value, int | float):
        return ""
    low, high = (results.get(f"{place}.{column.measure}_{end}") for end in ("low", "high"))
    if low is None or high is None or column.unit != "%":
        return _plain(value, column)
    return f"{_percent(value)} ({_percent(low)}-{_percent(high)})"


def _plain(value: float, column: Column) -> str:
    if column.unit in {"%", "share"}:
        return _percent(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _beats(place: str, row: str, column: Column, results: Results) -> str:
    """ "theirs against ours" when a row's figure is better than our own, else ""."""
    ours, theirs = results.get(_key(place, "", column)), results.get(_key(place, row, column))
    if row == "unedited" and "changed" in column.measure:
        return ""  # nothing changes there by definition
    if column.better is None or not isinstance(ours, int | float) or not isinstance(theirs, int | float):
        return ""
    if (theirs > ours) if column.better == "high" else (theirs < ours):
        return f"{_plain(theirs, column)} against {_plain(ours, column)}"
    return ""


# -- figures in words -------------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    """A share in percent; small misses of 100 and of 0 stay visible."""
    percent = 100 * share
    near_an_end = 0 < percent < 0.1 or 99.9 < percent < 100
    return f"{percent:.2f}" if near_an_end else f"{percent:.1f}"


def in_unit(value: float, unit: str) -> str:
    """A figure in the unit of its target; see `Target`."""
    if unit == "%":
        return f"{_percent(value)} %"
    if unit == "points":
        return f"{100 * value:+.1f} points"
    return f"{value:,.0f} {unit}"


def bar_text(target: Target) -> str:
    return f"{'≤' if target.at_most else '≥'} {in_unit(target.bar, target.unit)}"


def _short_of(target: Target, value: float) -> str:
    missed = target.missed_by(value)
    if target.unit in {"%", "points"}:
        return f"by {_percent(missed)} points"
    return f"by {missed:,.0f} {target.unit}"


def _verdict(target: Target, value: float) -> str:
    return "yes" if target.missed_by(value) == 0 else f"**no**, {_short_of(target, value)}"


def _provenance(results: Results) -> Iterator[str]:
    settings: Mapping[str, Mapping[str, Any]] = results.get("settings", {})
    if not settings:
        yield f"{NOT_MEASURED.capitalize()}."
        return
    yield (
        f"Machine: {results['machine']}; larimar-serve {results['larimar_serve']}, torch {results['torch']}, "
        f"ray {results['ray']}, transformers {results['transformers']}."
    )
    lines = ["| experiment | command | seconds | data, SHA-256 | encoder |", "|---|---|---:|---|---|"]
    for name, one in settings.items():
        data = f"{one['data']} `{one['data_sha256'][:12]}`" if one["data"] else "none"
        seconds = results[f"{name}.seconds"]
        lines.append(f"| {name} | `{command(one)}` | {seconds:,.0f} | {data} | `{one['encoder']}` |")
    yield "\n".join(lines)


def command(settings: Mapping[str, Any]) -> str:
    """What runs one experiment again."""
    words = [f"larimar eval {settings['experiment']}"]
    words += [f"--data {settings['data']}"] if settings["data"] else []
    words += [f"--limit {settings['limit']}"] if settings["limit"] is not None else []
    words += [f"--in-memory {settings['in_memory']}"] if settings["in_memory"] != 1 else []
    codec = settings.get("codec", TOKEN_CODEC)  # absent from results of before there was another
    words += [f"--codec {codec}"] if codec != TOKEN_CODEC else []
    words += [f"--rows {settings['rows']}"] if settings["rows"] != "all" else []
    words += [f"--seed {settings['seed']}"] if settings["seed"] else []
    return " ".join(words)
