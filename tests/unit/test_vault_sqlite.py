"""What is particular to vault files: who may read them, what damage does, and that destroyed keys leave no byte."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from memory_actor.errors import LarimarError, LedgerCorrupt, StateFolderUnusable, VaultLocked
from memory_actor.sealing import Cipher
from memory_actor.vault import KeyDamaged, Vault
from memory_actor.vault_lock import fingerprint
from memory_actor.vault_schema import APPLICATION_ID, WRAPPED_BYTES
from memory_actor.vault_sqlite import COMPACT_ROWS, inspect_file

ROOT = bytes(range(32))
ACME, GLOBEX = "a" * 32, "b" * 32
WINDOW = 12  # bytes in a row that count as a remainder of a key; by chance they are nowhere


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys" / "vault-00.sqlite"


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def fill(path: Path, keys: int = 200) -> dict[str, dict[int, bytes]]:
    """A closed vault with two tenants; every fourth key of each is destroyed. Returns the others."""
    kept = {}
    with Vault.open_sqlite(path, [ROOT]) as vault:
        for uid in (ACME, GLOBEX):
            vault.create_tenant(uid)
            issued = {one.id: one.key for one in vault.issue([(uid, keys)])[0]}
            gone = list(issued)[::4]
            vault.destroy(uid, gone)
            kept[uid] = {key_id: key for key_id, key in issued.items() if key_id not in gone}
    return kept


# -- the file ---------------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_it(path: Path):
    """Folder 0700, file and log 0600 whatever the umask, and after closing only the file is left."""
    mask = os.umask(0)
    try:
        with Vault.open_sqlite(path, [ROOT]) as vault:
            vault.create_tenant(ACME)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {path.name: 0o600, path.name + "-wal": 0o600}
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(mask)
    assert list(files_of(path)) == [path.name]


def test_one_process_at_a_time(path: Path):
    """A second opening is refused while the first lasts."""
    with Vault.open_sqlite(path, [ROOT]), pytest.raises(StateFolderUnusable, match="in use"):
        Vault.open_sqlite(path, [ROOT])
    Vault.open_sqlite(path, [ROOT]).close()


def test_a_wrong_or_missing_root_key_changes_nothing(path: Path):
    """The files are byte for byte as they were; the message names both root keys by their fingerprints."""
    fill(path)
    before = files_of(path)
    other = bytes(32)
    with pytest.raises(VaultLocked) as refused:
        Vault.open_sqlite(path, [other])
    assert fingerprint(ROOT) in str(refused.value)
    assert fingerprint(other) in str(refused.value)
    with pytest.raises(VaultLocked):
        Vault.open_sqlite(path, [])
    assert files_of(path) == before


def test_no_key_is_in_the_file(path: Path):
    """Neither the root key nor any data key: only what they seal."""
    kept = fill(path)
    content = path.read_bytes()
    for secret in [ROOT, *kept[ACME].values(), *kept[GLOBEX].values()]:
        assert secret[:WINDOW] not in content


def test_a_closed_file_can_be_described(path: Path):
    """Counts and the root key's fingerprint are read without any key, and without changing a byte."""
    kept = fill(path)
    before = files_of(path)
    said = inspect_file(path)
    assert said == {"root_key": fingerprint(ROOT), "tenants": 2, "keys": sum(map(len, kept.values())), "zeros": 100}
    assert files_of(path) == before


# -- damage -----------------------------------------------------------------------------------------------------


