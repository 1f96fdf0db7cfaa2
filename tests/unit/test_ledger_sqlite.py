"""What is particular to SQLite ledgers: the file, its lock, its damage, its migrations."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from memory_actor.effects import FactsForgotten
from memory_actor.errors import LarimarError, LedgerCorrupt, LedgerFailed, StartupError, StateFolderUnusable
from memory_actor.ledger import Ledger, LedgerEntry, TenantDamaged
from memory_actor.ledger_meta import known_revisions
from memory_actor.ledger_schema import HEAD, metadata
from memory_actor.ledger_sqlite import check_sqlite
from tests.ledger_samples import CONFIG, created, idempotency, make_fact, open_ledger, plain, vault_of, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger" / "memory-00.sqlite"


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(20260102)


def fill(path: Path, draw: np.random.Generator, facts: int = 12) -> None:
    """Make a ledger with two tenants, facts, a supersede, and replies, and close it."""
    with open_ledger(path) as ledger:
        for tenant in ("acme", "globex"):
            ledger.commit([created(tenant)], 2.0)
            for seq in range(1, facts + 1):
                ended = (f"fact-{seq - 1:06d}",) if seq % 5 == 0 else ()
                fact = make_fact(seq, draw)
                ledger.commit([written(tenant, seq, fact, forgotten=ended, key=f"k{seq}")], 3.0)


def observe(ledger: Ledger) -> object:
    """Everything a caller can read from a ledger made by `fill`."""
    ids = [f"fact-{seq:06d}" for seq in range(80)]
    return [
        (
            row,
            [plain(fact) for fact in ledger.facts(row.name)],
            [plain(fact) for fact in ledger.facts_by_id(row.name, ids)],
            ledger.fact_records(row.name),
            [ledger.select_ids(row.name, tags=[f"tag-{i}"]) for i in range(4)],
            ledger.select_ids(row.name, before=1_700_000_008.0),
            [ledger.idempotent_reply(row.name, idempotency(f"k{i}")) for i in range(80)],
        )
        for row in ledger.tenants()
    ]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# -- the file ---------------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_it(path: Path, draw: np.random.Generator):
    """Folder 0700, file and log 0600, and after closing only the file is left."""
    with open_ledger(path) as ledger:
        ledger.commit([created("acme")], 2.0)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_commit_is_flushed(path: Path):
    """The connection runs with the settings the promises rest on."""
    with open_ledger(path) as ledger, ledger._connection.begin():
        pragmas = ("journal_mode", "synchronous", "locking_mode", "secure_delete", "foreign_keys")
        values = [ledger._connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 2, "exclusive", 1, 1]  # synchronous 2 is FULL


def contents_of(path: Path) -> bytes:
    """Every byte of the ledger's and the vault's folder."""
    files = [*path.parent.iterdir(), *vault_of(path).parent.iterdir()]
    return b"".join(file.read_bytes() for file in files)


def test_nothing_is_stored_in_plain(path: Path, draw: np.random.Generator):
    """Words, tags, addresses, key and latents of a living fact are in no file, log included, open or closed."""
    fact = make_fact(1, draw, prompt="the vault code is 4711", target="not to be told", tags=("tag-of-it",))
    needles = [fact.addresses.tobytes(), fact.key.tobytes(), fact.latents.tobytes().rstrip(b"\0"), fact.prompt_digest]
    needles += [text.encode() for text in ("vault code", "to be told", "tag-of-it")]
    with open_ledger(path) as ledger:
        ledger.commit([created("acme"), written("acme", 1, fact)], 2.0)
        while_open = contents_of(path)
        assert [plain(one) for one in ledger.facts("acme")] == [plain(fact)]
    for content in (while_open, contents_of(path)):
        assert fact.fact_id.encode() in content  # the right files were looked at
        assert not [needle for needle in needles if needle in content]


def test_forgotten_words_and_vectors_leave_the_file(path: Path, draw: np.random.Generator):
    """After forget and scrub, with the ledger open, nothing sealed of the fact is in any file; its neighbour is."""
    with open_ledger(path) as ledger:
        ledger.commit([created("acme"), written("acme", 1, *(make_fact(seq, draw) for seq in (1, 2)))], 2.0)
        with ledger._connection.begin():
            sealed = ledger._connection.exec_driver_sql("SELECT words, vectors FROM fact ORDER BY seq").all()
        ledger.commit([LedgerEntry(FactsForgotten("acme", 2, ("fact-000001",)), None, b"")], 3.0)
        assert sealed[0].words in contents_of(path)  # in the log, until it is emptied
        ledger.scrub()
        assert path.with_name(path.name + "-wal").stat().st_size == 0
        content = contents_of(path)
    gone, kept = sealed
    assert not [value for value in gone if value in content]
    assert all(value in content for value in kept)


def test_idempotency_keys_are_not_stored(path: Path, draw: np.random.Generator):
    """Callers put names in their keys; neither the key nor the request's digest is in the file."""
    with open_ledger(path) as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw), key="jane.doe@example.com")], 2.0)
    content = path.read_bytes()
    assert b"reply to jane" in content  # the right file was looked at
    assert content.count(b"jane.doe@example.com") == content.count(b"reply to jane.doe@example.com")
    assert b"body".ljust(32, b".") not in content


