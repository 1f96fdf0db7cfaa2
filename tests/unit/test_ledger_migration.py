"""A ledger file of the first release (tests/golden/ledger_0001.sqlite, made by that release) opened by this one.

`ledger_0001.json` holds what it holds, written down by the first release too. Both are never made again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_actor import crash_points
from memory_actor.effects import StoredFact
from memory_actor.errors import LedgerCorrupt, StateFolderUnusable
from memory_actor.ledger import Ledger
from memory_actor.ledger_schema import HEAD
from memory_actor.ledger_sqlite import check_sqlite
from memory_actor.types import Retention
from tests.ledger_samples import CONFIG, created, idempotency, make_fact, open_ledger, vault_of, written

GOLDEN = Path(__file__).parents[1] / "golden" / "ledger_0001"
TRUTH: dict[str, Any] = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
STEPS = 3  # moments passed in one migration: two tenants with facts, and what comes after the copy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the golden file."""
    path = tmp_path / "ledger" / "memory-00.sqlite"
    path.parent.mkdir()
    shutil.copyfile(GOLDEN.with_suffix(".sqlite"), path)
    return path


@pytest.fixture
def hook() -> Iterator[Callable[[Callable[[str], None]], None]]:
    yield crash_points.install
    crash_points.install(None)


def as_truth(fact: StoredFact) -> dict[str, Any]:
    """A fact as the golden JSON has it: bytes in hex."""
    arrays = {name: getattr(fact, name).tobytes().hex() for name in ("key", "addresses", "latents")}
    same = ("fact_id", "seq", "prompt_tokens", "target_tokens", "created_at", "supersedes", "prompt", "target")
    others = {"prompt_digest": fact.prompt_digest.hex(), "tags": list(fact.tags)}
    return arrays | others | {name: getattr(fact, name) for name in same}


def truth_of(name: str) -> list[dict[str, Any]]:
    """The golden facts, without what their release did not know."""
    return [{key: value for key, value in fact.items() if key != "version"} for fact in TRUTH[name]["facts"]]


def contents(path: Path) -> bytes:
    """Every byte in the folders of ledger and vault."""
    return b"".join(file.read_bytes() for folder in (path.parent, vault_of(path).parent) for file in folder.iterdir())


def needles() -> dict[str, bytes]:
    """What identifies the content of each golden fact: words, tags, vectors."""
    found = {"needle tag": b"needle tag", "the door code": b"the door code of room"}
    for name in TRUTH:
        for fact in TRUTH[name]["facts"]:
            where = f"{name} {fact['seq']}"
            found |= {f"{where} {part}": bytes.fromhex(fact[part])[:16] for part in ("key", "addresses")}
            found[f"{where} latents"] = bytes.fromhex(fact["latents"])[:40].rstrip(b"\0")[:12]  # of its first part
            if fact["target"] is not None:
                found |= {f"{where} target": fact["target"].encode(), f"{where} prompt": fact["prompt"].encode()}
    return {what: value for what, value in found.items() if len(value) > 8 and len(set(value)) > 4}


def left_in(content: bytes) -> list[str]:
    return [what for what, value in needles().items() if value in content]


def check_migrated(ledger: Ledger) -> None:
    """Tenants, facts, replies and the audit chain are those of the golden file."""
    rows = {row.name: row for row in ledger.tenants()}
    assert rows.keys() == TRUTH.keys()
    assert len({row.uid for row in rows.values()}) == len(rows)
    for name, row in rows.items():
        truth = TRUTH[name]
        assert (row.retention, row.salt.hex(), row.created_at) == tuple(
            truth[k] for k in ("retention", "salt", "created_at")
        )
        assert (row.version, row.next_seq, row.facts) == (truth["version"], truth["next_seq"], len(truth["facts"]))
        facts = ledger.facts(name)
        assert [as_truth(fact) for fact in facts] == truth_of(name)
        assert {fact.version for fact in facts} <= {0}
        for tag in ("needle tag", "tag-1"):
            tagged = [fact["fact_id"] for fact in truth["facts"] if tag in fact["tags"]]
            assert [record.fact_id for record in ledger.select_ids(name, tags=[tag])] == tagged
    assert ledger.idempotent_reply("acme", idempotency("k7")) == b"reply to k7"
    assert ledger.idempotent_reply("acme", idempotency("forget", endpoint="POST /forget")) == b"forgotten"
    assert ledger.audit_chain_ok()


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as driver:
        return str(driver.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_the_golden_file_holds_what_is_searched_for():
    """Before the migration every needle is in the file: the search can find them."""
    content = GOLDEN.with_suffix(".sqlite").read_bytes()
    assert set(left_in(content)) == set(needles())
    assert len(needles()) > 30


def test_a_ledger_of_the_first_release_keeps_everything(path: Path):
    """It passes the check before the start, is migrated when opened, holds what it held, and goes on from there."""
    check_sqlite(path, CONFIG)
    assert revision(path) == "0001"
    for epoch in (2, 3):
        with open_ledger(path) as ledger:
            check_migrated(ledger)
            assert ledger.epoch == epoch
    assert revision(path) == HEAD
    with open_ledger(path) as ledger:
        fact = make_fact(11, np.random.default_rng(1))
        ledger.commit([written("acme", 12, fact), created("new", Retention.TEXT)], 2e9)
        assert [one.version for one in ledger.facts("acme", after_seq=9)] == [0, 12]


def test_nothing_plain_is_left_by_the_migration(path: Path):
    """No word, tag or vector is anywhere in the folders: neither while the ledger is open nor after it is closed."""
    with open_ledger(path):
        assert left_in(contents(path)) == []
    assert left_in(contents(path)) == []


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_an_interrupted_migration_starts_again(path: Path, hook: Any, step: int):
    """An error of the disk at any of its moments refuses the opening; the next one ends with all facts, sealed."""
    passed = []

    def strike(name: str) -> None:
        if name == "migrate.mid_copy":
            passed.append(name)
            if len(passed) == step:
                raise OSError(28, "No space left on device")

    hook(strike)
    with pytest.raises(StateFolderUnusable, match="No space left"):
        open_ledger(path)
    hook(None)
    assert revision(path) == ("0001" if step < STEPS else HEAD)
    with open_ledger(path) as ledger:
        check_migrated(ledger)
        assert left_in(contents(path)) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from memory_actor import crash_points
from tests.ledger_samples import open_ledger
left = int(sys.argv[2])
def strike(name):
    global left
    left -= name == "migrate.mid_copy"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
crash_points.install(strike)
open_ledger(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_killed_migration_starts_again(path: Path, step: int):
    """The same for SIGKILL, which leaves whatever log there was: afterwards nothing plain is in any file."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(path), str(step)]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    with open_ledger(path) as ledger:
        check_migrated(ledger)
        assert left_in(contents(path)) == []
    assert left_in(contents(path)) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE fact SET prompt = 'another' WHERE tenant = 'acme' AND seq = 3",
        "UPDATE fact SET latents = zeroblob(9) WHERE tenant = 'globex' AND seq = 2",
        "UPDATE tenant SET next_seq = 99 WHERE name = 'globex'",
    ],
)
def test_damage_is_not_sealed(path: Path, change: str):
    """A row that does not match its checksum stops the migration, named, and the file stays as it was."""
    with closing(sqlite3.connect(path)) as driver:
        driver.execute(change)
        driver.commit()
    before = path.read_bytes()
    with pytest.raises(LedgerCorrupt, match=r"cannot be migrated: .*does not match its checksum"):
        open_ledger(path)
    assert path.read_bytes() == before
    assert revision(path) == "0001"
