"""`larimar eval NAME`: Larimar's experiments on this machine, beside baselines on the same decoder in the same run.

    python -m jobs.evaluate NAME --data FILE|DIR [--limit N] [--in-memory N] [--json FILE] [--out DIR] …
    python -m jobs.evaluate report --out DIR [--docs DIR]

Works in a folder (--out) and goes on where an earlier run in it ended. Exit codes: 0 measured, whatever the figures
are; 1 failed; 2 wrong usage or data; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.settings import BundleSettings
from jobs.evaluation.answer_pool import AnswerPool
from jobs.evaluation.experiments import EXPERIMENTS, MANY, Planned, everything
from jobs.evaluation.figures import draw
from jobs.evaluation.lab import Lab
from jobs.evaluation.records import BadData, EvalData
from jobs.evaluation.report import bar_text, in_unit, markdown
from jobs.evaluation.report_sections import LATENT_ROW, ROWS
from jobs.evaluation.run_folder import RunFolder, Settings, code_version, manifest_version, with_row
from jobs.evaluation.targets import TARGETS
from jobs.machine import machine
from memory_actor.errors import LarimarError
from workers.bundle import Bundle, materialise_bundle
from workers.codec_card import LATENT_CODEC, TOKEN_CODEC

STATE_DIR = Path.home() / ".larimar" / "eval"
FAILED, INTERRUPTED = 1, 130


class BadUsage(ValueError):
    """An option that means nothing here; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the name."""

    data: Path | None
    limit: int | None
    rows: str
    seed: int
    encoder: str
    codec: str
    verify: bool
    workers: int | None
    state_dir: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run one experiment or all of them, or write the report of a run."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    console = Console()
    folder = RunFolder(arguments.out)
    if arguments.name == "report":
        return _report(folder, arguments.docs, arguments.latent, console)
    options = Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
    try:
        planned = _plan(arguments.name, arguments.in_memory)
        data = EvalData.open(options.data)
        planned = _measurable(planned, data, console)
        measure(planned, data, options, folder, console)
    except (BadUsage, BadData) as error:
        parser.error(str(error))
    except LarimarError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return FAILED
    except KeyboardInterrupt:
        console.print("interrupted; what was answered is kept, and the same command goes on from there")
        return INTERRUPTED
    results = write_report(folder)
    shown = results if arguments.name == "all" else _alone(planned[0], results)
    _show(planned, results, folder, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {arguments.json}")
    return 0


def measure(planned: Sequence[Planned], data: EvalData, options: Options, folder: RunFolder, console: Console) -> None:
    """Run what is not finished with these settings, and keep each outcome as soon as it is there.

    Raises: BadData; LarimarError, as for models that are missing.
    """
    bundle = _bundle(options, console)
    code = code_version()
    to_do = []
    for one in planned:
        settings = _settings(one, data, options, bundle, code)
        if folder.experiment(one.name).is_finished_with(settings):
            console.print(f"{one.name}: finished before, in {folder.experiment(one.name).path}", highlight=False)
        else:
            to_do.append((one, settings))
    if not to_do:
        return
    with AnswerPool(bundle, folder.answers, console, workers=options.workers) as pool:
        for number, (one, settings) in enumerate(to_do, 1):
            console.rule(f"{number} of {len(to_do)}: {one.name}, {one.entry.what}", align="left")
            place = folder.experiment(one.name)
            with place.timed(settings) as seconds:
                # A lab of its own: what one experiment has encoded must not make another's encoding look fast.
                lab = Lab.open(bundle, pool, data, console)
                asked = replace(
                    lab, limit=settings.limit, in_memory=one.in_memory, rows=settings.rows, seed=settings.seed
                )
                place.record(settings, one.run(asked), seconds(), machine())


def write_report(folder: RunFolder, docs: Path | None = None, latent: RunFolder | None = None) -> dict[str, Any]:
    """Write results, page and figures of all that is finished in `folder`, there and in `docs`. Returns the results.

    `latent` is a run with a latent codec, whose figures come as a row of their own.
    """
    results = folder.results()
    if latent is not None:
        results = with_row(results, LATENT_ROW, latent.results(), ROWS)
    names = {one.name for one in everything()}
    if names <= results["settings"].keys():
        results["minutes"] = round(sum(results[f"{name}.seconds"] for name in names) / 60, 1)
    results["figures"] = draw(folder, results)
    folder.write_results(results)
    page = folder.path / "results.md"
    page.write_text(markdown(results), encoding="utf-8")
    if docs is not None:
        (docs / "figures").mkdir(parents=True, exist_ok=True)
        for name in ("results.json", "results.md", *(f"figures/{figure}.png" for figure in results["figures"])):
            shutil.copyfile(folder.path / name, docs / name)
    return results


# -- what is asked for ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="larimar eval",
        description="Larimar's experiments on this machine, beside honest baselines. See docs/evaluation.md.",
        epilog="; ".join(f"{name}: {entry.what}" for name, entry in EXPERIMENTS.items()),
    )
    names = (*EXPERIMENTS, "all", "report")
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--data", type=Path, help="a file of CounterFact or zsRE records, or a folder of both")
    parser.add_argument("--limit", type=_at_least_one, metavar="N", help="records or facts; the default differs")
    parser.add_argument("--in-memory", type=_at_least_one, metavar="N", help="edits live at once, for counterfact")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, flat")
    parser.add_argument("--out", type=Path, metavar="DIR", default=STATE_DIR / "run", help="what is kept of the run")
    parser.add_argument("--rows", choices=("all", "larimar"), default="all", help="with baselines, or our row only")
    parser.add_argument(
        "--encoder", default=BundleSettings().encoder, help="key encoder, as bundle.encoder in ray_config.yaml"
    )
    parser.add_argument(
        "--codec",
        default=BundleSettings().codec,
        help=f"token, {LATENT_CODEC} or the folder of a trained codec, as bundle.codec in ray_config.yaml",
    )
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="the cosine decides alone, as with bundle.verify: false",
    )
    parser.add_argument("--seed", type=int, default=0, help="what all random choices are drawn from")
    parser.add_argument("--workers", type=_at_least_one, metavar="W", help="decoders; one per core or GPU if not given")
    parser.add_argument("--state-dir", type=Path, default=STATE_DIR, help="where the bundle is, or is built")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="with report: also write page and figures there")
    parser.add_argument(
        "--latent", type=Path, metavar="DIR", help="with report: the folder of a run with a latent codec, one more row"
    )
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def _plan(name: str, in_memory: int | None) -> list[Planned]:
    """Raises: BadUsage if `--in-memory` means nothing here."""
    if name == "all":
        if in_memory is not None:
            raise BadUsage(f"--in-memory is not for 'all', which runs counterfact with 1 and with {MANY:,} in memory")
        return list(everything())
    if in_memory is not None and not EXPERIMENTS[name].many:
        raise BadUsage(f"--in-memory is not for '{name}', which decides itself what is in memory")
    return [Planned(name, in_memory or 1)]


def _measurable(planned: Sequence[Planned], data: EvalData, console: Console) -> list[Planned]:
    """Those experiments that `data` has records for; why others are left out is said.

    Raises: BadData if none is left, or if there is no data at all and some need it.
    """
    kept, refused = [], []
    for one in planned:
        try:
            _needed(one, data)
        except BadData as error:
            refused.append((one, error))
        else:
            kept.append(one)
    if not kept or (refused and data.path is None):
        raise refused[0][1]
    for note in data.notes:
        console.print(f"{data.name}: {note}", highlight=False)
    for one, reason in refused:
        console.print(f"[yellow]{one.name}: not measured.[/] {reason}", highlight=False)
    return kept


def _needed(one: Planned, data: EvalData) -> None:
    """Read what an experiment needs. Raises: BadData."""
    if one.entry.needs == "records":
        _ = data.records
    elif one.entry.needs == "questions":
        _ = data.questions


# -- what it is measured with -----------------------------------------------------------------------------------------


def _bundle(options: Options, console: Console) -> Bundle:
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("models", total=1.0)
        return materialise_bundle(
            options.state_dir / ("bundle" if options.codec == TOKEN_CODEC else "latent_bundle"),
            encoder=options.encoder,
            codec=options.codec,
            verify=options.verify,
            progress=lambda what, share: progress.update(task, description=what, completed=share),
        )


def _settings(one: Planned, data: EvalData, options: Options, bundle: Bundle, code: str) -> Settings:
    manifest = bundle.manifest
    return Settings(
        experiment=one.experiment,
        limit=options.limit or one.entry.limit,
        in_memory=one.in_memory,
        rows=options.rows,
        seed=options.seed,
        data=data.name if data.path is not None else "",
        data_sha256=data.sha256 if data.path is not None else "",
        encoder=options.encoder,
        codec=options.codec,
        bundle=bundle.fingerprint,
        manifest=manifest_version(bundle),
        decoder=manifest.decoder.weights_sha256,
        version=importlib.metadata.version("larimar-serve"),
        code=code,
    )


# -- what is shown ----------------------------------------------------------------------------------------------------


def _alone(one: Planned, results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of one experiment, whose figures go by its plain name, whatever was in memory."""
    others = {name for name in results["settings"] if name != one.name}
    shown = {key: value for key, value in results.items() if key.split(".")[0] not in others and key != "figures"}
    shown["settings"] = results["settings"][one.name]
    place = f"{one.name}."
    return {
        key.replace(place, f"{one.experiment}.", 1) if key.startswith(place) else key: v for key, v in shown.items()
    }


