"""Looks for byte strings in every byte of folders and of shared memory: whether anything is left of what was erased.

An occurrence of 15 bytes or more covers a whole 8-byte word at an address divisible by 8. So only those words are
looked up, in a table of all words that the needles could put there, and what is found is compared in full.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NEEDLE_BYTES_MIN = 15
_WORD = 8
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Hit:
    """One occurrence: the needle's name and where its first byte is."""

    needle: str
    place: str
    offset: int


class ByteSearch:
    """A search for many needles at once. `bytes_searched` counts what was looked at."""

    def __init__(self, needles: Mapping[str, bytes]) -> None:
        """Raises ValueError for a needle that is too short, or whose words are too common to look up."""
        self._needles = dict(needles)
        self._words: dict[int, list[tuple[str, int]]] = defaultdict(list)  # word -> needle, offset of the word in it
        for name, needle in needles.items():
            if len(needle) < NEEDLE_BYTES_MIN:
                raise ValueError(f"needle {name!r} has {len(needle)} bytes, at least {NEEDLE_BYTES_MIN} are needed")
            for offset in range(_WORD):
                word = needle[offset : offset + _WORD]
                if len(set(word)) == 1 and word[0] in (0, 255):
                    raise ValueError(f"needle {name!r} begins like empty memory")
                self._words[int.from_bytes(word, "little")].append((name, offset))
        self._sorted = np.array(sorted(self._words), np.uint64)
        self._table = np.zeros(1 << 16, bool)
        self._table[(self._sorted & np.uint64(0xFFFF)).astype(np.int64)] = True
        self._overlap = max(map(len, needles.values()), default=0) + _WORD
        self.bytes_searched = 0

    def folder(self, folder: Path) -> Iterator[Hit]:
        """Every regular file below `folder`, and the name of each. Files that vanish meanwhile are left out."""
        for path in sorted(folder.rglob("*")):
            yield from self._memory(str(path).encode(), f"the name of {path}")
            if path.is_file() and not path.is_symlink():
                try:
                    with path.open("rb") as file:
                        yield from self._file(file.fileno(), str(path))
                except FileNotFoundError:
                    continue

    def shared_memory(self, pids: Iterable[int]) -> Iterator[Hit]:
        """Files in /dev/shm and deleted files that these processes hold open, each once: Ray's object store."""
        seen: set[tuple[int, int]] = set()
        for pid in pids:
            for descriptor, target in _open_memory(pid):
                try:
                    status = os.fstat(descriptor)
                    if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        yield from self._file(descriptor, f"{target} of process {pid}")
                finally:
                    os.close(descriptor)

    def memory(self, content: bytes, place: str) -> list[Hit]:
        """Occurrences in `content`."""
        return list(self._memory(content, place))

    def _file(self, descriptor: int, place: str) -> Iterator[Hit]:
        """A file's bytes without its holes: reading those of a file in memory could fill them."""
        start = 0
        while True:
            try:
                start = os.lseek(descriptor, start, os.SEEK_DATA)
                end = os.lseek(descriptor, start, os.SEEK_HOLE)
            except OSError:  # no data after `start`
                return
            begin = start - start % _WORD
            while begin < end:
                content = os.pread(descriptor, min(_CHUNK + self._overlap, end - begin), begin)
                if not content:
                    return
                yield from (
                    Hit(hit.needle, hit.place, hit.offset + begin)
                    for hit in self._memory(content, place)
                    if hit.offset < _CHUNK
                )
                self.bytes_searched += min(len(content), _CHUNK)
                begin += _CHUNK
            start = end

    def _memory(self, content: bytes, place: str) -> Iterator[Hit]:
        words: NDArray[np.uint64] = np.frombuffer(content[: len(content) - len(content) % _WORD], np.uint64)
        some = np.flatnonzero(self._table[(words & np.uint64(0xFFFF)).astype(np.int64)])
        seen: set[tuple[str, int]] = set()
        for index in some[np.isin(words[some], self._sorted)]:
            for name, offset in self._words[int(words[index])]:
                at = int(index) * _WORD - offset
                needle = self._needles[name]
                if at >= 0 and (name, at) not in seen and content[at : at + len(needle)] == needle:
                    seen.add((name, at))
                    yield Hit(name, place, at)


def _open_memory(pid: int) -> Iterator[tuple[int, str]]:
    """Descriptors of our own for what another process holds open and no folder shows."""
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(entry.readlink())
            if target.startswith("/dev/shm/") or (target.startswith("/") and target.endswith(" (deleted)")):  # noqa: S108
                yield os.open(entry, os.O_RDONLY), target
        except FileNotFoundError:  # closed meanwhile
            continue
