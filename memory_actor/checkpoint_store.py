"""Where checkpoints are kept: named places of the operator, each confined to one root. Bytes in, bytes out.

A store knows nothing of what its files mean. Paths are relative, made by us, and checked all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from memory_actor.checkpoint_folder import LocalFolder
from memory_actor.checkpoint_io import Files, Oversized, Paths, StoredFile
from memory_actor.crash_points import reached
from memory_actor.errors import LocationUnavailable, SettingsInvalid

__all__ = ["CheckpointStore", "Oversized", "StoredFile"]

_COMPONENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TEMPORARY: Final = ".tmp"
_AWS_ERROR: Final = re.compile(r"AWS Error [A-Z_]+")


class _Place(Protocol):
    """What a kind of storage does. Paths are checked by the caller. Raises OSError."""

    def put(self, path: str, chunks: Iterable[bytes]) -> StoredFile: ...
    def publish(self, path: str, content: bytes) -> StoredFile: ...
    def read(self, path: str, bytes_max: int) -> bytes: ...
    def delete(self, path: str) -> None: ...
    def list(self, prefix: str) -> Paths: ...
    def sweep(self, prefix: str) -> Files: ...


class CheckpointStore:
    """One location. `uri` is a local folder or what `pyarrow.fs.FileSystem.from_uri` takes, without credentials.

    Nothing is opened before the first use. All methods raise LocationUnavailable when the storage fails; they are safe
    on any thread.
    """

    def __init__(self, name: str, uri: str | Path) -> None:
        """Raises SettingsInvalid for a URI that carries credentials or cannot be understood."""
        self.name = name
        self._place = _place_of(name, str(uri))

    def put(self, path: str, content: bytes | Iterable[bytes]) -> StoredFile:
        """Keep `content` (or its pieces) under `path`, in full and durably, or not at all."""
        checked = _checked(self.name, path)
        chunks = [content] if isinstance(content, bytes) else content
        try:
            return self._place.put(checked, chunks)
        except OSError as error:
            raise self._unavailable("write", path, error) from error

    def publish(self, path: str, content: bytes) -> StoredFile:
        """`put`, but only where nothing is: whoever sees the file sees all of it. The same content again is no error.

        Local folders decide by link(2), which is atomic. Object stores are asked first and written to then, so there it
        is not: the names that are published are random and never used twice. Raises LocationUnavailable when another
        file is there.
        """
        checked = _checked(self.name, path)
        try:
            return self._place.publish(checked, content)
        except FileExistsError as error:
            if self.read(path, len(content) + 1) == content:  # a repeated call
                return StoredFile.of(content)
            raise self._unavailable("publish", path, error) from error
        except OSError as error:
            raise self._unavailable("publish", path, error) from error

    def read(self, path: str, bytes_max: int) -> bytes:
        """The file's bytes. Raises FileNotFoundError; Oversized before reading more than `bytes_max`."""
        checked = _checked(self.name, path)
        try:
            return self._place.read(checked, bytes_max)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unavailable("read", path, error) from error

    def delete(self, path: str) -> bool:
        """Delete one file durably; folders that become empty go with it. False when there is none."""
        checked = _checked(self.name, path)
        try:
            self._place.delete(checked)
            reached("erase.mid_file_delete")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable("delete", path, error) from error
        return True

    def list(self, prefix: str = "") -> Paths:
        """The paths of all files under the folder `prefix`, sorted. Unfinished ones (`*.tmp`) are left out."""
        checked = _checked(self.name, prefix) if prefix else ""
        try:
            found = self._place.list(checked)
        except OSError as error:
            raise self._unavailable("list", prefix, error) from error
        return sorted(path for path in found if not path.endswith(_TEMPORARY))

    def sweep(self, prefix: str) -> Files:
        """Remove what crashed puts have left under the folder `prefix`, as the next put does, and say what it was."""
        checked = _checked(self.name, prefix)
        try:
            return self._place.sweep(checked)
        except OSError as error:
            raise self._unavailable("tidy", prefix, error) from error

    def _unavailable(self, verb: str, path: str, error: OSError) -> LocationUnavailable:
        return LocationUnavailable(self.name, f"cannot {verb} {path!r} ({_reason(error)})")


def _checked(name: str, path: str) -> str:
    """`path`, if it cannot lead out of the root whatever the storage makes of it. Raises LocationUnavailable."""
    parts = path.split("/")
    if not all(_COMPONENT.fullmatch(part) for part in parts) or path.endswith(_TEMPORARY):
        raise LocationUnavailable(name, f"{path!r} is not a path inside it")
    return path


def _reason(error: OSError) -> str:
    """Short, and without what cloud libraries put into their texts: hosts, request ids, now and then credentials."""
    said = _AWS_ERROR.search(str(error))
    return error.strerror or (said.group() if said else type(error).__name__)


def _place_of(name: str, uri: str) -> _Place:
    setting = f"checkpoints.locations.{name}"
    if "://" not in uri:
        if not uri:
            raise SettingsInvalid(setting, "the location is empty; give a folder or a URI")
        return LocalFolder(Path(uri).absolute())
    parsed = urlsplit(uri)
    if parsed.scheme == "file":
        if parsed.netloc or parsed.query or parsed.fragment:
            raise SettingsInvalid(setting, "a file:// URI has a path and nothing else")
        return LocalFolder(Path(unquote(parsed.path)))
    if parsed.username is not None or parsed.password is not None:
        raise SettingsInvalid(setting, "a URI must not carry credentials; give them by environment or a profile")
    from memory_actor.checkpoint_bucket import Bucket  # noqa: PLC0415 - Arrow takes a while to import

    return Bucket(uri, setting)
