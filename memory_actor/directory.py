"""Placement: which memory actor owns a tenant. Pure functions of the name and the number of actors.

Tenants hash onto a fixed number of virtual shards and these onto actors, so that placement needs no table and no
coordination, and every process computes the same answer.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from memory_actor.errors import StateFolderUnusable

VIRTUAL_SHARDS: Final = 1024

_LEDGER_FILE = re.compile(r"memory-(\d{2,})\.sqlite")


def virtual_shard(tenant: str, count: int = VIRTUAL_SHARDS) -> int:
    """The virtual shard of a tenant, 0 to count - 1; the same on every machine and in every release."""
    return int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=8).digest(), "little") % count


def actor_of(shard: int, actors: int) -> int:
    """The index of the memory actor that owns a virtual shard; actors own equally many shards, give or take one."""
    if shard < 0 or actors < 1:
        raise ValueError(f"no actor for virtual shard {shard} of {actors} actors")
    return shard % actors


def actor_name(index: int) -> str:
    """The Ray name of a memory actor."""
    return f"larimar-memory-{index:02d}"


def ledger_path(state_dir: Path, index: int) -> Path:
    """The ledger file of a memory actor."""
    return state_dir / "ledger" / f"memory-{index:02d}.sqlite"


def check_actor_count(state_dir: Path, actors: int, on_server: int | None = None) -> None:
    """Refuse a number of actors that would look for tenants in ledgers where they are not.

    The first call notes the number in the file `ledger/actors`; it binds once a ledger exists. Call before any ledger
    is opened. Args: on_server: how many there are on a database server, None for files. Raises StateFolderUnusable.
    """
    folder = state_dir / "ledger"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ledgers = [path for path in folder.iterdir() if _LEDGER_FILE.fullmatch(path.name)]
        note = folder / "actors"
        known = len(ledgers) if on_server is None else on_server
        if not known:
            _write_durably(note, f"{actors}\n")
            return
        # A note cannot be missing beside ledgers unless somebody removed it; then the files are the best evidence.
        noted = note.read_text("ascii").strip() if note.exists() else str(known)
    except (OSError, UnicodeDecodeError) as error:
        cure = "Make the folder readable and writable for this user, or choose another state folder"
        raise StateFolderUnusable(str(state_dir), f"its ledger folder cannot be used: {error}", cure) from error
    if noted != str(actors):
        raise StateFolderUnusable(
            str(state_dir),
            f"its tenants are spread over {noted} memory actors, but memory.actors is {actors}",
            f"Set memory.actors to {noted}, or choose another state folder",
        )


def _write_durably(path: Path, text: str) -> None:
    """Replace a file so that a crash leaves the old or the new one."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
