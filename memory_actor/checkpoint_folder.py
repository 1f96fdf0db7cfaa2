"""Checkpoints in a local folder: durable once acknowledged, whole or not there, and never outside the root.

Every path is walked from the root one component at a time without following symbolic links, so that a link planted
inside the root leads nowhere. Unfinished files are called `*.tmp` and are locked (flock) while they are written: one
without a lock was left by a crash, and the next put removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from memory_actor.checkpoint_io import Files, Oversized, Paths, StoredFile
from memory_actor.crash_points import reached

_TEMPORARY: Final = ".tmp"
_READ_BYTES: Final = 1 << 20
_ATTEMPTS: Final = 8  # at opening a folder or a temporary file that another thread may be tidying away
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalFolder:
    """One root folder, made at the first put (mode 0700). Paths are checked by the caller. Methods raise OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, path: str, chunks: Iterable[bytes]) -> StoredFile:
        """Temporary name, fsync, read back and compare, rename, fsync of the folder: in this order."""
        with self._folder_of(path, create=True) as (folder, leaf):
            with self._temporary(path, folder, leaf, chunks, crash_points=True) as (temporary, stored):
                reached("snap.before_rename")
                os.rename(temporary, leaf, src_dir_fd=folder, dst_dir_fd=folder)
                reached("snap.before_dirfsync")
                os.fsync(folder)
            return stored

    def publish(self, path: str, content: bytes) -> StoredFile:
        """As `put`, but by link(2), which refuses a name that exists. Raises FileExistsError."""
        with self._folder_of(path, create=True) as (folder, leaf):
            with self._temporary(path, folder, leaf, [content], crash_points=False) as (temporary, stored):
                reached("manifest.before_publish")
                os.link(temporary, leaf, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                os.unlink(temporary, dir_fd=folder)
                os.fsync(folder)
                reached("manifest.after_publish")
            return stored

    def read(self, path: str, bytes_max: int) -> bytes:
        with self._folder_of(path) as (folder, leaf):
            fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                if status.st_size > bytes_max:
                    raise Oversized(f"{path} has {status.st_size} bytes, at most {bytes_max} are read")
                return file.read(bytes_max)

    def delete(self, path: str) -> None:
        """The folder is fsynced after. Folders that are empty then are removed, up to the root."""
        with self._folder_of(path) as (folder, leaf):
            os.unlink(leaf, dir_fd=folder)
            os.fsync(folder)
        parts = path.split("/")[:-1]
        for depth in range(len(parts), 0, -1):
            try:
                with self._folder_of("/".join(parts[:depth])) as (folder, leaf):
                    os.rmdir(leaf, dir_fd=folder)
                    os.fsync(folder)
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                    return
                raise

    def list(self, prefix: str) -> Paths:
        """Regular files only, temporary ones included; a folder that is not there holds none."""
        if not self._root.exists():
            return []
        try:
            with self._folder(prefix.split("/") if prefix else []) as folder:
                return [f"{prefix}/{path}" if prefix else path for path in _files_under(folder)]
        except FileNotFoundError:
            return []

    def sweep(self, prefix: str) -> Files:
        """Remove what crashed puts have left under a folder, and say what it was."""
        removed = []
        for path in self.list(prefix):
            if path.endswith(_TEMPORARY):
                with contextlib.suppress(FileNotFoundError), self._folder_of(path) as (folder, leaf):
                    removed.append(_remove_unlocked(folder, leaf))
        return [file for file in removed if file is not None]

    # -- helpers ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _folder(self, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """The folder's descriptor. With `create`, missing ones are made durably on the way."""
        if create:
            self._make_root()
        fd = self._open(parts, create=create)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, parts: Sequence[str], *, create: bool) -> int:
        for attempt in range(_ATTEMPTS):
            try:
                fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the root itself may be a link
            except FileNotFoundError:
                # Not "no such file": a disk that is not mounted must not look like a checkpoint that was deleted.
                raise OSError(errno.ENXIO, "the root folder is missing") from None
            try:
                return _open_under(fd, parts, create=create)
            except FileNotFoundError:
                if not create or attempt == _ATTEMPTS - 1:  # a delete may remove an empty folder that we came through
                    raise
        raise AssertionError("unreachable")

    def _make_root(self) -> None:
        missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
        if missing:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in reversed(missing):
                _fsync_path(path.parent)

    @contextlib.contextmanager
    def _folder_of(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of a path's folder, and its last component."""
        *parts, leaf = path.split("/")
        with self._folder(parts, create=create) as folder:
            yield folder, leaf

    @contextlib.contextmanager
    def _temporary(
        self, path: str, folder: int, leaf: str, chunks: Iterable[bytes], *, crash_points: bool
    ) -> Iterator[tuple[str, StoredFile]]:
        """A durable file under a temporary name, gone afterwards unless it was renamed. Leftovers are removed first."""
        self.sweep(path.split("/", maxsplit=1)[0] if "/" in path else "")
        fd, name = _create_locked(folder, leaf)
        try:
            stored = _write(fd, chunks, crash_points=crash_points)
            yield name, stored
        finally:
            # After a rename there is nothing to remove. After a crash the lock is gone, and the next put removes it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            os.close(fd)


def _open_under(root: int, parts: Sequence[str], *, create: bool) -> int:
    """The folder at `parts` below `root`, which is closed."""
    fd = root
    for part in parts:
        try:
            below = _open_below(fd, part, create=create)
        finally:
            os.close(fd)
        fd = below
    return fd


def _open_below(folder: int, name: str, *, create: bool) -> int:
    if create:
        try:
            os.mkdir(name, mode=0o700, dir_fd=folder)
            os.fsync(folder)
        except FileExistsError:
            pass
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except NotADirectoryError as error:  # O_NOFOLLOW with O_DIRECTORY says this of symbolic links too
        raise OSError(errno.ELOOP, "a symbolic link or a file is in the place of a folder") from error


def _create_locked(folder: int, leaf: str) -> tuple[int, str]:
    """A new temporary file, open and locked: no sweep takes it away from here on."""
    for _ in range(_ATTEMPTS):
        name = f"{leaf}.{secrets.token_hex(4)}{_TEMPORARY}"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 1:
                return fd, name
        except BlockingIOError:  # a sweep came between; it removes the file
            pass
        except OSError:
            os.unlink(name, dir_fd=folder)
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(errno.EAGAIN, "temporary files keep disappearing")


def _remove_unlocked(folder: int, leaf: str) -> StoredFile | None:
    """Remove a temporary file, unless it is being written right now."""
    fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left = StoredFile.of(_pieces(fd))
        os.unlink(leaf, dir_fd=folder)
        os.fsync(folder)
    except BlockingIOError:
        return None
    else:
        return left
    finally:
        os.close(fd)


def _write(fd: int, chunks: Iterable[bytes], *, crash_points: bool) -> StoredFile:
    """Write, fsync, read back. Raises OSError(EIO) when other bytes come back than were given."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        first = size == 0 and crash_points
        half = len(chunk) // 2 if first else len(chunk)
        _write_all(fd, chunk[:half])
        if first:
            reached("snap.tmp_partial")
            _write_all(fd, chunk[half:])
        digest.update(chunk)
        size += len(chunk)
    if crash_points:
        reached("snap.before_fsync")
    os.fsync(fd)
    stored = StoredFile(digest.hexdigest(), size)
    if StoredFile.of(_pieces(fd)) != stored:
        raise OSError(errno.EIO, "other bytes were read back than were written")
    return stored


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _pieces(fd: int) -> Iterator[bytes]:
    os.lseek(fd, 0, os.SEEK_SET)
    while piece := os.read(fd, _READ_BYTES):
        yield piece


def _files_under(folder: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = [(e.name, e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False)) for e in entries]
    for name, is_folder, is_file in found:
        if is_file:
            yield name
        elif is_folder:
            try:
                below = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
            except FileNotFoundError:  # deleted meanwhile
                continue
            try:
                yield from (f"{name}/{path}" for path in _files_under(below))
            finally:
                os.close(below)


def _fsync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
