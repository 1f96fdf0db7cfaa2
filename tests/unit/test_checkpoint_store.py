"""A local folder of checkpoints: confined to its root, durable in the right order, tidy after a crash. URIs."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from memory_actor import checkpoint_folder, crash_points
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.errors import LocationUnavailable, SettingsInvalid


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "outer" / "root"


@pytest.fixture
def store(root) -> CheckpointStore:
    return CheckpointStore("local", root)


@pytest.fixture(autouse=True)
def _no_hook():
    yield
    crash_points.install(None)


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


# -- confinement ------------------------------------------------------------------------------------------------


def test_a_symbolic_link_to_a_folder_leads_nowhere(store, root, tmp_path):
    """Outside or inside the root, by any verb: refused, and what it points to is untouched."""
    store.put("a/b", b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(outside, target_is_directory=True)
    (root / "in").symlink_to(root / "a", target_is_directory=True)
    (root / "up").symlink_to("..", target_is_directory=True)
    for link, name in (("out", "secret"), ("in", "b"), ("up", "x")):
        for verb in (
            lambda path: store.put(path, b"y"),
            lambda path: store.publish(path, b"y"),
            lambda path: store.read(path, 100),
            store.delete,
        ):
            with pytest.raises(LocationUnavailable, match="symbolic link"):
                verb(f"{link}/{name}")
        with pytest.raises(LocationUnavailable, match="symbolic link"):
            store.list(link)
    assert store.list() == ["a/b"]
    assert store.sweep("a") == []
    assert (outside / "secret").read_bytes() == b"secret"
    assert names(outside) == {"secret"}
    assert store.read("a/b", 1) == b"x"


def test_a_symbolic_link_to_a_file_is_not_followed(store, root, tmp_path):
    """It is not read, a put replaces the link itself, a delete removes the link itself."""
    store.put("a/b", b"x")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (root / "a" / "link").symlink_to(secret)
    with pytest.raises(LocationUnavailable):
        store.read("a/link", 100)
    with pytest.raises(LocationUnavailable):
        store.publish("a/link", b"secret")
    assert store.list() == ["a/b"]
    store.put("a/link", b"mine")
    assert (store.read("a/link", 100), secret.read_bytes()) == (b"mine", b"secret")
    (root / "a" / "link2").symlink_to(secret)
    store.delete("a/link2")
    assert secret.read_bytes() == b"secret"
    assert names(root) == {"a/b", "a/link"}


def test_what_is_no_file_is_not_read(store, root):
    """A pipe does not hang the reader."""
    store.put("a/b", b"x")
    os.mkfifo(root / "a" / "pipe")
    (root / "a" / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(LocationUnavailable):
            store.read(f"a/{name}", 100)
    assert store.list() == ["a/b"]


def test_only_the_owner_can_look(store, root):
    """Folders 0700, files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        store.put("a/b/c", b"x")
        store.publish("a/m.json", b"x")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*"))}
    assert set(modes.values()) == {0o700, 0o600}
    assert all((mode == 0o600) == path.is_file() for path, mode in modes.items())


# -- durability -------------------------------------------------------------------------------------------------