def _show(planned: Sequence[Planned], results: Mapping[str, Any], folder: RunFolder, console: Console) -> None:
    """The targets of what was run, as a table."""
    names = [one.name for one in planned]
    table = Table(title=f"larimar eval · {results['machine']}")
    for column in ("measure", "value", "target", "met"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    group = ""
    for target in TARGETS:
        value = target.value(results)
        if target.experiment in names and value is not None:
            met = target.missed_by(value) == 0
            verdict = "[green]yes[/]" if met else "[red]no[/]"
            what = f"… {target.what}" if target.group == group else f"{target.group}: {target.what}"
            group = target.group
            table.add_row(what, in_unit(value, target.unit), bar_text(target), verdict)
    if table.row_count:
        console.print(table)
    console.print(f"figures, raw items and report: {folder.path}", highlight=False)


def _report(folder: RunFolder, docs: Path | None, latent_path: Path | None, console: Console) -> int:
    latent = None if latent_path is None else RunFolder(latent_path)
    for one in (folder, latent):
        if one is not None and not one.finished():
            console.print(f"[red]nothing is finished in {one.path}[/]; run an experiment with --out first")
            return FAILED
    write_report(folder, docs, latent)
    console.print(f"written: {folder.path / 'results.md'}{f', and copied to {docs}' if docs else ''}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
