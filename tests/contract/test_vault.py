"""What a vault owes on every engine. A new engine adds a class like `SqliteVaults` and its name to `ENGINES`."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import sqlalchemy as sa

from memory_actor import crash_points
from memory_actor.errors import LedgerCorrupt, LedgerFailed, VaultLocked
from memory_actor.ledger_postgres import open_vault_postgres
from memory_actor.vault import DataKey, KeyDamaged, Vault
from memory_actor.vault_schema import DESTROYED
from tests.postgres_server import shared_server

ROOT, OTHER_ROOT = bytes(range(32)), bytes(range(1, 33))
ACME, GLOBEX = "a" * 32, "b" * 32


class Engine(Protocol):
    """One database engine under test. Its vault is opened, closed and opened again."""

    def open(self, root_keys: Sequence[bytes] = (ROOT,)) -> Vault: ...


class SqliteVaults:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys" / "vault-00.sqlite"

    def open(self, root_keys: Sequence[bytes] = (ROOT,)) -> Vault:
        return Vault.open_sqlite(self._path, root_keys)


class PostgresVaults:
    def __init__(self, folder: Path) -> None:
        self._url = shared_server().fresh_url()

    def open(self, root_keys: Sequence[bytes] = (ROOT,)) -> Vault:
        return open_vault_postgres(self._url, root_keys)


ENGINES = {"sqlite": SqliteVaults, "postgresql": PostgresVaults}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return ENGINES[request.param](tmp_path)


@pytest.fixture
def vault(engine: Engine) -> Iterator[Vault]:
    with engine.open() as opened:
        opened.create_tenant(ACME)
        opened.create_tenant(GLOBEX)
        yield opened


def sql(vault: Vault, statement: str, **values: object) -> Sequence[Any]:
    """Run a statement behind the vault's back, over its own connection; `{0}` stands for the tables' prefix."""
    with vault._connection.begin():
        result = vault._connection.execute(sa.text(statement.format(vault._text.prefix)), values)
        return result.all() if result.returns_rows else []


def wrapped_key(vault: Vault, key_id: int) -> bytes:
    """As stored."""
    return sql(vault, "SELECT wrapped FROM {0}data_key WHERE id = :id", id=key_id)[0][0]


def issue(vault: Vault, uid: str, count: int) -> dict[int, bytes]:
    return {one.id: one.key for one in vault.issue([(uid, count)])[0]}


@contextmanager
def crash_hook(hook: Any) -> Iterator[None]:
    crash_points.install(hook)
    try:
        yield
    finally:
        crash_points.install(None)


# -- issuing and reading ----------------------------------------------------------------------------------------


def test_keys_come_back_after_a_restart(engine: Engine):
    """Every key issued is found under its number by the next incarnation, and no other."""
    with engine.open() as vault:
        vault.create_tenant(ACME)
        keys = issue(vault, ACME, 300) | issue(vault, ACME, 1)
    with engine.open() as vault:
        assert vault.data_keys(ACME, list(keys)) == keys
        assert vault.data_keys(ACME, [0, -1, max(keys) + 1, 2**62]) == {}
        assert vault.data_keys(ACME, []) == {}


def test_keys_come_as_asked_for(vault: Vault):
    """One list per pair, in order, of that many keys: 32 fresh bytes each, numbers ascending, also across pairs."""
    issued = vault.issue([(ACME, 3), (GLOBEX, 0), (GLOBEX, 2), (ACME, 1)])
    assert [len(keys) for keys in issued] == [3, 0, 2, 1]
    everything = [one for keys in issued for one in keys]
    assert [one.id for one in everything] == sorted({one.id for one in everything})
    assert len({one.key for one in everything}) == 6
    assert {len(one.key) for one in everything} == {32}
    assert vault.issue([]) == []
    assert vault.issue([(ACME, 0)]) == [[]]


def test_numbers_are_never_given_twice(engine: Engine):
    """Ids ascend over restarts, also when the highest ones were destroyed, scrubbed, and rolled back."""
    seen: list[int] = []
    for _ in range(4):
        with engine.open() as vault:
            vault.create_tenant(ACME)
            ids = list(issue(vault, ACME, 5))
            vault.destroy(ACME, ids)
            vault.scrub()
        seen += ids
    assert seen == sorted(set(seen))


def test_many_keys_at_once(vault: Vault):
    """2,048 keys are read in one call, and ids asked for twice come once."""
    keys = issue(vault, ACME, 2048)
    assert vault.data_keys(ACME, [*keys, *keys]) == keys


def test_a_tenants_keys_are_nothing_to_another(vault: Vault):
    """By its number a key is found, and destroyed, for its own tenant only."""
    keys = issue(vault, ACME, 3)
    assert vault.data_keys(GLOBEX, list(keys)) == {}
    assert vault.destroy(GLOBEX, list(keys)) == 0
    assert vault.data_keys(ACME, list(keys)) == keys


def test_threads_share_a_vault(vault: Vault):
    """Keys issued by eight threads at once are all different and all there."""
    found: list[dict[int, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(issue(vault, ACME, 50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = {key_id: key for keys in found for key_id, key in keys.items()}
    assert len(together) == len(set(together.values())) == 400
    assert vault.data_keys(ACME, list(together)) == together


# -- tenants ----------------------------------------------------------------------------------------------------


def test_creating_a_tenant_again_changes_nothing(vault: Vault):
    """The second call finds the key of the first."""
    keys = issue(vault, ACME, 2)
    vault.create_tenant(ACME)
    assert vault.data_keys(ACME, list(keys)) == keys


def test_without_a_tenant_key_nothing_is_issued(vault: Vault):
    """An unknown tenant in a group is refused by name, nothing is stored for the others, and the vault goes on."""
    before = vault.counts()
    with pytest.raises(KeyDamaged) as refused:
        vault.issue([(ACME, 3), ("c" * 32, 1)])
    assert refused.value.uid == "c" * 32
    assert vault.counts() == before
    assert not vault.holds("c" * 32)
    assert vault.data_keys("c" * 32, [1]) == {}
    assert len(issue(vault, ACME, 1)) == 1


# -- destroying -------------------------------------------------------------------------------------------------


def test_destroyed_keys_stay_destroyed(engine: Engine):
    """After a restart and a scrub too; the others are untouched, and destroying again finds nothing."""
    with engine.open() as vault:
        vault.create_tenant(ACME)
        keys = issue(vault, ACME, 10)
        gone, kept = list(keys)[::2], list(keys)[1::2]
        assert vault.destroy(ACME, [*gone, 2**40]) == len(gone)
        assert vault.data_keys(ACME, list(keys)) == {key_id: keys[key_id] for key_id in kept}
    for scrub in (True, False):
        with engine.open() as vault:
            assert vault.destroy(ACME, gone) == 0
            assert vault.data_keys(ACME, list(keys)) == {key_id: keys[key_id] for key_id in kept}
            assert vault.counts() == {"tenants": 1, "keys": 5}
            if scrub:
                vault.scrub()


def test_a_destroyed_tenant_cannot_be_made_anew(engine: Engine):
    """Its keys are gone and no new ones are given, under its uid, by this incarnation or a later one."""
    with engine.open() as vault:
        vault.create_tenant(ACME)
        vault.create_tenant(GLOBEX)
        keys, others = issue(vault, ACME, 7), issue(vault, GLOBEX, 2)
        assert vault.destroy_tenant(ACME) == 8
    with engine.open() as vault:
        assert vault.destroy_tenant(ACME) == 0
        assert vault.data_keys(ACME, list(keys)) == {}
        with pytest.raises(KeyDamaged):
            vault.create_tenant(ACME)
        with pytest.raises(KeyDamaged):
            vault.issue([(ACME, 1)])
        assert vault.data_keys(GLOBEX, list(others)) == others
        assert vault.destroy_tenant("c" * 32) == 0


def test_a_tenants_end_goes_on_where_it_was_interrupted(vault: Vault):
    """With the tenant's key gone and its data keys still there, nothing can be read; calling again removes the rest."""
    keys = issue(vault, ACME, 5)
    sql(vault, "UPDATE {0}tenant_key SET wrapped = :zeros WHERE uid = :uid", zeros=DESTROYED, uid=ACME)
    vault._ciphers.clear()
    assert vault.data_keys(ACME, list(keys)) == {}
    assert vault.destroy_tenant(ACME) == 5
    assert vault.counts() == {"tenants": 1, "keys": 0}


