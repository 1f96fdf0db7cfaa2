"""Checkpoints in a store: whole or not there, nothing trusted unseen, rewritten exactly, deleted without a trace."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_actor import checkpoint_manifest, checkpoint_sealed, crash_points
from memory_actor.checkpoint import from_arrow, to_arrow
from memory_actor.checkpoint_manifest import parse
from memory_actor.checkpoint_sealed import FilePlace, seal_file, unseal_file
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpoints import (
    delete_checkpoint,
    delete_unregistered,
    find_checkpoint,
    find_manifests,
    read_checkpoint,
    rewrite_without,
    write_checkpoint,
)
from memory_actor.errors import CheckpointDamaged, CheckpointMismatch, LocationUnavailable
from memory_actor.sealing import SealBroken
from memory_actor.types import CheckpointInfo
from tests.checkpoint_samples import NEW_KEY, OLD_KEY, UID, bench_of, same_fact, snapshot_of
from tests.memory_fixtures import SMALL

KEY = OLD_KEY.key


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore("local", tmp_path / "checkpoints")


@pytest.fixture(autouse=True)
def _no_hook():
    yield
    crash_points.install(None)


def written(store: CheckpointStore, count: int = 5, *, seed: int = 1) -> CheckpointInfo:
    return write_checkpoint(store, snapshot_of(bench_of(count, seed=seed)), OLD_KEY, SMALL, 1000.5)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# -- there and back ---------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written(store, tmp_path):
    """Contents come back to the bit, and the registration says what is there."""
    given = snapshot_of(bench_of(11))
    info = write_checkpoint(store, given, OLD_KEY, SMALL, 1000.5)
    back = read_checkpoint(store, info, KEY, SMALL)
    assert to_arrow(back, SMALL) == to_arrow(given, SMALL)
    assert all(same_fact(first, second) for first, second in zip(back.facts, given.facts, strict=True))
    files = files_of(tmp_path / "checkpoints")
    manifest = f"{UID}/{info.checkpoint_id}.manifest.json"
    assert files.keys() == {
        manifest,
        f"{UID}/{info.checkpoint_id}/sums.arrow.sealed",
        f"{UID}/{info.checkpoint_id}/facts.arrow.sealed",
    }
    assert info == CheckpointInfo(
        checkpoint_id=info.checkpoint_id,
        tenant="acme",
        uid=UID,
        location="local",
        version=given.version,
        facts=11,
        bytes=sum(map(len, files.values())),
        state_hash=given.state_hash,
        key_id=OLD_KEY.id,
        manifest_sha256=hashlib.sha256(files[manifest]).hexdigest(),
        created_at=1000.5,
    )


def test_nothing_of_a_fact_is_readable_on_disk(store, tmp_path):
    """Not a word, an id or a key of a fact, in any file."""
    bench = bench_of(11)
    write_checkpoint(store, snapshot_of(bench), OLD_KEY, SMALL, 0.0)
    everything = b"".join(files_of(tmp_path).values())
    for fact in bench.stored.values():
        for needle in (fact.prompt, fact.target, fact.fact_id):
            assert needle.encode() not in everything
        for array in (fact.key, fact.addresses, fact.latents):
            assert array.tobytes() not in everything
    assert KEY not in everything


def test_two_checkpoints_of_equal_contents_share_no_name_and_no_sealed_byte_run(store):
    """Names are random and nonces fresh, so nothing is ever written over."""
    first, second = written(store), written(store)
    assert first.checkpoint_id != second.checkpoint_id
    contents = [store.read(path, 1 << 20) for path in store.list(UID) if path.endswith("sums.arrow.sealed")]
    assert len(contents) == 2
    assert contents[0][12:] != contents[1][12:]


# -- damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_detected(store, tmp_path):
    """At 150 random offsets of each file, and at each end: CheckpointDamaged, never another answer."""
    info = written(store)
    random = np.random.default_rng(5)
    for name, content in files_of(tmp_path / "checkpoints").items():
        path = tmp_path / "checkpoints" / name
        offsets = {0, len(content) - 1, *random.integers(0, len(content), 150).tolist()}
        for offset in offsets:
            flipped = bytearray(content)
            flipped[offset] ^= 1 << int(random.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(CheckpointDamaged):
                read_checkpoint(store, info, KEY, SMALL)
        path.write_bytes(content)
    assert read_checkpoint(store, info, KEY, SMALL).state_hash == info.state_hash


def test_a_flipped_bit_in_a_found_manifest_is_detected(store, tmp_path):
    """Without a ledger nobody knows the manifest's hash: its own seal tells, at every single byte."""
    info = written(store)
    path = tmp_path / "checkpoints" / UID / f"{info.checkpoint_id}.manifest.json"
    content = path.read_bytes()
    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << (offset % 8)
        path.write_bytes(flipped)
        for manifest in find_manifests(store):
            with pytest.raises(CheckpointDamaged):
                read_checkpoint(store, find_checkpoint(store, manifest), KEY, SMALL)