# -- one process at a time --------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_harms_nothing(path: Path, draw: np.random.Generator):
    """While a ledger is open, opening it again here or elsewhere says who has it; the first goes on working."""
    with open_ledger(path) as ledger:
        ledger.commit([created("acme")], 2.0)
        with pytest.raises(StateFolderUnusable, match=r"vault-memory-00\.sqlite is in use by another larimar"):
            open_ledger(path)
        program = (
            "import sys; from pathlib import Path; from tests.ledger_samples import CONFIG, ROOT_KEY\n"
            "from memory_actor.errors import StateFolderUnusable; from memory_actor.ledger import Ledger\n"
            "from memory_actor.vault import Vault\n"
            "path = Path(sys.argv[1]); vault = Vault.open_sqlite(path.parents[2] / 'other.sqlite', [ROOT_KEY])\n"
            "try: Ledger.open(path, CONFIG, 'second', 1.0, vault)\n"
            "except StateFolderUnusable as error: print(error)\n"
        )
        command = [sys.executable, "-c", program, str(path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert ": memory-00.sqlite is in use by another larimar" in second.stdout
        ledger.commit([written("acme", 1, make_fact(1, draw))], 3.0)
    with open_ledger(path) as ledger:
        assert ledger.epoch == 2  # the refused ones took none
        assert len(ledger.facts("acme")) == 1


# -- refusals change nothing ------------------------------------------------------------------------------------


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("CREATE TABLE tenant (name)")
        driver.commit()


def later_release(path: Path) -> None:
    fill(path, np.random.default_rng(1), facts=1)
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("UPDATE alembic_version SET version_num = '9999'")
        driver.commit()


def changed_definitions(path: Path) -> None:
    fill(path, np.random.default_rng(1), facts=1)
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("ALTER TABLE fact ADD COLUMN note")
        driver.commit()


def missing_table(path: Path) -> None:
    fill(path, np.random.default_rng(1), facts=1)
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("DROP TABLE audit")
        driver.commit()


def another_salt(path: Path) -> None:
    fill(path, np.random.default_rng(1), facts=1)
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("UPDATE meta SET value = zeroblob(32) WHERE name = 'salt'")
        driver.commit()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"this is a text file\n" * 400), "not a SQLite database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(8000)), "not a SQLite database"),
        (foreign_database, "not a larimar ledger"),
        (later_release, "'9999', which this release cannot read"),
        (changed_definitions, "table definitions were changed"),
        (missing_table, "tables are missing: audit"),
        (another_salt, "identity is damaged"),
    ],
)
def test_foreign_and_damaged_files_are_refused_and_kept(path: Path, make: object, says: str):
    """Each is named for what it is, and not one byte in the folder changes."""
    path.parent.mkdir(parents=True)
    make(path)
    before = snapshot(path.parent)
    for refuse in (lambda: check_sqlite(path, CONFIG), lambda: open_ledger(path)):
        with pytest.raises(LedgerCorrupt, match=says):
            refuse()
    assert snapshot(path.parent) == before


def test_checking_creates_and_takes_nothing(path: Path, draw: np.random.Generator):
    """A check before the start passes where there is no ledger or a good one, and leaves no trace."""
    check_sqlite(path, CONFIG)
    assert not path.parent.exists()
    fill(path, draw, facts=1)
    before = snapshot(path.parent)
    check_sqlite(path, CONFIG)
    assert snapshot(path.parent) == before