# -- the root key -----------------------------------------------------------------------------------------------


def test_another_root_key_is_refused(engine: Engine):
    """Also when it comes first of two: the vault is opened by the one it was sealed under, and says which is wrong."""
    with engine.open() as vault:
        vault.create_tenant(ACME)
        keys = issue(vault, ACME, 2)
        right = vault.root_fingerprint
    with pytest.raises(VaultLocked) as refused:
        engine.open([OTHER_ROOT])
    assert right in str(refused.value)
    with pytest.raises(VaultLocked, match="missing"):
        engine.open([])
    with engine.open([OTHER_ROOT, ROOT]) as vault:
        assert vault.data_keys(ACME, list(keys)) == keys


def test_no_vault_is_made_without_a_root_key(engine: Engine):
    """Nor left half made: the next opening with a key succeeds."""
    with pytest.raises(VaultLocked, match="missing"):
        engine.open([])
    with engine.open() as vault:
        assert vault.counts() == {"tenants": 0, "keys": 0}


def test_rotating_the_root_key(engine: Engine):
    """All keys open under the new root key and no longer under the old one; a second time there is nothing to do."""
    with engine.open() as vault:
        for uid in (ACME, GLOBEX, "c" * 32):
            vault.create_tenant(uid)
        vault.destroy_tenant("c" * 32)
        keys, identity = issue(vault, ACME, 20), vault.identity
        assert vault.rotate_root(OTHER_ROOT) == 2
        assert vault.rotate_root(OTHER_ROOT) == 0
        keys |= issue(vault, ACME, 1)
        vault.create_tenant("d" * 32)
        vault.scrub()
    with pytest.raises(VaultLocked):
        engine.open([ROOT])
    with engine.open([ROOT, OTHER_ROOT]) as vault:
        assert vault.data_keys(ACME, list(keys)) == keys
        assert vault.identity == identity
        assert vault.holds("d" * 32)


