"""The folder of secrets: the root key that opens every vault, and the key that signs receipts.

    root.key        32 random bytes in hex (0400). Back it up apart from the data: without it nothing can be read.
    root.key.new    its successor, while a rotation is unfinished
    root.key.old    its predecessor, for the moment in which it is overwritten
    signing.key     Ed25519 private key in hex (0400)

A rotation is `begin_rotation`, every vault wrapped anew, `finish_rotation`; at any moment in between the system starts
with whichever keys `root_keys` finds, and the rotation can be taken up again.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from memory_actor.errors import StateFolderUnusable, VaultLocked
from memory_actor.receipts import ReceiptSigner
from memory_actor.sealing import KEY_BYTES, new_key

_HEX_BYTES: Final = 2 * KEY_BYTES + 1  # and a newline


class KeyFolder:
    """One folder of secrets. Only its owner may enter it. Its repr and its errors show no key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path / "root.key"
        self._new = path / "root.key.new"
        self._old = path / "root.key.old"
        self._signing = path / "signing.key"

    def ensure(self, *, may_create: bool) -> None:
        """Make the keys that are missing when `may_create`; several processes may do so at once, one wins.

        Args: may_create: False when data exist already that an earlier root key sealed.
        Raises: VaultLocked (root key missing or unreadable), StateFolderUnusable (signing key missing, or the folder
        cannot be used). Only when keys may be created is anything changed.
        """
        if may_create:
            self._make_folder()
            # The signing key first: where there is a root key, both were made, and one that is missing was lost.
            self._make(self._signing)
            if not any(file.exists() for file in (self._root, self._new, self._old)):
                self._make(self._root)
        self.root_keys()
        self.signer()

    def root_keys(self) -> list[bytes]:
        """The root keys there are, newest first: one, or two while a rotation is unfinished. Raises VaultLocked."""
        files = [file for file in (self._new, self._root, self._old) if file.exists()]
        # Between the two renames of `finish_rotation`, the overwritten key may be half gone: it is not needed then.
        keys = [key for file in files if (key := self._root_key(file)) is not None]
        if not keys:
            raise VaultLocked(str(self._root), "the root key file is missing")
        return list(dict.fromkeys(keys))

    def signer(self) -> ReceiptSigner:
        """What signs receipts. Raises StateFolderUnusable when its key is missing or damaged."""
        cure = f"Put {self._signing} back from your backup of secrets; receipts are signed with it"
        try:
            return ReceiptSigner(_read(self._signing))
        except FileNotFoundError:
            raise StateFolderUnusable(str(self.path), "signing.key is missing", cure) from None
        except OSError as error:
            raise StateFolderUnusable(str(self.path), f"signing.key: {error.strerror}", cure) from None
        except ValueError:
            raise StateFolderUnusable(str(self.path), "signing.key is damaged", cure) from None

    # -- rotation -----------------------------------------------------------------------------------------------

    @property
    def rotating(self) -> bool:
        """Whether a rotation was begun and is not finished."""
        return self._new.exists() or self._old.exists()

    def begin_rotation(self) -> bytes:
        """The new root key: fresh and durable beside the old one, or that of the rotation which is unfinished.

        Raises VaultLocked, StateFolderUnusable.
        """
        if self._old.exists() and not self._new.exists():
            self.finish_rotation()  # it had come to its last step
        self.root_keys()
        self._make(self._new)
        return _read(self._new)

    def finish_rotation(self) -> None:
        """Let the new root key be the only one: call when every vault is wrapped under it, none under the old one.

        The old key's file is overwritten before it is deleted. May be repeated after a crash at any point.
        Raises: StateFolderUnusable.
        """
        try:
            if self._new.exists():
                if self._root.exists():
                    self._root.replace(self._old)
                    _sync_folder(self.path)
                self._new.replace(self._root)
                _sync_folder(self.path)
            if self._old.exists():
                _overwrite(self._old)
                self._old.unlink()
                _sync_folder(self.path)
        except OSError as error:
            raise self._unusable(error) from error

    # -- inside -------------------------------------------------------------------------------------------------

    def _root_key(self, file: Path) -> bytes | None:
        """A root key; None for an old one that is being overwritten. Raises VaultLocked."""
        try:
            return _read(file)
        except OSError as error:
            raise VaultLocked(str(file), f"the root key file cannot be read: {error.strerror}") from None
        except ValueError:
            if file == self._old:
                return None
            raise VaultLocked(str(file), f"the root key file is not {KEY_BYTES} bytes in hex") from None

    def _make_folder(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise self._unusable(error) from error

    def _make(self, file: Path) -> None:
        """Write a fresh key, durable on return; a file that is there stays as it is."""
        if file.exists():
            return
        scratch: Path | None = None
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path, prefix=f".{file.name}.")
            scratch = Path(name)
            with os.fdopen(descriptor, "wb") as out:
                os.fchmod(out.fileno(), 0o400)
                out.write(new_key().hex().encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            try:
                # Unlike a rename this fails when another process was first, so that no key is ever replaced.
                os.link(scratch, file)
            except FileExistsError:
                _overwrite(scratch)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            if scratch is not None:
                scratch.unlink(missing_ok=True)
        _sync_folder(self.path)

    def _unusable(self, error: OSError) -> StateFolderUnusable:
        reason = f"keys cannot be kept there: {error.strerror or type(error).__name__}"
        return StateFolderUnusable(str(self.path), reason, "Make it a folder of this user on a local disk")


def _read(file: Path) -> bytes:
    """Raises OSError; ValueError when it does not hold a key."""
    with file.open("rb") as source:
        text = source.read(_HEX_BYTES + 2)  # a carriage return, and one more to see that it is too long
    key = bytes.fromhex(text.strip().decode("ascii"))
    if len(key) != KEY_BYTES:
        raise ValueError("not a key")
    return key


def _overwrite(file: Path) -> None:
    """Write random bytes over a file's content, in place, down to the disk."""
    file.chmod(0o600)
    with file.open("r+b") as target:
        size = os.fstat(target.fileno()).st_size
        target.write(secrets.token_bytes(size))
        target.flush()
        os.fsync(target.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