def test_a_file_is_on_disk_before_it_has_its_name(store, monkeypatch):
    """File fsync, then rename, then folder fsync; new folders are fsynced into their parents before."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "link", "mkdir")}

    def fsync(fd: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync file")
        real["fsync"](fd)

    def noted(name: str):
        def call(*args, **kwargs) -> None:
            calls.append(name)
            real[name](*args, **kwargs)

        return call

    store.put("warm/up", b"x")
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "link", "mkdir"):
        monkeypatch.setattr(os, name, noted(name))
    store.put("a/b/c", b"x")
    assert calls == ["mkdir", "fsync folder"] * 2 + ["fsync file", "rename", "fsync folder"]
    calls.clear()
    store.publish("a/m.json", b"x")
    assert [call for call in calls if call != "mkdir"] == ["fsync file", "link", "fsync folder"]
    calls.clear()
    store.delete("a/m.json")
    assert calls == ["fsync folder"]


def test_what_reads_back_differently_is_not_kept(store, root, monkeypatch):
    """A disk that garbles what it is given is found out at once."""
    monkeypatch.setattr(checkpoint_folder, "_pieces", lambda fd: iter([b"garbled"]))
    with pytest.raises(LocationUnavailable, match="other bytes were read back"):
        store.put("a/b", b"content")
    assert names(root) == set()


def test_the_crash_points_of_a_put_are_passed_in_order(store):
    seen: list[str] = []
    crash_points.install(seen.append)
    store.put("a/b", [b"some", b"thing"])
    assert seen == ["snap.tmp_partial", "snap.before_fsync", "snap.before_rename", "snap.before_dirfsync"]
    seen.clear()
    store.publish("a/m.json", b"x")
    assert seen == ["manifest.before_publish", "manifest.after_publish"]


_KILLED = """
import os, signal, sys
from memory_actor import crash_points
from memory_actor.checkpoint_store import CheckpointStore
crash_points.install(lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == sys.argv[2] else None)
store = CheckpointStore("local", sys.argv[1])
store.put("a/b/c", b"content" * 1000)
store.publish("a/m.json", b"manifest")
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("snap.tmp_partial", set()),
        ("snap.before_fsync", set()),
        ("snap.before_rename", set()),
        ("snap.before_dirfsync", {"a/b/c"}),
        ("manifest.before_publish", {"a/b/c"}),
        ("manifest.after_publish", {"a/b/c", "a/m.json"}),
    ],
)
def test_a_killed_put_leaves_all_or_nothing(store, root, point, left):
    """kill -9 at each moment: a file is whole or not listed, and the next put takes the leftovers away."""
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(root), point], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert set(store.list()) == left
    contents = {"a/b/c": b"content" * 1000, "a/m.json": b"manifest"}
    assert all(store.read(path, 10_000) == contents[path] for path in left)
    unfinished = names(root) - left
    assert all(name.endswith(".tmp") for name in unfinished)
    assert len(unfinished) == (0 if point in {"snap.before_dirfsync", "manifest.after_publish"} else 1)
    store.put("a/z/next", b"x")
    assert names(root) == left | {"a/z/next"}


def test_a_file_being_written_is_not_taken_for_a_leftover(store, root):
    """What another process has locked stays; what nobody has goes, and is named by its hash."""
    store.put("a/b/c", b"x")
    busy, left = root / "a" / "b" / "busy.1.tmp", root / "a" / "left.2.tmp"
    busy.write_bytes(b"busy")
    left.write_bytes(b"left")
    with busy.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert [file.size for file in store.sweep("a")] == [4]
        assert names(root) == {"a/b/c", "a/b/busy.1.tmp"}
    assert len(store.sweep("a")) == 1
    assert names(root) == {"a/b/c"}


def test_another_tenants_leftovers_are_none_of_its_business(store, root):
    store.put("a/b", b"x")
    (root / "other").mkdir()
    (root / "other" / "c.1.tmp").write_bytes(b"x")
    store.put("a/c", b"x")
    assert names(root) == {"a/b", "a/c", "other/c.1.tmp"}


def test_folders_go_with_their_last_file_and_the_root_stays(store, root):
    store.put("a/b/c", b"x")
    store.put("a/d", b"x")
    store.delete("a/b/c")
    assert not (root / "a" / "b").exists()
    assert (root / "a" / "d").exists()
    store.delete("a/d")
    assert list(root.iterdir()) == []


def test_a_read_only_disk_is_told(store, root):
    """The reason is that of the system, without a traceback's worth of paths."""

    def refuse(name: str) -> None:
        raise OSError(30, "Read-only file system")

    crash_points.install(refuse)
    with pytest.raises(LocationUnavailable, match=r"'local': cannot write 'a/b' \(Read-only file system\)"):
        store.put("a/b", b"x")
    assert names(root) == set()


# -- locations --------------------------------------------------------------------------------------------------


def test_nothing_is_touched_before_the_first_put(tmp_path):
    CheckpointStore("one", tmp_path / "x")
    CheckpointStore("two", "s3://bucket/prefix?endpoint_override=127.0.0.1:9&scheme=http")
    assert CheckpointStore("one", tmp_path / "x").list() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    ["", "file://host/x", "file:///x?y", "s3://user:secret@bucket/x", "s3://secret@bucket", "http://x/y", "no://x"],
)
def test_locations_that_cannot_be_are_named_and_secrets_are_not(uri):
    """The error names the setting and never repeats what may be a password."""
    with pytest.raises(SettingsInvalid, match=r"checkpoints\.locations\.backup") as refused:
        CheckpointStore("backup", uri).list()
    assert "secret" not in str(refused.value)


def test_a_folder_may_be_reached_through_a_link(tmp_path):
    """The root is the operator's: only what is below it is confined."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    CheckpointStore("local", tmp_path / "link").put("a/b", b"x")
    assert (tmp_path / "disk" / "a" / "b").read_bytes() == b"x"