def test_unusable_places_are_named(tmp_path: Path):
    """A folder in the place of the file, and a file in the place of the folder, are reported with a cure."""
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder.sqlite", tmp_path / "file" / "memory-00.sqlite"):
        with pytest.raises(StateFolderUnusable, match="choose another state folder"):
            open_ledger(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_places_are_named(path: Path, draw: np.random.Generator):
    """A file or folder that may not be written to is refused before anything else happens."""
    fill(path, draw, facts=1)
    for place, mode in ((path, 0o400), (path.parent, 0o500)):
        usual = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(StateFolderUnusable, match="writable"):
            open_ledger(path)
        place.chmod(usual)


def test_an_interrupted_creation_is_finished(path: Path):
    """A file without tables, as a crash during the first start leaves it, becomes a ledger."""
    path.parent.mkdir(parents=True)
    for mark in (False, True):
        with closing(sqlite3.connect(path)) as driver:
            if mark:
                driver.execute(f"PRAGMA application_id={0x4C4D5752}")
        with open_ledger(path) as ledger:
            assert ledger.epoch == 1
        path.unlink()


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_damage_is_never_read_as_something_else(tmp_path: Path, path: Path, draw: np.random.Generator, seed: int):
    """60 files with a flipped bit, a changed byte or a lost sector: each is refused or reads exactly as before."""
    fill(path, draw, facts=60)
    with open_ledger(path) as ledger:
        intact = observe(ledger)
    content = path.read_bytes()
    choose, outcomes = random.Random(seed), Counter()
    copy = tmp_path / "copy" / "ledger" / path.name
    shutil.copytree(vault_of(path).parent, vault_of(copy).parent)
    for _ in range(60):
        damaged = bytearray(content)
        at = choose.randrange(len(damaged))
        kind = choose.choice(["bit", "byte", "sector"])
        if kind == "bit":
            damaged[at] ^= 1 << choose.randrange(8)
        elif kind == "byte":
            damaged[at] = choose.randrange(256)
        else:
            at -= at % 512
            damaged[at : at + 512] = bytes(512)
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        copy.write_bytes(damaged)
        try:
            ledger = open_ledger(copy)
        except StartupError:
            assert copy.read_bytes() == damaged
            outcomes["refused"] += 1
            continue
        with ledger:
            try:
                assert observe(ledger) == intact, f"{kind} at {at}"
                outcomes["identical"] += 1
            except (LedgerCorrupt, TenantDamaged):
                outcomes["found on reading"] += 1
    # Every outcome occurs, so the damage was real and not all of it in places that nobody reads.
    assert all(outcomes[kind] > 0 for kind in ("refused", "found on reading", "identical")), outcomes


def test_a_damaged_fact_is_named(path: Path, draw: np.random.Generator):
    """The error for a changed fact says which tenant and position, and quotes nothing of it."""
    fill(path, draw)
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("UPDATE fact SET supersedes = 'something else' WHERE tenant = 'globex' AND seq = 3")
        driver.commit()
    with open_ledger(path) as ledger:
        assert len(ledger.facts("acme")) == 10
        for read in (ledger.facts, ledger.fact_records):
            with pytest.raises(TenantDamaged, match="'globex' is quarantined: fact 3 ") as caught:
                read("globex")
            assert "something else" not in str(caught.value)


UNDECODABLE = {
    "fact": "UPDATE fact SET supersedes = CAST(x'ff41' AS TEXT) WHERE tenant = 'globex' AND seq = 3",
    "tenant": "UPDATE tenant SET retention = CAST(x'ff41' AS TEXT) WHERE name = 'globex'",
    "number": "UPDATE fact SET created_at = 'x' WHERE tenant = 'globex' AND seq = 3",
    "nothing": "UPDATE tenant SET salt = 7, version = 'x' WHERE name = 'globex'",
}


@pytest.mark.parametrize("where", UNDECODABLE)
def test_a_value_that_cannot_be_decoded_is_one_tenants_damage(path: Path, draw: np.random.Generator, where: str):
    """Text that is not UTF-8, or a value of another type, keeps no other tenant from being listed and read."""
    fill(path, draw)
    with closing(sqlite3.connect(path)) as driver:
        driver.execute(UNDECODABLE[where])
        driver.commit()
    with open_ledger(path) as ledger:
        assert "acme" in [row.name for row in ledger.tenants()]
        assert len(ledger.facts("acme")) == 10
        with pytest.raises(TenantDamaged) as caught:
            ledger.facts("globex")
        assert caught.value.args[0] == "globex"
        assert [one.args[0] for one in ledger.damaged_tenants()] == ["globex"] * (where in {"tenant", "nothing"})


def test_a_full_disk_is_reported_and_nothing_is_half_stored(path: Path, draw: np.random.Generator):
    """When the database may not grow, the commit fails with the cause and leaves what was there."""
    with open_ledger(path) as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw))], 2.0)
        with ledger._connection.begin():
            pages = ledger._connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            ledger._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(LedgerFailed, match="disk is full"):
            ledger.commit([written("acme", 2, *(make_fact(seq, draw) for seq in range(2, 300)))], 3.0)
    with open_ledger(path) as ledger:
        assert len(ledger.facts("acme")) == 1


def test_errors_quote_no_content(path: Path, draw: np.random.Generator):
    """A failed commit's message and causes hold nothing of the facts it was about."""
    fact = make_fact(1, draw, prompt="the vault code is 4711")
    with open_ledger(path) as ledger:
        ledger.commit([created("acme"), written("acme", 1, fact)], 2.0)
        again = make_fact(2, draw, fact_id=fact.fact_id, prompt="the vault code is 4711")
        with pytest.raises(LarimarError) as caught:
            ledger.commit([written("acme", 2, again)], 3.0)
    error: BaseException | None = caught.value
    while error is not None:
        assert "4711" not in str(error)
        error = error.__cause__


# -- migrations -------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_of_the_schema(path: Path):
    """The migrated database and `ledger_schema` agree, and HEAD is the newest revision."""
    assert max(known_revisions()) == HEAD
    with open_ledger(path) as ledger:
        differences = compare_metadata(MigrationContext.configure(ledger._connection), metadata)
        keys = sa.inspect(ledger._connection).get_foreign_keys("fact_tag")
    assert differences == []
    assert keys[0]["options"] == {"ondelete": "CASCADE"}


def test_alembic_is_imported_only_to_migrate(path: Path, draw: np.random.Generator):
    """Opening a ledger of this release does not pay for the migration library."""
    fill(path, draw, facts=1)
    program = (
        "import sys; from pathlib import Path; from tests.ledger_samples import open_ledger\n"
        "open_ledger(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"
