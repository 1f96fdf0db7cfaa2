"""What every checkpoint store promises, on a local folder and on an S3-protocol server that the tests start."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memory_actor import checkpoint_sealed, crash_points
from memory_actor.checkpoint import to_arrow
from memory_actor.checkpoint_store import CheckpointStore, Oversized, StoredFile
from memory_actor.checkpoints import (
    delete_checkpoint,
    delete_unregistered,
    find_checkpoint,
    find_manifests,
    read_checkpoint,
    rewrite_without,
    write_checkpoint,
)
from memory_actor.errors import CheckpointDamaged, LocationUnavailable
from tests.checkpoint_samples import NEW_KEY, OLD_KEY, UID, bench_of, snapshot_of
from tests.memory_fixtures import SMALL

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # nobody asks the machine it runs on for credentials
}


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """host:port of an S3-protocol server with a bucket `checkpoints`."""
    from moto.server import ThreadedMotoServer

    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("PUT", "/checkpoints")
    assert connection.getresponse().status == 200
    connection.close()
    yield f"{host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(params=["folder", "file-uri", "s3"])
def new_store(request, tmp_path) -> Callable[[], CheckpointStore]:
    """Opens the same, at first empty place each time."""
    if request.param == "folder":
        uri = str(tmp_path / "a folder" / "checkpoints")
    elif request.param == "file-uri":
        uri = (tmp_path / "a folder").as_uri()
    else:
        address = request.getfixturevalue("s3_address")
        options = f"endpoint_override={address}&scheme=http&region=us-east-1"
        uri = f"s3://checkpoints/{tmp_path.name}?{options}"
    return lambda: CheckpointStore("place", uri)


@pytest.fixture
def store(new_store) -> CheckpointStore:
    return new_store()


def test_what_is_put_is_read_by_everyone(new_store):
    """Whole or in pieces, small or larger than one upload part, also through another store object."""
    large = os.urandom(11 << 20)
    contents = {"a/one": b"1", "a/b/empty": b"", "a/b/large": large}
    for path, content in contents.items():
        expected = StoredFile(hashlib.sha256(content).hexdigest(), len(content))
        pieces = iter([content[: len(content) // 3], content[len(content) // 3 :]])
        assert new_store().put(path, pieces) == expected
        assert new_store().put(path + "2", content) == expected
    for path, content in contents.items():
        assert new_store().read(path, len(content)) == content
        assert new_store().read(path + "2", len(content)) == content


def test_an_empty_place_holds_nothing(store):
    assert store.list() == store.list("a") == []
    assert store.sweep("a") == []


def test_files_are_listed_by_folder(store):
    paths = ["a/b/one", "a/b/two", "a/three", "ab/four"]
    for path in reversed(paths):
        store.put(path, b"x")
    assert store.list() == paths
    assert store.list("a") == paths[:3]
    assert store.list("a/b") == paths[:2]
    assert store.list("nowhere") == []


def test_a_missing_file_is_missing_and_not_a_failure(store):
    store.put("a/one", b"x")
    with pytest.raises(FileNotFoundError):
        store.read("a/two", 10)
    with pytest.raises(FileNotFoundError):
        store.read("b/c/two", 10)
    assert store.delete("a/two") is False


def test_a_file_larger_than_asked_for_is_not_read(store):
    store.put("a/one", b"12345")
    assert store.read("a/one", 5) == b"12345"
    with pytest.raises(Oversized):
        store.read("a/one", 4)


def test_what_is_published_is_not_replaced(store):
    """The first content stays; the same content again is a repeated call and no error."""
    first = store.publish("a/m.json", b"first")
    assert store.publish("a/m.json", b"first") == first
    for other in (b"other", b"first and more"):
        with pytest.raises(LocationUnavailable, match="exists"):
            store.publish("a/m.json", other)
    assert store.read("a/m.json", 100) == b"first"
    assert store.list() == ["a/m.json"]


def test_what_is_deleted_is_gone(store):
    store.put("a/b/one", b"x")
    store.put("a/b/two", b"x")
    assert store.delete("a/b/one") is True
    assert store.list() == ["a/b/two"]
    assert store.delete("a/b/two") is True
    assert store.list() == []
    with pytest.raises(FileNotFoundError):
        store.read("a/b/one", 10)
    store.put("a/b/one", b"y")
    assert store.read("a/b/one", 10) == b"y"


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "a/../../x", "..", "a/..", ".", "./a", "a/.", "/etc/passwd", "", "a//b", "a/", "~/x", "a\\..\\b"),
        *("a/b\0c", "a/\n", "a b", "%2e%2e/x", "\u2025/x", "a?versionId=1", "a#b", ".hidden", "a/x.tmp", "x" * 200),
    ],
)
def test_paths_that_lead_elsewhere_are_refused(store, path):
    """By every verb, before the storage hears of them."""
    verbs = [
        lambda: store.put(path, b"x"),
        lambda: store.publish(path, b"x"),
        lambda: store.read(path, 1),
        lambda: store.delete(path),
        lambda: store.sweep(path),
        lambda: store.list(path) if path else store.read(path, 1),
    ]
    for verb in verbs:
        with pytest.raises(LocationUnavailable, match="is not a path inside it"):
            verb()
    assert store.list() == []


def test_a_put_whose_source_fails_leaves_nothing(store):
    """The error comes through as it is."""

    def failing() -> Iterator[bytes]:
        yield b"1" * 100
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        store.put("a/b/one", failing())
    assert store.list() == []


def test_two_threads_put_into_one_folder(store):
    """Neither takes the other's unfinished file away."""
    contents = {f"a/b/{number}": bytes([number]) * 100_000 for number in range(8)}
    failures: list[BaseException] = []

    def put(path: str, content: bytes) -> None:
        try:
            for _ in range(3):
                store.put(path, (content[i : i + 9000] for i in range(0, len(content), 9000)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=put, args=item) for item in contents.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert {path: store.read(path, 1 << 20) for path in store.list()} == contents


# -- whole checkpoints ------------------------------------------------------------------------------------------


def test_a_checkpoint_lives_and_dies(store, monkeypatch):
    """Written, found, read, rewritten without a fact, deleted; in frames of a few kilobytes."""
    monkeypatch.setattr(checkpoint_sealed, "FRAME_BYTES", 4096)
    bench = bench_of(11)
    given = snapshot_of(bench)
    info = write_checkpoint(store, given, OLD_KEY, SMALL, 1.0)
    (manifest,) = find_manifests(store, tenant="acme")
    assert find_checkpoint(store, manifest) == info
    assert to_arrow(read_checkpoint(store, info, OLD_KEY.key, SMALL), SMALL) == to_arrow(given, SMALL)
    gone = sorted(bench.stored)[2]
    new = rewrite_without(store, info, OLD_KEY.key, [gone], NEW_KEY, SMALL, 2.0)
    assert len(delete_checkpoint(store, info)) == 3
    with pytest.raises(CheckpointDamaged, match="is missing"):
        read_checkpoint(store, info, OLD_KEY.key, SMALL)
    bench.forget([gone])
    assert read_checkpoint(store, new, NEW_KEY.key, SMALL).state_hash == bench.hash == new.state_hash
    assert len(delete_unregistered(store, UID, ())) == 3
    assert store.list() == []


def test_a_changed_file_is_never_trusted(store):
    info = write_checkpoint(store, snapshot_of(bench_of(5)), OLD_KEY, SMALL, 1.0)
    for path in store.list(UID):
        content = store.read(path, 1 << 20)
        for offset in (0, len(content) // 2, len(content) - 1):
            store.put(path, content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
            with pytest.raises(CheckpointDamaged):
                read_checkpoint(store, info, OLD_KEY.key, SMALL)
        store.put(path, content)
    assert read_checkpoint(store, info, OLD_KEY.key, SMALL).state_hash == info.state_hash


@pytest.mark.parametrize("point", ["snap.before_rename", "manifest.before_publish", "manifest.after_publish"])
def test_a_storage_error_is_told_and_leaves_nothing(store, point):
    def fail(name: str) -> None:
        if name == point:
            raise OSError(28, "No space left on device")

    crash_points.install(fail)
    try:
        with pytest.raises(LocationUnavailable, match=r"place.*No space left"):
            write_checkpoint(store, snapshot_of(bench_of(5)), OLD_KEY, SMALL, 1.0)
    finally:
        crash_points.install(None)
    assert store.list() == []


def test_checkpoints_of_different_tenants_are_kept_apart(store):
    mine = write_checkpoint(store, snapshot_of(bench_of(5)), OLD_KEY, SMALL, 1.0)
    theirs = write_checkpoint(store, replace(snapshot_of(bench_of(3)), uid="e" * 32), NEW_KEY, SMALL, 1.0)
    delete_unregistered(store, UID, ())
    assert [path.split("/")[0] for path in store.list()] == ["e" * 32] * 3
    assert read_checkpoint(store, theirs, NEW_KEY.key, SMALL).facts
    with pytest.raises(CheckpointDamaged):
        read_checkpoint(store, mine, OLD_KEY.key, SMALL)


def test_a_server_that_is_gone_is_unavailable_and_not_empty():
    """Connection refused is LocationUnavailable for every verb: nothing is taken for deleted or damaged."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    gone = CheckpointStore("place", f"s3://checkpoints/x?{options}")
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        for verb in (lambda: gone.read("a/b", 1), lambda: gone.list("a")):
            with pytest.raises(LocationUnavailable, match="AWS Error NETWORK_CONNECTION"):
                verb()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_a_root_that_is_gone_is_unavailable(tmp_path):
    """A disk that is not mounted must not look like checkpoints that were deleted."""
    store = CheckpointStore("place", tmp_path / "root")
    store.put("a/b", b"x")
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    for verb in (lambda: store.read("a/b", 1), lambda: store.delete("a/b")):
        with pytest.raises(LocationUnavailable, match="root folder is missing"):
            verb()


def test_the_path_type_does_not_matter(tmp_path):
    CheckpointStore("place", Path(tmp_path)).put("a/b", b"x")
    assert CheckpointStore("place", str(tmp_path)).read("a/b", 1) == b"x"
