"""What keeps `larimar up` from starting is said before anything is touched: ledger bytes and state hash stay."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cluster.ray_environment import free_port
from jobs.bench_memory import SyntheticFacts
from memory_actor.directory import ledger_path
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.types import FactText, Idempotency, MemoryConfig, Retention


class Folder:
    """A state folder with the default bundle and one tenant of five facts, not running."""

    def __init__(self, path: Path, bundle) -> None:
        self.path, self.config = path, bundle.memory_config()
        shutil.copytree(bundle.folder, path / "bundle", copy_function=os.link)
        # The manifest is changed by a test: it must not be the cache's own file.
        manifest = path / "bundle" / "bundle.json"
        manifest.unlink()
        shutil.copy(bundle.folder / "bundle.json", manifest)
        self.ledger = ledger_path(path, 0)
        self.state_hash = self._write()

    def _engine(self, config: MemoryConfig) -> MemoryEngine:
        return MemoryEngine.open(0, self.path, config, EngineSettings(), on_poison=pytest.fail)

    def _write(self) -> str:
        engine = self._engine(self.config)
        once = [Idempotency(key, bytes(32), "test") for key in ("make", "write")]
        engine.create_tenant("acme", Retention.TEXT, once[0]).result()
        texts = [FactText(f"What is number {n}?", str(n)) for n in range(5)]
        engine.write("acme", texts, SyntheticFacts(self.config, seed=4).encoded(5), once[1]).result()
        before = engine.summary("acme").state_hash
        engine.close()
        assert before is not None
        return before

    def hash_now(self) -> str | None:
        engine = self._engine(self.config)
        try:
            assert engine.verify("acme").identical
            return engine.summary("acme").state_hash
        finally:
            engine.close()

    def up(self, *arguments: str) -> dict:
        """The refusal of `larimar up`, as JSON."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LARIMAR_")}
        environment["LARIMAR_CONFIG_DIR"] = str(Path(tempfile.gettempdir()) / "larimar-no-client")
        command = [sys.executable, "-m", "cluster", "up", "--state-dir", str(self.path), "-o", "json", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode != 0, done.stdout
        refusal: dict = json.loads(done.stderr.splitlines()[-1])  # progress may stand before it
        return refusal


@pytest.fixture
def folder(tmp_path, bundle) -> Folder:
    return Folder(tmp_path / "state", bundle)


def test_port_of_another_program(folder):
    """The refusal names host and port; the state is what it was."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refusal = folder.up("--port", str(port))

    assert refusal["code"] == "port_taken"
    assert str(port) in refusal["detail"]
    assert folder.hash_now() == folder.state_hash


def test_state_written_with_another_bundle(folder):
    """Both fingerprints are named, the ledger is not touched, and the first bundle finds everything again."""
    manifest = folder.path / "bundle" / "bundle.json"
    right = manifest.read_text()
    wrong = json.loads(right)
    wrong["memory"]["feature_map_seed"] += 1
    manifest.write_text(json.dumps(wrong))
    before = folder.ledger.read_bytes()

    refusal = folder.up("--port", str(free_port()))

    assert refusal["code"] == "bundle_mismatch"
    assert folder.config.fingerprint in refusal["detail"]
    assert folder.ledger.read_bytes() == before
    manifest.write_text(right)
    assert folder.hash_now() == folder.state_hash


def test_corrupt_ledger(folder):
    """A ledger with a damaged middle is refused and left as it is; with the bytes put back, nothing is missing."""
    whole = folder.ledger.read_bytes()
    damaged = bytearray(whole)
    middle = len(damaged) // 2
    damaged[middle : middle + 4096] = np.random.default_rng(5).bytes(4096)
    folder.ledger.write_bytes(damaged)

    refusal = folder.up("--port", str(free_port()))

    assert refusal["code"] == "ledger_corrupt"
    assert folder.ledger.read_bytes() == bytes(damaged)
    folder.ledger.write_bytes(whole)
    assert folder.hash_now() == folder.state_hash


def test_foreign_ledger(folder):
    """Somebody else's database in the ledger's place is refused and left as it is."""
    ours = folder.ledger.read_bytes()
    folder.ledger.unlink()
    with sqlite3.connect(folder.ledger) as foreign:
        foreign.execute("CREATE TABLE recipes (name TEXT)")
    foreign.close()
    theirs = folder.ledger.read_bytes()

    refusal = folder.up("--port", str(free_port()))

    assert refusal["code"] == "ledger_corrupt"
    assert folder.ledger.read_bytes() == theirs
    folder.ledger.write_bytes(ours)
    assert folder.hash_now() == folder.state_hash


def test_foreign_folder(tmp_path, folder):
    """A folder with somebody else's files is refused; nothing is added to it."""
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    stranger = object.__new__(Folder)
    stranger.path = other

    refusal = stranger.up("--port", str(free_port()))

    assert refusal["code"] == "state_folder_unusable"
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]
    assert folder.hash_now() == folder.state_hash


def test_folder_that_cannot_be_written(folder):
    """A state folder where nothing can be made is refused with its path."""
    stranger = object.__new__(Folder)
    stranger.path = Path("/proc/larimar")

    refusal = stranger.up("--port", str(free_port()))

    assert refusal["code"] == "state_folder_unusable"
    assert "/proc/larimar" in refusal["detail"]
    assert folder.hash_now() == folder.state_hash


def test_missing_models(folder):
    """Models that are not installed are named with the command that installs them; the bundle and state stay."""
    refusal = folder.up("--port", str(free_port()), "--set", "bundle.decoder=package:no_such_model_package")

    assert refusal["code"] == "model_missing"
    assert "pip install" in refusal["detail"]
    assert (folder.path / "bundle" / "bundle.json").exists()
    assert folder.hash_now() == folder.state_hash


@pytest.mark.parametrize("lost", ["keys", "keys/root.key", "keys/vault-00.sqlite"])
def test_lost_keys(folder, lost):
    """Sealed facts whose keys are missing: refused, no key is made anew, and with the keys back nothing is missing."""
    aside = folder.path.with_name("aside")
    (folder.path / lost).rename(aside)
    before = folder.ledger.read_bytes()

    refusal = folder.up("--port", str(free_port()))

    assert refusal["code"] == "vault_locked"
    assert "keys" in refusal["detail"]
    assert not (folder.path / lost).exists()
    assert folder.ledger.read_bytes() == before
    aside.rename(folder.path / lost)
    assert folder.hash_now() == folder.state_hash


def test_a_database_that_is_not_there(folder):
    """A PostgreSQL ledger that nobody serves is named without a secret; the SQLite ledger beside it stays."""
    url = f"postgresql://larimar@127.0.0.1:{free_port()}/larimar"

    refusal = folder.up("--port", str(free_port()), "--set", f"ledger.url={url}")

    assert refusal["code"] == "ledger_server_unusable"
    assert folder.hash_now() == folder.state_hash
