"""Checkpoints in an object store, or whatever else `pyarrow.fs` reaches. Imports Arrow.

There is no fsync and no atomic create here: an object store acknowledges what it has stored, names are random and
never used twice, and what was stored is read back and compared before anything relies on it. On S3, empty folder
markers stay behind, and the parts of interrupted uploads until the bucket's lifecycle rule aborts them: the operator
sets one, and leaves versioning and object lock off, or nothing here can be erased.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
from pyarrow import fs

from memory_actor.checkpoint_io import Files, Oversized, Paths, StoredFile
from memory_actor.crash_points import reached
from memory_actor.errors import SettingsInvalid

_READ_BYTES: Final = 4 << 20


class Bucket:
    """One root in one file system, opened at the first use. Paths are checked by the caller. Methods raise OSError."""

    def __init__(self, uri: str, setting: str) -> None:
        self._uri, self._setting = uri, setting
        self._opened: tuple[Any, str] | None = None
        self._lock = threading.Lock()

    def put(self, path: str, chunks: Iterable[bytes]) -> StoredFile:
        store, full = self._at(path)
        return _put(store, full, chunks, crash_points=True)

    def publish(self, path: str, content: bytes) -> StoredFile:
        """Raises FileExistsError when something is there already; asked before, not decided by the store."""
        store, full = self._at(path)
        if store.get_file_info(full).type != fs.FileType.NotFound:
            raise FileExistsError(errno.EEXIST, "a file of this name exists")
        reached("manifest.before_publish")
        stored = _put(store, full, [content], crash_points=False)
        reached("manifest.after_publish")
        return stored

    def read(self, path: str, bytes_max: int) -> bytes:
        store, full = self._at(path)
        with store.open_input_file(full) as file:
            size = file.size()
            if size > bytes_max:
                raise Oversized(f"{path} has {size} bytes, at most {bytes_max} are read")
            content: bytes = file.read(bytes_max)
            return content

    def delete(self, path: str) -> None:
        store, full = self._at(path)
        if store.get_file_info(full).type == fs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        store.delete_file(full)

    def list(self, prefix: str) -> Paths:
        store, root = self._root()
        folder = f"{root}/{prefix}" if prefix else root
        infos = store.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
        return [info.path.removeprefix(f"{root}/") for info in infos if info.type == fs.FileType.File]

    def sweep(self, prefix: str) -> Files:  # noqa: ARG002 - as in a folder
        """An interrupted put leaves no object. What it has uploaded in parts is removed by the bucket's own rules."""
        return []

    # -- helpers ------------------------------------------------------------------------------------------------

    def _root(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                try:
                    store, root = fs.FileSystem.from_uri(self._uri)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    # The text of Arrow's error may quote the whole URI.
                    raise SettingsInvalid(
                        self._setting, f"not a URI of a file system ({type(error).__name__})"
                    ) from None
                self._opened = store, root.rstrip("/")
            return self._opened

    def _at(self, path: str) -> tuple[Any, str]:
        store, root = self._root()
        return store, f"{root}/{path}"


def _put(store: Any, full: str, chunks: Iterable[bytes], *, crash_points: bool) -> StoredFile:
    """Write and read back. Raises OSError(EIO) when other bytes come back than were given."""
    stored = StoredFile.of(_written(store, full, chunks))
    if crash_points:
        reached("snap.before_rename")
    with store.open_input_stream(full) as file:
        if StoredFile.of(iter(lambda: file.read(_READ_BYTES), b"")) != stored:
            raise OSError(errno.EIO, "other bytes were read back than were written")
    return stored


def _written(store: Any, full: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Write the chunks and pass them on. What was begun is deleted when one of them fails."""
    try:
        with store.open_output_stream(full) as file:
            for chunk in chunks:
                file.write(chunk)
                yield chunk
    except BaseException:
        # Closing the stream has completed the object with what had come so far.
        store.delete_file(full)
        raise