def test_other_peoples_files_are_refused(path: Path):
    """A text, a SQLite database of somebody else, a folder: refused as they are, and left so."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database, but long enough to have been one" * 100)
    with pytest.raises(LedgerCorrupt):
        Vault.open_sqlite(path, [ROOT])
    path.unlink()
    with closing(sqlite3.connect(path)) as driver:
        driver.execute("CREATE TABLE data_key (id INTEGER)")
    before = files_of(path)
    with pytest.raises(LedgerCorrupt, match="not a larimar vault"):
        Vault.open_sqlite(path, [ROOT])
    assert files_of(path) == before
    path.unlink()
    path.mkdir()
    with pytest.raises(StateFolderUnusable):
        Vault.open_sqlite(path, [ROOT])


def test_an_interrupted_creation_begins_again(path: Path):
    """An empty file, and one that has our header and no tables, become vaults."""
    path.parent.mkdir(parents=True)
    path.touch()
    Vault.open_sqlite(path, [ROOT]).close()
    path.unlink()
    with closing(sqlite3.connect(path)) as driver:
        driver.execute(f"PRAGMA application_id={APPLICATION_ID}")
    Vault.open_sqlite(path, [ROOT]).close()


def test_other_tables_are_refused(path: Path):
    """A table that was dropped, or made anew with other columns, is not worked on."""
    for change in ("DROP TABLE key_counter", "ALTER TABLE data_key ADD COLUMN more", "DROP INDEX data_key_of_tenant"):
        fill(path, 4)
        with closing(sqlite3.connect(path)) as driver:
            driver.execute(change)
        with pytest.raises(LedgerCorrupt):
            Vault.open_sqlite(path, [ROOT])
        path.unlink()


def observe(path: Path, ids: dict[str, Iterable[int]]) -> dict[str, dict[int, bytes] | None]:
    """What a process reads from a vault file: per tenant its keys, None where they are refused as damaged."""
    found: dict[str, dict[int, bytes] | None] = {}
    with Vault.open_sqlite(path, [ROOT]) as vault:
        for uid, of_tenant in ids.items():
            try:
                found[uid] = vault.data_keys(uid, list(of_tenant))
            except KeyDamaged:
                found[uid] = None
    return found


def test_no_flipped_bit_gives_a_wrong_key(path: Path, tmp_path: Path):
    """Random bits of the file: refused at opening or reading, or every key that comes back is the right one.

    A key may be missing, where its row says another tenant or number now: for the ledger that is damage too.
    """
    kept = fill(path)
    content = path.read_bytes()
    draw = random.Random(20260103)
    noticed = 0
    for _ in range(300):
        bit = draw.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        copy = tmp_path / "flipped" / "vault-00.sqlite"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(changed)
        try:
            found = observe(copy, kept)
        except LarimarError:
            noticed += 1
        else:
            for uid, keys in found.items():
                assert keys is None or keys.items() <= kept[uid].items()
            noticed += found != kept
        shutil.rmtree(copy.parent)
    assert noticed > 75  # a quarter of the file is keys that count, at least


def test_a_truncated_file_is_refused(path: Path, tmp_path: Path):
    """Cut at any page, or within one, and left as it is. (An empty file is no vault yet; its ledger misses it then.)

    Short of its last byte it may open; then that byte's key is refused.
    """
    kept = fill(path)
    content = path.read_bytes()
    for size in [*range(4096, len(content), 4096), 1, 99, 100, 511, 512, 5000]:
        cut = tmp_path / f"cut-{size}" / "vault-00.sqlite"
        cut.parent.mkdir()
        cut.write_bytes(content[:size])
        with pytest.raises(LedgerCorrupt):
            Vault.open_sqlite(cut, [ROOT])
        assert cut.read_bytes() == content[:size]
    cut.write_bytes(content[:-1])
    found = observe(cut, kept)
    assert all(keys is None or keys == kept[uid] for uid, keys in found.items())


# -- nothing left -----------------------------------------------------------------------------------------------


def raw_rows(vault: Vault, table: str) -> dict[int, bytes]:
    """Wrapped keys as stored, by row."""
    with vault._connection.begin():
        return dict(vault._connection.exec_driver_sql(f"SELECT id, wrapped FROM {table}").all())  # noqa: S608 - ours


def remainders(path: Path, secrets: Iterable[bytes]) -> int:
    """How many places in the vault's files hold WINDOW bytes of the secrets."""
    pieces = {one[start : start + WINDOW] for one in secrets for start in range(0, WRAPPED_BYTES - WINDOW + 1, WINDOW)}
    found = 0
    for content in files_of(path).values():
        found += sum(content[at : at + WINDOW] in pieces for at in range(len(content) - WINDOW + 1))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_destroyed_keys_leave_no_byte_behind(path: Path, seed: int):
    """After any history of issuing and destroying and one scrub, nothing of a destroyed wrapped key is in any file.

    Before the scrub the write-ahead log does hold some, so the search can find what it looks for.
    """
    draw = random.Random(seed)
    live: dict[int, str] = {}
    gone: list[bytes] = []
    with Vault.open_sqlite(path, [ROOT]) as vault:
        for uid in (ACME, GLOBEX):
            vault.create_tenant(uid)
        for _ in range(60):
            uid = draw.choice([ACME, GLOBEX])
            live |= dict.fromkeys((one.id for one in vault.issue([(uid, draw.choice([1, 3, 40, 256]))])[0]), uid)
            rows = raw_rows(vault, "data_key")
            ended = draw.sample(list(live), min(len(live), draw.choice([0, 1, 100, 200])))
            for owner in (ACME, GLOBEX):
                vault.destroy(owner, [key_id for key_id in ended if live[key_id] == owner])
            gone += [rows[key_id] for key_id in ended]
            live = {key_id: owner for key_id, owner in live.items() if key_id not in set(ended)}
            if draw.random() < 0.1:
                vault.scrub()
        rows = raw_rows(vault, "data_key")
        vault.destroy(ACME, [key_id for key_id in live if live[key_id] == ACME])
        gone += [rows[key_id] for key_id in live if live[key_id] == ACME]
        assert remainders(path, gone) > 0
        vault.scrub()
        assert remainders(path, gone) == 0
        kept = [rows[key_id] for key_id in live if live[key_id] == GLOBEX]
        assert remainders(path, kept) >= len(kept)
    assert remainders(path, gone) == 0