def test_an_interrupted_rotation_leaves_the_old_root_key(engine: Engine):
    """A tenant key that does not open stops it, and nothing was changed: keys, lock and ability to go on."""
    with engine.open() as vault:
        for uid in (ACME, GLOBEX):
            vault.create_tenant(uid)
        keys = issue(vault, ACME, 3)
        acmes = (
            "UPDATE {0}tenant_key SET wrapped = (SELECT wrapped FROM {0}tenant_key WHERE uid = :from) WHERE uid = :to"
        )
        sql(vault, acmes, **{"from": ACME, "to": GLOBEX})
        with pytest.raises(KeyDamaged) as refused:
            vault.rotate_root(OTHER_ROOT)
        assert refused.value.uid == GLOBEX
        assert len(issue(vault, ACME, 1)) == 1
    with engine.open([ROOT]) as vault:
        assert vault.data_keys(ACME, list(keys)) == keys


def test_rotating_a_tenants_key(engine: Engine):
    """More keys than a page: all come back; destroyed ones stay destroyed; the other tenant's rows are as they were."""
    with engine.open() as vault:
        vault.create_tenant(ACME)
        vault.create_tenant(GLOBEX)
        keys, others = issue(vault, ACME, 5000), issue(vault, GLOBEX, 3)
        gone = list(keys)[10:20]
        vault.destroy(ACME, gone)
        before = set(sql(vault, "SELECT id, tenant, wrapped FROM {0}data_key"))
        assert vault.rotate_tenant(ACME) == 4990
        after = set(sql(vault, "SELECT id, tenant, wrapped FROM {0}data_key"))
        assert {row[0] for row in before & after if row[0] not in gone} == set(others)
        keys |= issue(vault, ACME, 1)
    with engine.open() as vault:
        found = vault.data_keys(ACME, list(keys))
        assert found == {key_id: key for key_id, key in keys.items() if key_id not in gone}
        assert vault.data_keys(GLOBEX, list(others)) == others
        with pytest.raises(KeyDamaged):
            vault.rotate_tenant("c" * 32)


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", ["id", "tenant", "cut", "bit"])
def test_a_changed_row_is_never_a_key(vault: Vault, swapped: str):
    """Wrapped keys moved to another number or tenant, cut or changed: refused, or absent; never another key."""
    keys, others = issue(vault, ACME, 4), issue(vault, GLOBEX, 1)
    first, second, *rest = keys
    wrapped = wrapped_key(vault, first)
    changed = {
        "id": wrapped_key(vault, second),
        "tenant": wrapped_key(vault, next(iter(others))),
        "cut": wrapped[:20],
        "bit": bytes([wrapped[0] ^ 1]) + wrapped[1:],
    }[swapped]
    sql(vault, "UPDATE {0}data_key SET wrapped = :changed WHERE id = :id", changed=changed, id=first)
    with pytest.raises(KeyDamaged) as refused:
        vault.data_keys(ACME, list(keys))
    assert refused.value.uid == ACME
    assert vault.data_keys(ACME, rest) == {key_id: keys[key_id] for key_id in rest}
    with pytest.raises(KeyDamaged):
        vault.rotate_tenant(ACME)
    assert vault.data_keys(ACME, rest) == {key_id: keys[key_id] for key_id in rest}


@pytest.mark.parametrize("name", ["format", "identity", "root", "check"])
def test_a_changed_lock_is_damage(engine: Engine, name: str):
    """Not mistaken for a wrong root key, and not opened either."""
    with engine.open() as vault:
        sql(vault, "UPDATE {0}vault_meta SET value = :other WHERE name = :name", other=b"something else", name=name)
    with pytest.raises(LedgerCorrupt):
        engine.open()


