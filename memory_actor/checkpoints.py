"""Checkpoints as sealed files in a store: writing, reading with nothing trusted unseen, rewriting, deleting, finding.

Layout: `<uid>/<checkpoint id>/<name>.sealed`, and `<uid>/<checkpoint id>.manifest.json`, which is published last. A
checkpoint is there when its manifest is; files without one were left by a crash (`delete_unregistered`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from memory_actor.checkpoint import FORMAT, Snapshot, arrow_chunks, from_arrow
from memory_actor.checkpoint_io import Oversized, StoredFile
from memory_actor.checkpoint_manifest import BYTES_MAX, FILE_BYTES_MAX, SUFFIX, Manifest, parse
from memory_actor.checkpoint_sealed import FilePlace, seal_file, unseal_file
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.errors import CheckpointDamaged, CheckpointMismatch, LocationUnavailable
from memory_actor.sealing import SealBroken
from memory_actor.types import CheckpointInfo, MemoryConfig

if TYPE_CHECKING:
    from memory_actor.vault import DataKey

log = logging.getLogger("larimar.checkpoints")

_SEALED: Final = ".sealed"
_ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def write_checkpoint(
    store: CheckpointStore, snapshot: Snapshot, file_key: DataKey, config: MemoryConfig, now: float
) -> CheckpointInfo:
    """Publish a new checkpoint, sealed under `file_key`, which must be durable already and used for nothing else.

    Nothing of it counts until the caller has registered the result. Raises LocationUnavailable; what was put until
    then is deleted again as far as the store lets us.
    """
    checkpoint_id = "c_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(26))
    put: list[str] = []
    try:
        files: dict[str, StoredFile] = {}
        for name, chunks in arrow_chunks(snapshot, config).items():
            sealed = name + _SEALED
            put.append(_path(snapshot.uid, checkpoint_id, sealed))
            place = FilePlace(snapshot.uid, checkpoint_id, sealed)
            files[sealed] = store.put(put[-1], seal_file(chunks, file_key.key, place))
        manifest = _manifest_of(snapshot, checkpoint_id, file_key.id, files, now)
        content = manifest.signed(file_key.key)
        put.append(_manifest_path(snapshot.uid, checkpoint_id))
        store.publish(put[-1], content)
    except (LocationUnavailable, ValueError):
        with contextlib.suppress(LocationUnavailable):
            for path in reversed(put):
                store.delete(path)
        raise
    return manifest.info(store.name, content)


def read_checkpoint(store: CheckpointStore, info: CheckpointInfo, file_key: bytes, config: MemoryConfig) -> Snapshot:
    """The contents of a checkpoint, every byte of it verified.

    In this order: manifest by its registered hash and by the file key, size and SHA-256 of each file, GCM, Arrow with
    its exact schema, counts and finite numbers, state hash. Raises CheckpointDamaged, CheckpointMismatch (another
    bundle or tenant, a newer format), LocationUnavailable.
    """
    manifest = _verified_manifest(store, info, file_key)
    files: dict[str, bytes | bytearray] = {}
    for name, stored in manifest.files.items():
        sealed = _read(store, info, _path(info.uid, info.checkpoint_id, name), stored.size)
        if StoredFile.of(sealed) != stored:
            raise CheckpointDamaged(info.checkpoint_id, f"{name} is not what was written (SHA-256 differs)")
        try:
            plain = unseal_file(sealed, file_key, FilePlace(info.uid, info.checkpoint_id, name))
        except SealBroken:
            raise CheckpointDamaged(info.checkpoint_id, f"{name} does not open with its key") from None
        files[name.removesuffix(_SEALED)] = plain
    snapshot = from_arrow(files, config, checkpoint=info.checkpoint_id)
    for what in ("tenant", "uid", "version", "state_hash"):
        _match(info, what, getattr(snapshot, what), getattr(manifest, what))
    _match(info, "facts", len(snapshot.facts), manifest.facts)
    return snapshot


def rewrite_without(  # noqa: PLR0917 - what reading and writing take, together
    store: CheckpointStore,
    info: CheckpointInfo,
    file_key: bytes,
    fact_ids: Collection[str],
    new_key: DataKey,
    config: MemoryConfig,
    now: float,
) -> CheckpointInfo:
    """A new checkpoint of the same version as if these facts had never been written; the old one is left alone.

    Returns `info` itself, and writes nothing, when it holds none of them. Raises as `read_checkpoint` and
    `write_checkpoint` do.
    """
    snapshot = read_checkpoint(store, info, file_key, config)
    remaining = snapshot.without(fact_ids, config)
    if remaining is snapshot:
        return info
    return write_checkpoint(store, remaining, new_key, config, now)


def delete_checkpoint(store: CheckpointStore, info: CheckpointInfo) -> list[str]:
    """Delete a checkpoint's files, the manifest last; returns the SHA-256 of each, sorted.

    Repeated after a crash it goes on where it ended and returns all hashes still, as long as the manifest was there.
    """
    manifest = _manifest_path(info.uid, info.checkpoint_id)
    paths = [path for path in store.list(info.uid) if _checkpoint_of(path) == info.checkpoint_id]
    hashes: dict[str, str] = {}
    if manifest in paths:
        content = store.read(manifest, FILE_BYTES_MAX)
        hashes[manifest] = hashlib.sha256(content).hexdigest()
        if hashes[manifest] == info.manifest_sha256:
            with contextlib.suppress(CheckpointMismatch):  # of a newer format: its files are hashed as they are
                files = parse(content, info.checkpoint_id).files
                hashes |= {_path(info.uid, info.checkpoint_id, name): file.sha256 for name, file in files.items()}
    return _delete(store, sorted(paths, key=lambda path: path == manifest), hashes)


def delete_unregistered(store: CheckpointStore, uid: str, registered: Collection[str]) -> list[str]:
    """Delete whatever this tenant has in the store but checkpoints with these ids; the SHA-256 of each file, sorted.

    Not while a checkpoint of the tenant is being written: it is registered only afterwards.
    """
    left = [file.sha256 for file in store.sweep(uid)]
    return sorted(left + _delete(store, [path for path in store.list(uid) if _checkpoint_of(path) not in registered]))


def find_manifests(store: CheckpointStore, *, tenant: str | None = None, uid: str | None = None) -> list[Manifest]:
    """Checkpoints in a store, of one tenant name or incarnation or all, newest last: for when the ledger is lost.

    They are not authenticated yet; `find_checkpoint` makes of one what `read_checkpoint` takes, and that verifies it
    with its key. Manifests that cannot be read are left out and logged.
    """
    found: list[Manifest] = []
    for path in store.list(uid or ""):
        if not path.endswith(SUFFIX) or path.count("/") != 1:
            continue
        folder, name = path.split("/")
        try:
            manifest = parse(store.read(path, BYTES_MAX), name.removesuffix(SUFFIX))
        except (CheckpointDamaged, CheckpointMismatch, Oversized, FileNotFoundError) as error:
            log.warning("manifest_passed_over: %s", error)
            continue
        in_place = (manifest.uid, manifest.checkpoint_id) == (folder, name.removesuffix(SUFFIX))
        if in_place and (tenant is None or manifest.tenant == tenant):
            found.append(manifest)
    return sorted(found, key=lambda one: (one.version, one.created_at))


def find_checkpoint(store: CheckpointStore, manifest: Manifest) -> CheckpointInfo:
    """What the ledger would say of a found manifest. Raises CheckpointDamaged when it is gone, LocationUnavailable."""
    path = _manifest_path(manifest.uid, manifest.checkpoint_id)
    try:
        return manifest.info(store.name, store.read(path, BYTES_MAX))
    except (FileNotFoundError, Oversized):
        raise CheckpointDamaged(manifest.checkpoint_id, "its manifest is gone or was replaced") from None


# -- helpers ----------------------------------------------------------------------------------------------------


def _manifest_of(
    snapshot: Snapshot, checkpoint_id: str, key_id: int, files: Mapping[str, StoredFile], now: float
) -> Manifest:
    return Manifest(
        format=FORMAT,
        checkpoint_id=checkpoint_id,
        tenant=snapshot.tenant,
        uid=snapshot.uid,
        version=snapshot.version,
        facts=len(snapshot.facts),
        state_hash=snapshot.state_hash,
        key_id=key_id,
        created_at=float(now),
        files=files,
    )


def _verified_manifest(store: CheckpointStore, info: CheckpointInfo, file_key: bytes) -> Manifest:
    content = _read(store, info, _manifest_path(info.uid, info.checkpoint_id), BYTES_MAX)
    if hashlib.sha256(content).hexdigest() != info.manifest_sha256:
        raise CheckpointDamaged(info.checkpoint_id, "its manifest is not the one that was registered (SHA-256 differs)")
    manifest = parse(content, info.checkpoint_id)
    manifest.check(file_key)
    expected = manifest.info(info.location, content)
    for what in ("checkpoint_id", "uid", "tenant", "version", "facts", "state_hash", "key_id"):
        _match(info, what, getattr(expected, what), getattr(info, what))
    return manifest


def _match(info: CheckpointInfo, what: str, stored: object, expected: object) -> None:
    if stored != expected:
        raise CheckpointMismatch(info.checkpoint_id, f"its {what.replace('_', ' ')}", stored, expected)


def _read(store: CheckpointStore, info: CheckpointInfo, path: str, bytes_max: int) -> bytes:
    name = path.rsplit("/", 1)[-1]
    try:
        return store.read(path, bytes_max)
    except FileNotFoundError:
        raise CheckpointDamaged(info.checkpoint_id, f"{name} is missing") from None
    except Oversized:
        raise CheckpointDamaged(info.checkpoint_id, f"{name} is larger than what was written") from None


def _delete(store: CheckpointStore, paths: Sequence[str], known: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Delete files in this order. Returns the known hashes, and those of the files that none is known of, sorted."""
    hashes = dict(known)
    for path in paths:
        if path not in hashes:
            hashes[path] = StoredFile.of(store.read(path, FILE_BYTES_MAX)).sha256
    for path in paths:
        store.delete(path)
    return sorted(hashes.values())


def _checkpoint_of(path: str) -> str:
    """The checkpoint that a file belongs to by its place."""
    return path.split("/")[1].removesuffix(SUFFIX)


def _path(uid: str, checkpoint_id: str, name: str) -> str:
    return f"{uid}/{checkpoint_id}/{name}"


def _manifest_path(uid: str, checkpoint_id: str) -> str:
    return f"{uid}/{checkpoint_id}{SUFFIX}"


__all__ = [
    "Manifest",
    "delete_checkpoint",
    "delete_unregistered",
    "find_checkpoint",
    "find_manifests",
    "read_checkpoint",
    "rewrite_without",
    "write_checkpoint",
]
