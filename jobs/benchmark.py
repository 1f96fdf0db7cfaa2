"""`larimar bench`: every figure the README states, measured on this machine in one run.

    python -m jobs.benchmark --json FILE [--state-dir FOLDER] [--facts N]

Starts a system of its own on a free port, with its own ledger; the models are taken from (or converted into) the
state folder. Prints a table with the bar of each figure and writes flat JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.client import Client
from jobs import bench_memory, bench_service, bench_storage
from jobs.machine import machine
from jobs.own_system import OwnSystem
from workers.bundle import Bundle, materialise_bundle
from workers.fact_encoder import FactEncoder


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure: its JSON key, what it is, its bar (None: reported only), and whether it must stay below or above."""

    key: str
    what: str
    bar: float | None
    unit: str
    at_most: bool = True

    def met(self, value: float) -> bool:
        if self.bar is None:
            return True
        return value <= self.bar if self.at_most else value >= self.bar

    def verdict(self, value: float) -> str:
        """Whether the bar is met: "yes", "no", or "none" for what has no bar."""
        if self.bar is None:
            return "none"
        return "yes" if self.met(value) else "no"

    def bar_text(self) -> str:
        if self.bar is None:
            return "none"
        return f"{'≤' if self.at_most else '≥'} {self.bar:g} {self.unit}".strip()