# -- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["keys.before_commit", "keys.after_commit"])
def test_a_failing_disk_stops_the_vault(engine: Engine, point: str):
    """No key can be made or destroyed after a storage error, reads go on, and the next incarnation finds all it had."""

    def fail(name: str) -> None:
        if name == point:
            raise OSError(5, "Input/output error")

    with engine.open() as vault:
        vault.create_tenant(ACME)
        keys = issue(vault, ACME, 2)
        with crash_hook(fail), pytest.raises(LedgerFailed, match="Input/output error"):
            vault.issue([(ACME, 1)])
        for refused in (
            lambda: vault.issue([(ACME, 1)]),
            lambda: vault.destroy(ACME, list(keys)),
            lambda: vault.create_tenant(GLOBEX),
            vault.scrub,
        ):
            with pytest.raises(LedgerFailed):
                refused()
        assert vault.data_keys(ACME, list(keys)) == keys
    with engine.open() as vault:
        assert vault.data_keys(ACME, list(keys)) == keys
        assert vault.counts()["keys"] == (2 if point == "keys.before_commit" else 3)


def test_a_closed_vault_refuses(engine: Engine):
    """Everything raises LedgerFailed, and closing again is nothing."""
    vault = engine.open()
    vault.close()
    vault.close()
    for refused in (
        lambda: vault.create_tenant(ACME),
        lambda: vault.issue([(ACME, 1)]),
        lambda: vault.data_keys(ACME, [1]),
        lambda: vault.destroy(ACME, [1]),
        vault.counts,
        vault.scrub,
    ):
        with pytest.raises(LedgerFailed, match="closed"):
            refused()


def test_no_key_is_shown(vault: Vault, engine: Engine):
    """No repr, message or location quotes a key, in bytes, hex or escaped."""
    (one,) = vault.issue([(ACME, 1)])[0]
    shown = [repr(one), repr(vault), repr(vault._unlocked), vault.location, repr(vault._ciphers)]
    for call in (lambda: engine.open([OTHER_ROOT]), lambda: vault.issue([("c" * 32, 1)])):
        with pytest.raises((VaultLocked, KeyDamaged, Exception)) as refused:
            call()
        shown += [str(refused.value), repr(refused.value)]
    for secret in (one.key, ROOT, OTHER_ROOT):
        for form in (secret.hex(), repr(secret)[2:-1], repr(secret[:8])[2:-1]):
            assert not [text for text in shown if form in text]
    assert one == DataKey(one.id, one.key)


# -- any history ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_any_history_reads_as_a_dictionary_would(engine: Engine, seed: int):
    """Issue, destroy, rotate, scrub, end tenants and restart in any order: the vault holds what a dict holds."""
    draw = random.Random(seed)
    uids = [f"{number:032x}" for number in range(4)]
    model: dict[str, dict[int, bytes]] = {uid: {} for uid in uids}
    ended: set[str] = set()
    ever: dict[str, list[int]] = {uid: [] for uid in uids}
    root = os.urandom(32)
    vault = engine.open([root])
    try:
        for uid in uids:
            vault.create_tenant(uid)
        for _ in range(120):
            uid = draw.choice([one for one in uids if one not in ended] or uids)
            match draw.choice(["issue"] * 4 + ["destroy"] * 3 + ["scrub", "restart", "rotate", "root", "end"]):
                case "issue" if uid not in ended:
                    keys = issue(vault, uid, draw.choice([1, 2, 60]))
                    model[uid] |= keys
                    ever[uid] += keys
                case "destroy":
                    gone = draw.sample(ever[uid], min(len(ever[uid]), draw.choice([1, 30])))
                    expected = sum(key_id in model[uid] for key_id in gone)
                    assert vault.destroy(uid, gone) == expected
                    for key_id in gone:
                        model[uid].pop(key_id, None)
                case "scrub":
                    vault.scrub()
                case "restart":
                    vault.close()
                    vault = engine.open([root])
                case "rotate" if uid not in ended:
                    assert vault.rotate_tenant(uid) == len(model[uid])
                case "root":
                    root = os.urandom(32)
                    vault.rotate_root(root)
                case "end" if len(ended) < 2:
                    assert vault.destroy_tenant(uid) == len(model[uid]) + (uid not in ended)
                    model[uid].clear()
                    ended.add(uid)
            other = draw.choice(uids)
            assert vault.data_keys(other, ever[other]) == model[other]
        assert vault.counts() == {"tenants": len(uids) - len(ended), "keys": sum(map(len, model.values()))}
    finally:
        vault.close()
