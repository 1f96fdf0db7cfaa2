"""The folder of secrets: made once, never replaced, and a rotation that may be cut off anywhere."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memory_actor import key_folder
from memory_actor.errors import StateFolderUnusable, VaultLocked
from memory_actor.key_folder import KeyFolder
from memory_actor.vault import Vault


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys"


@pytest.fixture
def folder(path: Path) -> KeyFolder:
    made = KeyFolder(path)
    made.ensure(may_create=True)
    return made


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


# -- making and finding -----------------------------------------------------------------------------------------


def test_keys_are_made_once(path: Path, folder: KeyFolder):
    """A second process, allowed to create or not, finds the keys of the first."""
    before = files_of(path)
    assert sorted(before) == ["root.key", "signing.key"]
    for may_create in (True, False):
        again = KeyFolder(path)
        again.ensure(may_create=may_create)
        assert again.root_keys() == folder.root_keys()
        assert again.signer().public_key == folder.signer().public_key
    assert files_of(path) == before


def test_only_the_owner_may_read_them(path: Path):
    """Folder 0700 and files 0400, whatever the umask."""
    mask = os.umask(0)
    try:
        KeyFolder(path).ensure(may_create=True)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o400}


def test_a_lost_root_key_is_not_made_anew(path: Path, folder: KeyFolder):
    """With data there (`may_create` false) it is missed, and nothing is written."""
    (path / "root.key").unlink()
    before = files_of(path)
    with pytest.raises(VaultLocked, match=r"root\.key.*missing"):
        KeyFolder(path).ensure(may_create=False)
    assert files_of(path) == before
    empty = path.parent / "nothing"
    with pytest.raises(VaultLocked):
        KeyFolder(empty).ensure(may_create=False)
    assert not empty.exists()


def test_a_lost_signing_key_is_not_made_anew(path: Path, folder: KeyFolder):
    """The message names the file that is missing, not the root key."""
    (path / "signing.key").unlink()
    with pytest.raises(StateFolderUnusable, match=r"signing\.key is missing"):
        KeyFolder(path).ensure(may_create=False)


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"ab" * 31, b"ab" * 33, b"\xff" * 64, b"ab" * 5000])
@pytest.mark.parametrize("name", ["root.key", "signing.key"])
def test_damaged_keys_are_refused(path: Path, folder: KeyFolder, name: str, content: bytes):
    """What is not 32 bytes in hex is refused by name, the content is not quoted, and the file is left as it is."""
    file = path / name
    file.chmod(0o600)
    file.write_bytes(content)
    with pytest.raises((VaultLocked, StateFolderUnusable), match=name) as refused:
        KeyFolder(path).ensure(may_create=True)
    assert "abab" not in str(refused.value)
    assert file.read_bytes() == content


def test_a_key_may_have_been_edited(path: Path, folder: KeyFolder):
    """Capitals, a missing newline and Windows line ends are fine: people restore keys by hand."""
    key = folder.root_keys()[0]
    file = path / "root.key"
    for text in (key.hex().upper(), key.hex() + "\r\n", key.hex()):
        file.chmod(0o600)
        file.write_text(text)
        assert KeyFolder(path).root_keys() == [key]


def test_processes_that_start_at_once_agree(path: Path):
    """Eight processes create the folder's keys together: all of them end up with the same ones."""
    code = (
        "import sys; from pathlib import Path; from memory_actor.key_folder import KeyFolder;"
        "folder = KeyFolder(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline();"
        "folder.ensure(may_create=True); print(folder.root_keys()[0].hex(), folder.signer().public_key.hex())"
    )
    command = [sys.executable, "-c", code, str(path)]
    racers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for _ in range(8)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    said = {racer.communicate("go\n", timeout=60)[0] for racer in racers}
    assert len(said) == 1
    assert said.pop().split()[0] == KeyFolder(path).root_keys()[0].hex()
    assert sorted(files_of(path)) == ["root.key", "signing.key"]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path):
    """A file in its place."""
    (tmp_path / "keys").write_text("")
    with pytest.raises(StateFolderUnusable):
        KeyFolder(tmp_path / "keys").ensure(may_create=True)


def test_no_key_is_shown(path: Path, folder: KeyFolder):
    """Neither the repr of the folder nor of its signer."""
    shown = repr(folder) + repr(folder.signer()) + str(vars(folder))
    for content in files_of(path).values():
        assert content.strip().decode() not in shown


# -- rotation ---------------------------------------------------------------------------------------------------