def test_replaced_keys_leave_no_byte_behind(path: Path):
    """What a rotation replaced, of a tenant or of the root key, and a tenant that ended: gone from the files."""
    fill(path, 3000)
    with Vault.open_sqlite(path, [ROOT]) as vault:
        number = next(iter(raw_rows(vault, "tenant_key")))
        own = set(vault.data_keys(ACME, range(3000)))
        replaced = [raw_rows(vault, "tenant_key")[number]]
        replaced += [wrapped for key_id, wrapped in raw_rows(vault, "data_key").items() if key_id in own]
        vault.rotate_tenant(ACME)
        vault.scrub()
        assert remainders(path, replaced) == 0
        replaced = [*raw_rows(vault, "tenant_key").values()]
        vault.rotate_root(bytes(32))
        vault.scrub()
        assert remainders(path, replaced) == 0
        ended = [raw_rows(vault, "tenant_key")[number]]
        ended += [wrapped for key_id, wrapped in raw_rows(vault, "data_key").items() if key_id in own]
        vault.destroy_tenant(ACME)
        vault.scrub()
        assert remainders(path, ended) == 0


def test_a_scrub_empties_the_log(path: Path):
    """The write-ahead log has no byte after it, and the file is complete by itself."""
    with Vault.open_sqlite(path, [ROOT]) as vault:
        vault.create_tenant(ACME)
        keys = {one.id: one.key for one in vault.issue([(ACME, 10)])[0]}
        vault.scrub()
        assert files_of(path)[path.name + "-wal"] == b""
        copy = path.parent.parent / "copy" / path.name
        copy.parent.mkdir()
        shutil.copy(path, copy)
    assert observe(copy, {ACME: keys}) == {ACME: keys}


def test_room_of_destroyed_keys_is_used_again(path: Path):
    """A vault through which many keys pass stays as small as what it holds needs, and its copies leave no byte."""
    gone: list[bytes] = []
    with Vault.open_sqlite(path, [ROOT]) as vault:
        vault.create_tenant(ACME)
        kept = {one.id: one.key for one in vault.issue([(ACME, 50)])[0]}
        sizes = []
        for _ in range(8):
            ids = [one.id for one in vault.issue([(ACME, COMPACT_ROWS)])[0]]
            gone += list(raw_rows(vault, "data_key").values())[-20:]
            vault.destroy(ACME, ids)
            vault.scrub()
            sizes.append(path.stat().st_size)
        assert sizes[-1] < 2 * sizes[0]
        assert len(raw_rows(vault, "data_key")) == 50
        assert remainders(path, gone) == 0
        moved = list(raw_rows(vault, "data_key").values())
        vault.destroy(ACME, list(kept)[:25])
        vault.scrub()
        assert remainders(path, moved[:25]) == 0
        fresh = vault.issue([(ACME, 1)])[0][0]
        assert fresh.id > max(ids)
    kept = dict(list(kept.items())[25:])
    assert observe(path, {ACME: kept}) == {ACME: kept}


def test_old_copies_open_nothing_after_a_rotation(path: Path):
    """A stolen copy of the vault and the root key of today give none of the keys: only the old root key would."""
    kept = fill(path, 20)
    copy = path.parent.parent / "stolen" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    with Vault.open_sqlite(path, [ROOT]) as vault:
        vault.rotate_root(bytes(32))
    with pytest.raises(VaultLocked):
        Vault.open_sqlite(copy, [bytes(32)])
    assert observe(copy, kept) == kept


def test_a_tenants_wrapped_keys_open_under_its_own_key_only(path: Path):
    """With the root key and the other tenant's key in hand, a destroyed tenant's rows are noise."""
    fill(path, 4)
    with Vault.open_sqlite(path, [ROOT]) as vault:
        with vault._connection.begin():
            other = vault._owner(GLOBEX)
        assert other is not None
        rows = raw_rows(vault, "data_key")
        ours = vault.data_keys(ACME, list(rows))
        for key_id in ours:
            context = b"larimar data key\0" + ACME.encode() + b"\0" + key_id.to_bytes(8, "big")
            for cipher in (other[1], Cipher(ROOT)):
                with pytest.raises(Exception, match="changed, or belongs"):
                    cipher.unseal(rows[key_id], context)