def test_hashes_alone_convince_nobody(store, tmp_path):
    """Files that match a manifest that matches its registration, all made without the key: refused."""
    info = written(store)
    folder = tmp_path / "checkpoints" / UID
    sealed = folder / info.checkpoint_id / "facts.arrow.sealed"
    forged = bytearray(sealed.read_bytes())
    forged[100] ^= 1
    sealed.write_bytes(forged)
    manifest = folder / f"{info.checkpoint_id}.manifest.json"
    entries = json.loads(manifest.read_bytes())
    entries["files"]["facts.arrow.sealed"]["sha256"] = hashlib.sha256(forged).hexdigest()
    manifest.write_text(json.dumps(entries, sort_keys=True, separators=(",", ":")))
    info = replace(info, manifest_sha256=hashlib.sha256(manifest.read_bytes()).hexdigest())
    with pytest.raises(CheckpointDamaged, match="changed or belongs to another key"):
        read_checkpoint(store, info, KEY, SMALL)


def test_files_that_are_missing_cut_longer_or_swapped_are_named(store, tmp_path):
    """Also a file of another checkpoint of the same tenant under the same key."""
    info, other = written(store, 5), written(store, 6)
    root = tmp_path / "checkpoints"
    for name in ("sums.arrow.sealed", "facts.arrow.sealed"):
        path = root / UID / info.checkpoint_id / name
        content = path.read_bytes()
        foreign = (root / UID / other.checkpoint_id / name).read_bytes()
        for wrong in (content[:-1], content + b"x", b"", foreign, content[: len(content) // 2]):
            path.write_bytes(wrong)
            with pytest.raises(CheckpointDamaged, match=name):
                read_checkpoint(store, info, KEY, SMALL)
        path.unlink()
        with pytest.raises(CheckpointDamaged, match=f"{name} is missing"):
            read_checkpoint(store, info, KEY, SMALL)
        path.write_bytes(content)
    (root / UID / f"{info.checkpoint_id}.manifest.json").unlink()
    with pytest.raises(CheckpointDamaged, match="is missing"):
        read_checkpoint(store, info, KEY, SMALL)


def test_another_key_or_registration_opens_nothing(store):
    info = written(store)
    with pytest.raises(CheckpointDamaged):
        read_checkpoint(store, info, NEW_KEY.key, SMALL)
    for wrong in ({"version": 99}, {"tenant": "other"}, {"facts": 1}, {"key_id": 1}, {"state_hash": "0" * 64}):
        with pytest.raises(CheckpointMismatch):
            read_checkpoint(store, replace(info, **wrong), KEY, SMALL)
    with pytest.raises(CheckpointDamaged):
        read_checkpoint(store, replace(info, uid="f" * 32), KEY, SMALL)


def test_a_checkpoint_of_a_newer_release_is_named_as_such(store, tmp_path):
    """By its manifest alone, whatever else is in it."""
    info = written(store)
    path = tmp_path / "checkpoints" / UID / f"{info.checkpoint_id}.manifest.json"
    path.write_bytes(json.dumps({"format": 2, "anything": ["else"]}).encode())
    info = replace(info, manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointMismatch, match="its format is 2, expected 1"):
        read_checkpoint(store, info, KEY, SMALL)
    assert find_manifests(store) == []
    assert len(delete_checkpoint(store, info)) == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"format":true}', b'{"format":1}', b'{"format":-1}', b"\xff\xfe"],
)
def test_what_is_no_manifest_is_refused(content):
    with pytest.raises(CheckpointDamaged):
        parse(content, "c_test")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("facts", -1),
        ("facts", 1.0),
        ("facts", True),
        ("version", "1"),
        ("tenant", None),
        ("created_at", 5),
        ("created_at", math.inf),
        ("files", []),
        ("files", {"a": {"sha256": "zz", "bytes": 1}}),
        ("files", {"a": {"sha256": "0" * 64, "bytes": 1 << 40}}),
        ("more", 1),
    ],
)
def test_a_manifest_with_a_wrong_entry_is_refused(store, name, value):
    info = written(store)
    entries = json.loads(store.read(f"{UID}/{info.checkpoint_id}.manifest.json", 1 << 16))
    content = json.dumps(entries | {name: value}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(CheckpointDamaged):
        parse(content, "c_test")


# -- frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 250, 1000])
def test_frames_of_any_number_open_to_what_was_sealed(monkeypatch, size):
    """Whatever the pieces they came in."""
    monkeypatch.setattr(checkpoint_sealed, "FRAME_BYTES", 100)
    plain = np.random.default_rng(size).bytes(size)
    place = FilePlace(UID, "c_test", "x")
    for step in (1, 33, 100, 2000):
        pieces = (plain[start : start + step] for start in range(0, size, step))
        frames = list(seal_file(pieces, KEY, place))
        assert len(frames) == max(1, math.ceil(size / 100))
        assert max(map(len, frames)) <= 128
        assert unseal_file(b"".join(frames), KEY, place) == plain


def test_frames_that_are_cut_repeated_swapped_or_elsewhere_do_not_open(monkeypatch):
    """Order and end are sealed with them."""
    monkeypatch.setattr(checkpoint_sealed, "FRAME_BYTES", 100)
    plain, place = np.random.default_rng(1).bytes(350), FilePlace(UID, "c_test", "x")
    a, b, c, d = seal_file([plain], KEY, place)
    for wrong in (
        [a, b, c],
        [a],
        [b, a, c, d],
        [a, b, b, c, d],
        [a, c, d],
        [d],
        [a, b, c, d, d],
        [a, b, c, d[:-1]],
        [],
    ):
        with pytest.raises(SealBroken):
            unseal_file(b"".join(wrong), KEY, place)
    for elsewhere in (replace(place, uid="f" * 32), replace(place, checkpoint_id="c_"), replace(place, name="y")):
        with pytest.raises(SealBroken):
            unseal_file(b"".join([a, b, c, d]), KEY, elsewhere)


# -- rewriting --------------------------------------------------------------------------------------------------


def test_rewritten_it_equals_one_of_a_tenant_that_never_had_the_facts(store):
    """Same state hash and the same plain files, under the same version and a new key; the old one still stands."""
    bench = bench_of(12)
    info = write_checkpoint(store, snapshot_of(bench), OLD_KEY, SMALL, 1.0)
    gone = sorted(bench.stored)[3:8]
    new = rewrite_without(store, info, KEY, gone, NEW_KEY, SMALL, 2.0)
    bench.forget(gone)
    expected = replace(snapshot_of(bench), version=info.version)
    assert (new.state_hash, new.version, new.facts) == (bench.hash, info.version, 7)
    assert (new.key_id, new.created_at, new.uid) == (NEW_KEY.id, 2.0, UID)
    assert new.checkpoint_id != info.checkpoint_id
    assert to_arrow(read_checkpoint(store, new, NEW_KEY.key, SMALL), SMALL) == to_arrow(expected, SMALL)
    with pytest.raises(CheckpointDamaged):
        read_checkpoint(store, new, KEY, SMALL)
    assert read_checkpoint(store, info, KEY, SMALL).state_hash == info.state_hash


def test_rewriting_without_facts_it_does_not_hold_writes_nothing(store):
    info = written(store)
    before = store.list()
    assert rewrite_without(store, info, KEY, ["f_unknown"], NEW_KEY, SMALL, 2.0) is info
    assert store.list() == before


def test_without_all_its_facts_a_checkpoint_is_empty(store):
    bench = bench_of(4)
    info = write_checkpoint(store, snapshot_of(bench), OLD_KEY, SMALL, 1.0)
    new = rewrite_without(store, info, KEY, set(bench.stored), NEW_KEY, SMALL, 2.0)
    empty = read_checkpoint(store, new, NEW_KEY.key, SMALL)
    assert (empty.facts, empty.sums.rows, new.state_hash) == ((), 0, bench_of(0).hash)


# -- deleting and finding ---------------------------------------------------------------------------------------


def test_deleting_leaves_no_byte_and_lists_the_hashes(store, tmp_path):
    info, other = written(store), written(store)
    kept = {path for path in store.list() if other.checkpoint_id in path}
    root = tmp_path / "checkpoints"
    gone = {path: content for path, content in files_of(root).items() if path not in kept}
    hashes = delete_checkpoint(store, info)
    assert hashes == sorted(hashlib.sha256(content).hexdigest() for content in gone.values())
    assert set(files_of(root)) == kept
    assert not (root / UID / info.checkpoint_id).exists()
    assert delete_checkpoint(store, info) == []
    delete_checkpoint(store, other)
    assert list(root.iterdir()) == []


def test_deleting_goes_on_after_a_crash_and_still_lists_all_hashes(store):
    """Stopped after each file: the second call finishes and returns what one call would have."""
    for stop in (1, 2, 3):
        info = written(store)
        manifest = store.read(f"{UID}/{info.checkpoint_id}.manifest.json", 1 << 16)
        files = parse(manifest, "c_test").files.values()
        expected = sorted([hashlib.sha256(manifest).hexdigest(), *(file.sha256 for file in files)])
        seen = stopping_at("erase.mid_file_delete", stop)
        with pytest.raises(Stopped):
            delete_checkpoint(store, info)
        crash_points.install(None)
        assert seen == ["erase.mid_file_delete"] * stop
        assert delete_checkpoint(store, info) == (expected if stop < 3 else [])
        assert store.list() == []


def test_a_failure_between_two_deletions_is_told_and_repeated(store):
    """EIO after the first file: LocationUnavailable; the next call deletes the rest."""
    info = written(store)
    stopping_at("erase.mid_file_delete", 1, OSError(5, "Input/output error"))
    with pytest.raises(LocationUnavailable, match="cannot delete"):
        delete_checkpoint(store, info)
    crash_points.install(None)
    assert len(store.list()) == 2
    assert len(delete_checkpoint(store, info)) == 3
    assert store.list() == []


def test_a_damaged_checkpoint_can_be_deleted(store, tmp_path):
    """Its hashes are those of the bytes that were there."""
    info = written(store)
    root = tmp_path / "checkpoints"
    for path in root.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged " + path.name.encode())
    expected = sorted(hashlib.sha256(content).hexdigest() for content in files_of(root).values())
    assert delete_checkpoint(store, info) == expected
    assert files_of(root) == {}


def test_what_no_registration_knows_is_deleted(store, tmp_path):
    """Checkpoints, parts of them, unfinished and foreign files of the tenant; another tenant's stay."""
    kept, gone = written(store), written(store)
    root = tmp_path / "checkpoints"
    (root / UID / gone.checkpoint_id / "sums.arrow.sealed").unlink()
    (root / UID / "c_half").mkdir()
    (root / UID / "c_half" / "facts.arrow.sealed").write_bytes(b"half")
    (root / UID / "c_half" / "sums.arrow.sealed.12.tmp").write_bytes(b"unfinished")
    (root / UID / "stray").write_bytes(b"stray")
    (root / ("f" * 32)).mkdir()
    (root / ("f" * 32) / "c_other.manifest.json").write_bytes(b"{}")
    known = {p for p in files_of(root) if kept.checkpoint_id in p or "c_other" in p}
    expected = sorted(hashlib.sha256(content).hexdigest() for p, content in files_of(root).items() if p not in known)
    assert delete_unregistered(store, UID, [kept.checkpoint_id]) == expected
    assert set(files_of(root)) == known
    assert read_checkpoint(store, kept, KEY, SMALL).facts
    assert len(delete_unregistered(store, UID, ())) == 3
    assert not (root / UID).exists()


def test_checkpoints_are_found_without_a_ledger(store, tmp_path, caplog):
    """By tenant name or incarnation, newest last; what is no manifest is passed over with a warning."""
    first, second = written(store, 3), written(store, 8)
    third = write_checkpoint(
        store, replace(snapshot_of(bench_of(2)), uid="e" * 32, tenant="other"), NEW_KEY, SMALL, 5.0
    )
    root = tmp_path / "checkpoints"
    (root / UID / "c_bad.manifest.json").write_bytes(b"{")
    (root / UID / "c_moved.manifest.json").write_bytes(
        (root / UID / f"{first.checkpoint_id}.manifest.json").read_bytes()
    )
    (root / UID / first.checkpoint_id / "c_deep.manifest.json").write_bytes(b"{}")
    (root / UID / "c_big.manifest.json").write_bytes(bytes(checkpoint_manifest.BYTES_MAX + 1))
    found = [find_checkpoint(store, manifest) for manifest in find_manifests(store, tenant="acme")]
    assert found == [first, second]
    assert [one.checkpoint_id for one in find_manifests(store, uid="e" * 32)] == [third.checkpoint_id]
    assert {one.checkpoint_id for one in find_manifests(store)} == {
        first.checkpoint_id,
        second.checkpoint_id,
        third.checkpoint_id,
    }
    assert caplog.text.count("manifest_passed_over") == 2 * 2  # two bad ones, and twice they were in the way
    assert find_manifests(store, tenant="nobody") == []
    stale = find_manifests(store, tenant="other")[0]
    delete_checkpoint(store, third)
    with pytest.raises(CheckpointDamaged, match="gone"):
        find_checkpoint(store, stale)


# -- stopping in the midst --------------------------------------------------------------------------------------


class Stopped(BaseException):
    """The process ends here, as far as the code can tell."""


def stopping_at(name: str, count: int = 1, error: BaseException | None = None) -> list[str]:
    """Stop the `count`th time that this point is reached; returns the list of the times so far."""
    seen: list[str] = []

    def hook(reached: str) -> None:
        if reached == name:
            seen.append(reached)
            if len(seen) == count:
                raise error or Stopped

    crash_points.install(hook)
    return seen


POINTS = (
    "snap.tmp_partial",
    "snap.before_fsync",
    "snap.before_rename",
    "snap.before_dirfsync",
    "manifest.before_publish",
    "manifest.after_publish",
)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_failing_disk_leaves_nothing_and_says_so(store, tmp_path, point, count):
    """EIO at any moment: LocationUnavailable, no file left, and the next attempt works."""
    seen = stopping_at(point, count, OSError(5, "Input/output error"))
    if point.startswith("manifest") and count == 2:
        assert written(store).facts == 5  # one manifest only
        return
    with pytest.raises(LocationUnavailable, match="Input/output error"):
        written(store)
    assert len(seen) == count
    crash_points.install(None)
    assert files_of(tmp_path) == {}
    assert read_checkpoint(store, written(store), KEY, SMALL).facts


def test_a_snapshot_that_cannot_be_written_leaves_nothing(store, tmp_path):
    given = snapshot_of(bench_of(3))
    wrong = replace(given, facts=(*given.facts[:2], replace(given.facts[2], latents=np.zeros((9, 9), np.int8))))
    with pytest.raises(ValueError, match="are int8"):
        write_checkpoint(store, wrong, OLD_KEY, SMALL, 0.0)
    assert files_of(tmp_path) == {}


def test_plain_files_are_what_the_sealed_ones_hold(store):
    """The sealed files open to the canonical plain ones: an operator with the key needs nothing of ours but GCM."""
    given = snapshot_of(bench_of(3))
    info = write_checkpoint(store, given, OLD_KEY, SMALL, 0.0)
    plain = {}
    for name in ("sums.arrow", "facts.arrow"):
        sealed = store.read(f"{UID}/{info.checkpoint_id}/{name}.sealed", 1 << 20)
        plain[name] = unseal_file(sealed, KEY, FilePlace(UID, info.checkpoint_id, f"{name}.sealed"))
    assert plain == to_arrow(given, SMALL)
    assert from_arrow(plain, SMALL).state_hash == info.state_hash