MEASURES = (
    Measure("warm_start_s", "warm start, `larimar up` to ready", 25, "s"),
    Measure("write_p50_ms", "HTTP write of one fact, p50", 35, "ms"),
    Measure("write_p99_ms", "HTTP write of one fact, p99", 80, "ms"),
    Measure("write_overhead_p50_ms", "… of which not encoding, p50", 15, "ms"),
    Measure("batch_write_ratio", "HTTP writes of 100 facts, share of the bare encoder's rate", 0.6, "", at_most=False),
    Measure("memory_update_ms", "memory update per fact, batch of 64", 0.1, "ms"),
    Measure("scope_read_10k_ms", "scope and read, 10,000 facts in the tenant", 5, "ms"),
    Measure("query_overhead_ms", "query to first token, over the bare decoder", 25, "ms"),
    Measure("write_growth_ratio", "write p50 with 100,000 facts stored, relative to 100", 1.2, "x"),
    Measure("commit_p50_ms", "durable commit of one fact, keys included, p50", 2, "ms"),
    Measure("commit_batch_facts_per_s", "durable commits of 256 facts", 10_000, "facts/s", at_most=False),
    Measure("wake_p50_ms", "cold tenant of 512 facts wakes, one thread, p50", 50, "ms"),
    Measure("checkpoint_mb_per_s", "checkpoint of 512 facts, sealed, synced and read back", None, "MB/s"),
    Measure("restore_facts_per_s", "restore of 512 facts into a new tenant", None, "facts/s"),
    Measure("rss_gb", "resident memory of all processes, idle", 4, "GB"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it ran to its end, whether or not every bar was met."""
    parser = argparse.ArgumentParser(prog="larimar bench", description="Measure this machine.")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--state-dir", type=Path, default=Path.home() / ".larimar" / "bench")
    parser.add_argument("--facts", type=int, default=100_000, help="facts stored for write_growth_ratio")
    arguments = parser.parse_args(argv)
    console = Console()
    result = run(arguments.state_dir, arguments.facts, console)
    console.print(table(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {arguments.json}")
    return 0


def run(state_dir: Path, facts: int, console: Console) -> dict[str, Any]:
    """All figures as flat JSON: the keys of MEASURES, then the machine and the versions."""
    with _progress(console) as progress:
        bundle = _bundle(state_dir, progress)
        result = _memory_figures(bundle, facts, progress) | _service_figures(state_dir, bundle, progress)
    ordered = {measure.key: round(result[measure.key], 4) for measure in MEASURES}
    return ordered | machine() | {"facts_stored": facts}


def table(result: dict[str, Any]) -> Table:
    """The figures beside their bars, for a terminal."""
    shown = Table(title=f"larimar bench · {result['machine']}")
    for column in ("measure", "value", "bar", "met"):
        shown.add_column(column, justify="left" if column == "measure" else "right")
    for measure in MEASURES:
        value = result[measure.key]
        colour = "green" if measure.met(value) else "red"
        verdict = f"[{colour}]{measure.verdict(value)}[/]"
        shown.add_row(measure.what, f"{value:g} {measure.unit}".strip(), measure.bar_text(), verdict)
    return shown


def markdown(result: dict[str, Any]) -> str:
    """The same table for the README; a test holds the README to it."""
    lines = [
        "| measure | value | bar | met |",
        "|---|---:|---:|:-:|",
        *(
            f"| {measure.what} | {result[measure.key]:g} {measure.unit}".rstrip()
            + f" | {measure.bar_text()} | {_emphasised(measure.verdict(result[measure.key]))} |"
            for measure in MEASURES
        ),
        "",
        f"Machine: {result['machine']}; torch {result['torch']}, ray {result['ray']}.",
    ]
    return "\n".join(lines)


def _emphasised(verdict: str) -> str:
    return "**no**" if verdict == "no" else verdict


def _memory_figures(bundle: Bundle, facts: int, progress: Progress) -> dict[str, float]:
    config = bundle.memory_config()
    update_ms = bench_memory.memory_update_ms(config)
    with tempfile.TemporaryDirectory(prefix="larimar-bench-") as folder:
        engine = bench_memory.open_engine(Path(folder) / "ledger", config)
        with _task(progress, "scope and read", 10_000) as advance:
            read_ms = bench_memory.scope_read_ms(engine, config, 10_000, advance)
        with _task(progress, "growth of the write", facts + 100) as advance:
            growth = bench_memory.write_growth_ratio(engine, config, facts, advance)
        engine.close()
    with tempfile.TemporaryDirectory(prefix="larimar-bench-") as folder, _task(progress, "storage", 3) as advance:
        storage = {"commit_p50_ms": bench_storage.commit_p50_ms(Path(folder) / "single", config)}
        advance(1)
        rate = bench_storage.commit_batch_facts_per_s(Path(folder) / "batch", config)
        advance(1)
        storage |= {"commit_batch_facts_per_s": rate} | bench_storage.tenant_figures(Path(folder) / "tenant", config)
        advance(1)
    return storage | {"memory_update_ms": update_ms, "scope_read_10k_ms": read_ms, "write_growth_ratio": growth}


def _service_figures(state_dir: Path, bundle: Bundle, progress: Progress) -> dict[str, float]:
    with _task(progress, "warm start", 1) as advance:
        system = OwnSystem(state_dir)
        running = system.handle
        advance(1)
    try:
        rss_gb = bench_service.resident_gb(running.pid)
        encoder = FactEncoder.from_bundle(bundle)
        with Client(running.url, running.admin_key) as client:
            client.create_tenant(bench_service.TENANT)
            with _task(progress, "single writes", 220) as advance:
                writes = bench_service.single_writes(client, encoder, 200, advance)
            with _task(progress, "batch writes", 9) as advance:
                ratio = bench_service.batch_write_ratio(client, encoder, 8, advance)
            with _task(progress, "queries", 43) as advance:
                query_ms = bench_service.query_overhead_ms(client, bundle, 40, advance)
    finally:
        system.stop()
    return {
        "warm_start_s": system.warm_start_s,
        "write_p50_ms": writes.p50_ms,
        "write_p99_ms": writes.p99_ms,
        "write_overhead_p50_ms": writes.overhead_p50_ms,
        "batch_write_ratio": ratio,
        "query_overhead_ms": query_ms,
        "rss_gb": rss_gb,
    }


def _bundle(state_dir: Path, progress: Progress) -> Bundle:
    """The default bundle, converted into the state folder when it is not there yet."""
    task = progress.add_task("models", total=1.0)
    return materialise_bundle(
        state_dir / "bundle", progress=lambda what, share: progress.update(task, description=what, completed=share)
    )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


@contextmanager
def _task(progress: Progress, name: str, total: int) -> Iterator[Callable[[int], None]]:
    task = progress.add_task(name, total=total)
    yield lambda count: progress.advance(task, count)


if __name__ == "__main__":
    sys.exit(main())
