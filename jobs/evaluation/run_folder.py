"""The folder of one evaluation run: what was found, what it was found with, and what need not be asked again.

    DIR/answers-<hash>.jsonl      what the decoders answered, all experiments', under the hash of the code that answers
    DIR/NAME/items.jsonl          raw items of one experiment, one JSON object a line
    DIR/NAME/summary.json         its figures, its settings and the seconds it took; written last
    DIR/results.json              all summaries as one flat JSON
    DIR/results.md, DIR/figures/  the report

An experiment without a summary is unfinished. Killed at any moment, the folder goes on from its answers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.evaluation.outcome import Figure, Outcome
from workers.bundle import Bundle
from workers.codec_card import TOKEN_CODEC

ROOT = Path(__file__).resolve().parents[2]
#: What only shows results: it may change without anything being measured again.
_SHOWS = {
    "charts.py",
    "experiments.py",
    "figures.py",
    "paper_rows.py",
    "report.py",
    "report_sections.py",
    "run_folder.py",
    "targets.py",
}
#: What decides an answer, given the bundle and the question; and all of `workers`.
_ANSWERS = ("asks.py", "answering.py", "branches.py")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that an experiment's figures depend on. Equal settings need not be measured again."""

    experiment: str
    limit: int | None
    in_memory: int
    rows: str
    seed: int
    data: str  # name
    data_sha256: str
    encoder: str
    bundle: str  # fingerprint
    manifest: str  # SHA-256 of the manifest: thresholds, wording and biases are no part of the fingerprint
    decoder: str  # SHA-256 of the weights
    version: str
    code: str  # SHA-256 of the product's code and the experiments'
    codec: str = TOKEN_CODEC


class ExperimentFolder:
    """What one experiment leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, settings: Settings, outcome: Outcome, seconds: float, machine: Mapping[str, Any]) -> None:
        """Keep a finished experiment. The summary is there last, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in outcome.items)
        _replace(self.path / "items.jsonl", "".join(lines))
        found = {
            "settings": asdict(settings),
            "seconds": round(seconds, 1),
            "machine": dict(machine),
            "summary": {key: _rounded(figure) for key, figure in outcome.summary.items()},
        }
        _replace(self.path / "summary.json", json.dumps(found, indent=2) + "\n")

    @contextmanager
    def timed(self, settings: Settings) -> Iterator[Callable[[], float]]:
        """Gives the seconds so far, those of interrupted runs with the same settings included (kill -9 excepted)."""
        unfinished = self.path / "unfinished.json"
        earlier_s = 0.0
        if unfinished.exists():
            noted = json.loads(unfinished.read_bytes())
            earlier_s = noted["seconds"] if noted["settings"] == asdict(settings) else 0.0
        started = time.monotonic()
        try:
            yield lambda: earlier_s + time.monotonic() - started
        except BaseException:
            seconds = round(earlier_s + time.monotonic() - started, 1)
            _replace(unfinished, json.dumps({"settings": asdict(settings), "seconds": seconds}) + "\n")
            raise
        unfinished.unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """Settings, seconds and summary of what is here; None when it is unfinished."""
        try:
            found: dict[str, Any] = json.loads((self.path / "summary.json").read_bytes())
        except FileNotFoundError:
            return None
        return found

    def is_finished_with(self, settings: Settings) -> bool:
        found = self.finished()
        return found is not None and found["settings"] == asdict(settings)

    def items(self) -> Iterator[dict[str, Any]]:
        path = self.path / "items.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)


class RunFolder:
    """An evaluation's folder, created when something is put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def experiment(self, name: str) -> ExperimentFolder:
        return ExperimentFolder(self.path / name)

    @property
    def answers(self) -> Path:
        """Where the decoder's answers are kept, whose lines say of which decoder they are."""
        code = [*(ROOT / "workers").glob("*.py"), *(ROOT / "jobs" / "evaluation" / name for name in _ANSWERS)]
        return self.path / f"answers-{_hash_code(code)[:16]}.jsonl"

    def finished(self) -> dict[str, dict[str, Any]]:
        """All finished experiments by name, in alphabetical order."""
        found = {path.parent.name: self.experiment(path.parent.name).finished() for path in self._summaries()}
        return {name: one for name, one in found.items() if one is not None}

    def results(self) -> dict[str, Any]:
        """One flat JSON object: every experiment's figures and seconds, the machine, the settings of each."""
        finished = self.finished()
        figures: dict[str, Figure] = {}
        for name, one in finished.items():
            figures |= one["summary"]
            figures[f"{name}.seconds"] = one["seconds"]
        settings = {name: one["settings"] for name, one in finished.items()}
        machine = {key: value for one in finished.values() for key, value in one["machine"].items()}
        machines = dict.fromkeys(one["machine"]["machine"] for one in finished.values())
        return {**figures, **machine, "machine": " and ".join(machines), "settings": settings}

    def write_results(self, results: Mapping[str, Any]) -> None:
        _replace(self.path / "results.json", json.dumps(results, indent=2) + "\n")

    def _summaries(self) -> list[Path]:
        return sorted(self.path.glob("*/summary.json"))


def with_row(
    results: Mapping[str, Any], row: str, other: Mapping[str, Any], baselines: Collection[str]
) -> dict[str, Any]:
    """`results` and, as one more row, another run's own figures: its `experiment.figure` is `experiment.row.figure`.

    What it has of `baselines`, names of rows, is left out. Its settings go by `experiment.row`.
    """
    own = {name: one for name, one in other.items() if "." in name and name.split(".")[1] not in baselines}
    figures = {name.replace(".", f".{row}.", 1): figure for name, figure in own.items()}
    settings = {f"{name}.{row}": one for name, one in other["settings"].items()}
    machines = dict.fromkeys([results["machine"], other["machine"]])
    merged = {**results, **figures, "machine": " and ".join(machines)}
    return merged | {"settings": {**results["settings"], **settings}}


def code_version() -> str:
    """SHA-256 (hex) of all code that an experiment's figures depend on."""
    paths = [path for package in ("memory_actor", "workers") for path in (ROOT / package).rglob("*.py")]
    paths += [path for path in (ROOT / "jobs" / "evaluation").glob("*.*") if path.name not in _SHOWS]
    return _hash_code(paths + list((ROOT / "jobs").glob("scope_*")))


def manifest_version(bundle: Bundle) -> str:
    """SHA-256 (hex) of the bundle's manifest."""
    return _sha256(bundle.manifest.model_dump_json())


def _rounded(figure: Figure) -> Figure:
    return round(figure, 6) if isinstance(figure, float) else figure


def _hash_code(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
