"""Opening key folder, vault and ledger together: a lost part is named, never made anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from memory_actor.directory import ledger_path
from memory_actor.errors import BundleMismatch, LarimarError, StateFolderUnusable, VaultLocked
from memory_actor.ledger import Ledger
from memory_actor.storage import open_storage, vault_path
from memory_actor.types import MemoryConfig
from tests.ledger_samples import CONFIG, created, make_fact, plain, written

FACT = make_fact(1, np.random.default_rng(20260104))


def open_at(state: Path, index: int = 0, keys: Path | None = None, config: MemoryConfig = CONFIG) -> Ledger:
    return open_storage(state, index, None, config, "test", 1.0, keys=keys)


def fill(state: Path, index: int = 0, keys: Path | None = None) -> None:
    with open_at(state, index, keys) as ledger:
        ledger.commit([created("acme"), written("acme", 1, FACT)], 2.0)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_everything_is_made_once_and_found_again(tmp_path: Path):
    """The first opening makes root key, vault and ledger; later ones find the facts; closing releases both files."""
    state = tmp_path / "state"
    for index in (0, 1):
        fill(state, index)
    for _ in range(2):
        for index in (0, 1):
            with open_at(state, index) as ledger:
                assert [plain(one) for one in ledger.facts("acme")] == [plain(FACT)]
                assert ledger.vault.location == str(vault_path(state / "keys", index))
    assert (state / "keys").stat().st_mode & 0o777 == 0o700


def test_the_key_folder_may_be_elsewhere(tmp_path: Path):
    """With `keys` given nothing of a key is in the state folder."""
    fill(tmp_path / "state", keys=tmp_path / "secret")
    assert {file.name for file in (tmp_path / "state").rglob("*") if file.is_file()} == {"memory-00.sqlite"}
    with open_at(tmp_path / "state", keys=tmp_path / "secret") as ledger:
        assert len(ledger.facts("acme")) == 1


def lose_root_key(state: Path) -> None:
    (state / "keys" / "root.key").unlink()


def lose_vault(state: Path) -> None:
    vault_path(state / "keys", 0).unlink()


def lose_keys(state: Path) -> None:
    shutil.rmtree(state / "keys")


def another_vault(state: Path) -> None:
    """One of the same system, so that the root key fits."""
    open_at(state, 1).close()
    shutil.copyfile(vault_path(state / "keys", 1), vault_path(state / "keys", 0))


def another_root_key(state: Path) -> None:
    other = state.parent / "other"
    fill(other)
    (state / "keys" / "root.key").unlink()
    shutil.copyfile(other / "keys" / "root.key", state / "keys" / "root.key")
    (state / "keys" / "root.key").chmod(0o400)


@pytest.mark.parametrize("lose", [lose_root_key, lose_vault, lose_keys, another_vault, another_root_key])
def test_lost_and_foreign_keys_are_named(tmp_path: Path, lose: Callable[[Path], None]):
    """The ledger is refused as long as its own keys are not there, no new ones are made, and nothing is changed."""
    state = tmp_path / "state"
    fill(state)
    intact = snapshot(state)
    lose(state)
    before = snapshot(state)
    for _ in range(2):
        with pytest.raises(VaultLocked):
            open_at(state)
    assert snapshot(state) == before
    shutil.rmtree(state / "keys", ignore_errors=True)
    for name, content in intact.items():
        (state / name).parent.mkdir(exist_ok=True, mode=0o700)
        (state / name).write_bytes(content)
    (state / "keys" / "root.key").chmod(0o400)
    with open_at(state) as ledger:  # put back, everything is there
        assert [plain(one) for one in ledger.facts("acme")] == [plain(FACT)]


def test_a_refused_opening_holds_nothing(tmp_path: Path):
    """After a refusal by the ledger the vault is free: the right bundle opens in the same process."""
    fill(tmp_path)
    wrong = MemoryConfig(fingerprint="0ther", key_size=16, address_size=24, latent_size=40)
    with pytest.raises(BundleMismatch):
        open_at(tmp_path, config=wrong)
    with open_at(tmp_path) as ledger:
        assert ledger.epoch == 2
        with pytest.raises(StateFolderUnusable, match="in use"):
            open_at(tmp_path)


def test_an_interrupted_first_start_is_finished(tmp_path: Path):
    """Root key and vault without a ledger, as a crash in between leaves them, are taken up."""
    fill(tmp_path)
    ledger_path(tmp_path, 0).unlink()
    fill(tmp_path)
    lose_root_key(tmp_path)
    with pytest.raises(LarimarError):
        open_at(tmp_path)
