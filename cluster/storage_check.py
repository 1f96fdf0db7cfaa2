"""Whether the disk under a state folder keeps what it confirms: fsync, kind of file system, free space, file modes."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.diagnosis import Diagnosis, Severity

# What was acknowledged there outlives processes only.
MEMORY: Final = frozenset({"tmpfs", "ramfs"})
# Survives restarts of its container, not the container.
LAYER: Final = "overlay"
# Locks and fsync of these depend on server and mount options.
REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"})

FSYNC_SLOW_S: Final = 0.05  # a write waits for two of them
FSYNC_UNTRUE_S: Final = 20e-6  # no device confirms a write in less: somebody in between says yes
PROBES: Final = 7
PROBE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about one folder."""

    folder: Path
    filesystem: str
    fsync_s: float  # median
    free_mb: int


def check_storage(folders: dict[str, Path], reserve_mb: int) -> list[Diagnosis]:
    """Findings about `folders` (by what is in them), all of which exist. Writes a small file in each and removes it."""
    findings: list[Diagnosis] = []
    for name, folder in folders.items():
        findings += judge(name, measure(folder), reserve_mb)
    return findings


def measure(folder: Path, timer: Callable[[], float] = time.perf_counter) -> Measured:
    """Raises OSError when nothing can be written there."""
    seconds = []
    with tempfile.TemporaryFile(dir=folder) as probe:
        for _ in range(PROBES):
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            begun = timer()
            os.fsync(probe.fileno())
            seconds.append(timer() - begun)
    free_mb = shutil.disk_usage(folder).free // 2**20
    return Measured(folder, filesystem_of(folder), statistics.median(seconds), free_mb)


def judge(name: str, found: Measured, reserve_mb: int) -> Iterator[Diagnosis]:
    """What is doubtful about a folder."""
    where = f"{name} ({found.folder})"
    kept = "Everything is readable; nothing was changed"
    if found.filesystem in MEMORY:
        yield Diagnosis(
            "storage_in_memory",
            Severity.ERROR,
            f"{where} lies on {found.filesystem}, which is memory",
            "What is acknowledged survives crashes of processes, but no restart of the machine",
            "Move the state folder to a disk (stop, copy the folder, start with --state-dir)",
        )
    if found.filesystem == LAYER:
        yield Diagnosis(
            "storage_in_layer",
            Severity.WARNING,
            f"{where} lies in a container's own layer, which is removed with the container",
            "What is acknowledged survives restarts of processes, container and machine",
            "Mount a volume and use a folder in it as --state-dir",
        )
    if found.filesystem in REMOTE:
        yield Diagnosis(
            "storage_remote",
            Severity.WARNING,
            f"{where} lies on {found.filesystem}, a network file system, where locks and fsync depend on the server",
            kept,
            "Use a local disk, or PostgreSQL as the ledger (ledger.url)",
        )
    if found.fsync_s > FSYNC_SLOW_S:
        yield Diagnosis(
            "storage_slow",
            Severity.WARNING,
            f"{where}: one fsync takes {found.fsync_s * 1e3:.0f} ms, and every write waits for two",
            "Acknowledged facts are safe; writing is slow",
            "Use a faster disk, and write facts in batches",
        )
    if found.fsync_s < FSYNC_UNTRUE_S and found.filesystem not in MEMORY:
        yield Diagnosis(
            "storage_untrue",
            Severity.WARNING,
            f"{where}: an fsync of {found.fsync_s * 1e6:.0f} us is faster than any disk confirms one",
            "A crash of a process loses nothing; whether a power failure does depends on what lies below",
            "Ask whoever runs the disk whether fsync reaches it (virtual machines: cache=none or writethrough)",
        )
    if found.free_mb < 2 * reserve_mb:
        yield Diagnosis(
            "storage_full",
            Severity.ERROR if found.free_mb < reserve_mb else Severity.WARNING,
            f"{where} has {found.free_mb} MB free; writes are refused below {reserve_mb} MB (ledger.reserve_mb)",
            "What is stored is safe; reading and forgetting go on",
            "Free space, forget facts, or remove old checkpoints",
        )


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """The kind of file system `path` lies on, `unknown` where the system does not say. `mounts`: /proc/mounts."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "unknown"
    resolved = str(path.resolve())
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = point in ("/", resolved) or resolved.startswith(point + "/")
        if inside and len(point) >= len(best):  # later mounts hide earlier ones
            best, kind = point, fields[2]
    return kind


def check_modes(keys_folder: Path) -> list[Diagnosis]:
    """Findings about who may read the keys."""
    if not keys_folder.is_dir():
        return []
    open_to_others = [
        path
        for path in (keys_folder, *sorted(keys_folder.iterdir()))
        if path.stat().st_mode & 0o077 or path.stat().st_uid not in (os.getuid(), 0)
    ]
    if not open_to_others:
        return []
    names = ", ".join(str(path) for path in open_to_others[:5])
    return [
        Diagnosis(
            "keys_exposed",
            Severity.ERROR,
            f"other users of this machine may reach the keys: {names}",
            "Nothing is lost; whoever read the root key can read copies of the data",
            f"chmod -R go-rwx {keys_folder}; if somebody may have read it, 'larimar vault rotate' and make new backups",
        )
    ]
