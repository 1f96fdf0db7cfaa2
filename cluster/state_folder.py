"""The state folder: where everything that outlives a process lies, and who may use it now.

    larimar.json       marker: this folder is ours, and its format
    bundle/            models, converted once              ledger/         the memory actors' ledgers
    control.sqlite     hashes of API keys                  logs/           supervisor.log
    ray_token          token of our Ray (0600)             run.json        the running system, absent when none runs
    supervisor.lock    held by the running supervisor
    keys/              root key, signing key, vaults       checkpoints/    the location `local`

Checks come before changes: `check` raises and leaves the folder as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from memory_actor.errors import AlreadyRunning, StateFolderUnusable

FORMAT = 1
MARKER = "larimar.json"
KNOWN_NAMES = frozenset(
    # `demo` and `bench` are state folders of their own, inside the default one.
    {
        MARKER,
        "bundle",
        "ledger",
        "logs",
        "ray_token",
        "run.json",
        "supervisor.lock",
        "keys",
        "checkpoints",
        "demo",
        "bench",
    }
)
KNOWN_PREFIXES = (".bundle", "bundle.", "control.sqlite")  # scratch of an interrupted build; the database's WAL
CHOOSE_ANOTHER = "Choose another folder with --state-dir"


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """Content of run.json. `process_started_at` tells our process from a later one with the same number."""

    pid: int
    process_started_at: float
    url: str
    started_at: float
    start_s: float  # seconds from the supervisor's first line to ready
    ray_address: str
    temp_dir: str

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_started_at) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class StateFolder:
    """Paths, ownership and the running system of one state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def control(self) -> Path:
        return self.path / "control.sqlite"

    @property
    def log(self) -> Path:
        return self.path / "logs" / "supervisor.log"

    def check(self) -> None:
        """Raises StateFolderUnusable if the folder is not ours or cannot be written. Creates nothing in it."""
        try:
            self._check_kind()
            probe = self._nearest_existing()
            with tempfile.TemporaryFile(dir=probe):
                pass
        except OSError as error:
            reason = f"cannot be written ({error.strerror or error})"
            raise StateFolderUnusable(self.path, reason, f"Give this user write access or: {CHOOSE_ANOTHER}") from error

    def _check_kind(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise StateFolderUnusable(self.path, "is a file, not a folder", CHOOSE_ANOTHER)
        marker = self.path / MARKER
        if marker.exists():
            self._check_marker(marker)
            return
        foreign = sorted(entry.name for entry in self.path.iterdir() if not _is_ours(entry.name))
        if foreign:
            reason = f"holds content that is not ours ({', '.join(foreign[:3])}{', …' if foreign[3:] else ''})"
            raise StateFolderUnusable(self.path, reason, CHOOSE_ANOTHER)

    def _check_marker(self, marker: Path) -> None:
        try:
            written = json.loads(marker.read_bytes())["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StateFolderUnusable(marker, "is damaged", CHOOSE_ANOTHER) from error
        if written != FORMAT:
            reason = f"has format {written}, this version reads {FORMAT}"
            raise StateFolderUnusable(self.path, reason, f"Use the version that wrote it or: {CHOOSE_ANOTHER}")

    def _nearest_existing(self) -> Path:
        folder = self.path
        while not folder.exists():
            folder = folder.parent
        return folder

    def prepare(self) -> None:
        """Create the folder (only its owner may enter) and its marker. Call after `check`."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.ledger, self.log.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        if not (self.path / MARKER).exists():
            write_atomically(self.path / MARKER, json.dumps({"format": FORMAT}) + "\n")

    def lock(self) -> IO[str]:
        """Take the folder for this process; it is free again when the file is closed or the process ends.

        Raises: AlreadyRunning.
        """
        file = (self.path / "supervisor.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            system = self.recorded()
            url, pid = (system.url, system.pid) if system else ("an address it has not announced yet", "unknown")
            raise AlreadyRunning(url, pid, self.path) from None
        return file

    def recorded(self) -> RunningSystem | None:
        """What run.json says, whether or not that process still lives."""
        try:
            return RunningSystem(**json.loads((self.path / "run.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def running(self) -> RunningSystem | None:
        """The system that runs on this folder now."""
        system = self.recorded()
        return system if system is not None and system.alive() else None

    def record(self, system: RunningSystem) -> None:
        write_atomically(self.path / "run.json", json.dumps(asdict(system), indent=2) + "\n")

    def forget_recorded(self) -> None:
        (self.path / "run.json").unlink(missing_ok=True)

    def ray_token(self) -> Path:
        """The file with the token of our Ray cluster, made on first use."""
        path = self.path / "ray_token"
        if not path.exists():
            write_atomically(path, secrets.token_hex(32))
        return path


def _is_ours(name: str) -> bool:
    return name in KNOWN_NAMES or name.startswith(KNOWN_PREFIXES)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: readers see the old file or the new one, and only the owner may read it."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