def test_a_rotation_leaves_the_new_key_only(path: Path, folder: KeyFolder):
    """Newest first while it lasts; afterwards one key, one file, and no byte of the old one in the folder."""
    (old,) = folder.root_keys()
    new = folder.begin_rotation()
    assert folder.root_keys() == [new, old]
    assert folder.rotating
    assert folder.begin_rotation() == new
    signer = folder.signer().public_key
    folder.finish_rotation()
    assert folder.root_keys() == [new]
    assert not folder.rotating
    assert sorted(files_of(path)) == ["root.key", "signing.key"]
    assert stat.S_IMODE((path / "root.key").stat().st_mode) == 0o400
    assert folder.signer().public_key == signer
    folder.finish_rotation()
    assert folder.root_keys() == [new]


def test_the_old_key_is_overwritten(path: Path, folder: KeyFolder):
    """Not only unlinked: a second name for the file, as a crash while it was made could leave, shows noise."""
    old = folder.root_keys()[0].hex().encode()
    twin = path / ".root.key.left"
    os.link(path / "root.key", twin)
    folder.begin_rotation()
    folder.finish_rotation()
    assert old[:16] not in twin.read_bytes()


class _CrashError(Exception):
    """The process ends here."""


def _crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the `step`-th change of the file system and everything after it not happen."""
    taken = 0

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal taken
            taken += 1
            if taken > step:
                raise _CrashError
            return original(*args, **options)

        return call

    monkeypatch.setattr(Path, "replace", wrap(Path.replace))
    monkeypatch.setattr(Path, "unlink", wrap(Path.unlink))
    monkeypatch.setattr(os, "link", wrap(os.link))
    monkeypatch.setattr(key_folder, "_overwrite", wrap(key_folder._overwrite))
    monkeypatch.setattr(key_folder, "_sync_folder", wrap(key_folder._sync_folder))


@pytest.mark.parametrize("step", range(12))
def test_a_rotation_may_be_cut_off_anywhere(path: Path, folder: KeyFolder, monkeypatch: pytest.MonkeyPatch, step: int):
    """After a crash at any step each vault still opens, as it was left; run again, the rotation comes to its end."""
    vaults = [path / f"vault-{number:02d}.sqlite" for number in range(2)]
    uid = "a" * 32
    keys = []
    for file in vaults:
        with Vault.open_sqlite(file, folder.root_keys()) as vault:
            vault.create_tenant(uid)
            keys.append({one.id: one.key for one in vault.issue([(uid, 3)])[0]})

    def rotate() -> bytes:
        new = KeyFolder(path).begin_rotation()
        for file in vaults:
            with Vault.open_sqlite(file, KeyFolder(path).root_keys()) as vault:
                vault.rotate_root(new)
        KeyFolder(path).finish_rotation()
        return new

    with monkeypatch.context() as patches:
        _crash_at(patches, step)
        try:
            rotate()
        except _CrashError:
            crashed = True
        else:
            crashed = False
    again = KeyFolder(path)
    again.ensure(may_create=False)
    for file, expected in zip(vaults, keys, strict=True):
        with Vault.open_sqlite(file, again.root_keys()) as vault:
            assert vault.data_keys(uid, list(expected)) == expected
    new = rotate()
    assert KeyFolder(path).root_keys() == [new]
    for file, expected in zip(vaults, keys, strict=True):
        with Vault.open_sqlite(file, [new]) as vault:
            assert vault.data_keys(uid, list(expected)) == expected
    assert crashed == (step < 10)  # what a rotation takes; beyond that the test would test nothing


def test_between_the_vaults_both_keys_are_needed(path: Path, folder: KeyFolder):
    """A system that is started after one of two vaults was wrapped anew opens both, and finishes later."""
    (old,) = folder.root_keys()
    vaults = [path / f"vault-{number:02d}.sqlite" for number in range(2)]
    for file in vaults:
        Vault.open_sqlite(file, [old]).close()
    new = folder.begin_rotation()
    with Vault.open_sqlite(vaults[0], folder.root_keys()) as vault:
        vault.rotate_root(new)
    with pytest.raises(VaultLocked):
        Vault.open_sqlite(vaults[0], [old])
    with pytest.raises(VaultLocked):
        Vault.open_sqlite(vaults[1], [new])
    copy = path.parent / "restarted"
    shutil.copytree(path, copy)
    for file in vaults:
        Vault.open_sqlite(copy / file.name, KeyFolder(copy).root_keys()).close()
