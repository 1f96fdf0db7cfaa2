# ruff: noqa: S608 - names in statements are the tests' own
"""What is particular to PostgreSQL ledgers: schemas, taking over, a lost connection, what vacuuming removes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from memory_actor import crash_points, ledger_postgres
from memory_actor.effects import FactsForgotten
from memory_actor.errors import (
    BundleMismatch,
    Fenced,
    LedgerCorrupt,
    LedgerFailed,
    LedgerServerUnusable,
    VaultLocked,
)
from memory_actor.ledger import Ledger, LedgerEntry
from memory_actor.ledger_postgres import (
    PostgresLedger,
    check_postgres,
    count_ledgers,
    needs_vault,
    open_postgres,
    open_vault_postgres,
    vault_exists,
)
from memory_actor.ledger_schema import metadata
from memory_actor.postgres import location_of, parse
from memory_actor.types import MemoryConfig
from tests.ledger_samples import CONFIG, ROOT_KEY, created, make_fact, plain, written
from tests.postgres_ledgers import open_ledger, opened, wait_for
from tests.postgres_server import PostgresServer, shared_server

OTHER = MemoryConfig(fingerprint="0ther", key_size=16, address_size=24, latent_size=40)


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh_url()


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(20260103)


def test_ledgers_of_a_system_are_counted(url: str):
    """Each memory actor's ledger counts once; the schemas of their keys, and other systems' ledgers, do not."""
    assert count_ledgers(location_of(url, 0)) == 0
    for index in (0, 1):
        open_ledger(location_of(url, index)).close()
    open_ledger(location_of(f"{url}{'&' if '?' in url else '?'}schema=other", 0)).close()

    assert count_ledgers(location_of(url, 1)) == 2


# -- schemas and tables -----------------------------------------------------------------------------------------


def test_tables_are_those_of_the_statements(server: PostgresServer, url: str):
    """What the migrations make on PostgreSQL is what `ledger_schema` describes; blobs, times and positions fit."""
    with opened(url) as ledger:
        schema = ledger.where.schema
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(server.url_of(schema)))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        of_schema = f"FROM information_schema.columns WHERE table_schema = '{schema}'"
        columns = connection.exec_driver_sql(f"SELECT table_name || '.' || column_name, data_type {of_schema}").all()
    engine.dispose()
    kinds = {str(name): str(kind) for name, kind in columns}
    assert (kinds["fact.words"], kinds["fact.created_at"], kinds["fact.seq"]) == ("bytea", "double precision", "bigint")
    assert set(kinds.values()) <= {"bytea", "double precision", "bigint", "integer", "text", "character varying"}


def test_a_role_without_the_right_to_create_schemas(server: PostgresServer):
    """The refusal names the statement that helps; after it, for ledger and keys, the ledger opens."""
    role = "larimar_restricted"
    server.sql(f"CREATE ROLE {role} LOGIN")
    where = f"{server.ledger_url(role)}&schema=restricted_00"
    with pytest.raises(LedgerServerUnusable, match="CREATE SCHEMA restricted_00_keys "), opened(where):
        pass
    server.sql(f"CREATE SCHEMA restricted_00_keys AUTHORIZATION {role}")
    with pytest.raises(LedgerServerUnusable, match="CREATE SCHEMA restricted_00 "), opened(where):
        pass
    server.sql(f"CREATE SCHEMA restricted_00 AUTHORIZATION {role}")
    with opened(where) as ledger:
        assert ledger.epoch == 1
        ledger.truncate_log()
        ledger.vault.scrub()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("ALTER TABLE fact ALTER supersedes TYPE text", "definitions were changed"),
        ("ALTER TABLE idempotency SET UNLOGGED", "definitions were changed"),
        ("ALTER TABLE fact DROP CONSTRAINT fact_id_once", "definitions were changed"),
        ("ALTER TABLE fact DROP CONSTRAINT fact_tenant_fkey", "definitions were changed"),
        ("CREATE RULE lost AS ON INSERT TO fact DO INSTEAD NOTHING", "definitions were changed"),
        ("CREATE TABLE guest (x int)", "definitions were changed"),
        ("DROP TABLE audit", "tables are missing: audit"),
        ("DELETE FROM alembic_version", "does not say which release"),
        ("UPDATE alembic_version SET version_num = '9999'", "'9999', which this release cannot read"),
        ("UPDATE meta SET value = '\\x00' WHERE name = 'salt'", "its identity is damaged"),
    ],
)
def test_changed_tables_are_refused(server: PostgresServer, url: str, change: str, problem: str):
    """Anything about the tables that is not as this release made it stops opening and check; nothing is changed."""
    with opened(url) as ledger:
        schema = ledger.where.schema
    server.sql(f"SET search_path TO {schema}; {change}")
    before = server.sql(f"SELECT count(*) FROM {schema}.actor_epoch")
    for _ in range(2):
        with pytest.raises(LedgerCorrupt, match=problem):
            check_postgres(url, CONFIG)
        with pytest.raises(LedgerCorrupt, match=problem), opened(url):
            pass
    assert server.sql(f"SELECT count(*) FROM {schema}.actor_epoch") == before


def test_another_bundle_or_root_key_is_refused(url: str):
    """Neither takes an epoch."""
    with opened(url):
        pass
    with pytest.raises(BundleMismatch):
        check_postgres(url, OTHER)
    with pytest.raises(BundleMismatch), opened(url, OTHER):
        pass
    with pytest.raises(VaultLocked):
        open_vault_postgres(url, [bytes(32)])
    with opened(url) as ledger:
        assert ledger.epoch == 2


def test_the_vault_of_another_ledger_is_refused(server: PostgresServer, url: str):
    """Also when it is sealed under the same root key; a lost one is not made anew; nothing is changed."""
    with opened(url):
        pass
    with open_vault_postgres(server.fresh_url(), [ROOT_KEY]) as other, pytest.raises(VaultLocked):
        open_postgres(url, CONFIG, "test", 1.0, other)
    keys = parse(url).keys.schema
    server.sql(f"ALTER SCHEMA {keys} RENAME TO hidden")
    with pytest.raises(VaultLocked, match="was sealed with its keys"):
        open_vault_postgres(url, [ROOT_KEY])
    server.sql(f"ALTER SCHEMA hidden RENAME TO {keys}")
    with opened(url) as ledger:
        assert ledger.epoch == 2


def test_checking_creates_nothing(server: PostgresServer, url: str):
    """The check before a first start finds nothing to refuse and leaves no schema behind."""
    check_postgres(url, CONFIG)
    assert not needs_vault(url)
    schema = parse(url).schema
    assert server.sql(f"SELECT 1 FROM pg_namespace WHERE nspname LIKE '{schema}%'") == []


def test_a_ledger_needs_its_vault(server: PostgresServer):
    """So that a lost root key is not replaced by a fresh one: asked of the ledger, and of the whole system's vaults."""
    one, two, other = (f"{server.ledger_url()}&schema={name}" for name in ("lost_00", "lost_01", "lost_a_00"))
    assert not vault_exists(one)
    assert not needs_vault(one)
    with opened(one):
        assert needs_vault(one)
    assert not needs_vault(two)
    assert [vault_exists(location) for location in (one, two, other)] == [True, True, False]


# -- taking over ------------------------------------------------------------------------------------------------


@contextmanager
def holding(url: str, server: PostgresServer) -> Iterator[Callable[[], int]]:
    """Hold the turn of a ledger's commits and take-overs; gives a count of those who wait for it."""
    number = parse(url).lock_number

    def waiting() -> int:
        with psycopg.connect(server.ledger_url(), autocommit=True) as connection:
            query = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND (classid::bigint << 32 | objid::bigint) = %s"
            )
            return connection.execute(query, [number]).fetchall()[0][0]

    with psycopg.connect(server.ledger_url(), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [number])
        yield waiting


class Racer(threading.Thread):
    """Runs one call and keeps what it returned or raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.result: object = None

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:  # whatever it is, the test looks at it
            self.result = error


def ids_of(ledger: Ledger) -> list[str]:
    return [fact.fact_id for fact in ledger.facts("acme")]


@pytest.mark.parametrize("first", ["commit", "take-over"])
def test_a_commit_and_a_take_over_take_turns(server: PostgresServer, url: str, draw: np.random.Generator, first: str):
    """A commit that comes before a take-over is seen by the successor; one that comes after it stores nothing."""
    with open_ledger(url, owner="old") as old, open_vault_postgres(url, [ROOT_KEY]) as vault:
        old.commit([created("acme")], 1.0)
        commit = Racer(lambda: old.commit([written("acme", 1, make_fact(1, draw))], 2.0))
        take_over = Racer(lambda: Ledger.open(url, CONFIG, "new", 3.0, vault))
        order = [commit, take_over] if first == "commit" else [take_over, commit]
        with holding(url, server) as waiting:
            for place, racer in enumerate(order, start=1):
                racer.start()
                wait_for(lambda place=place: waiting() == place)  # who came first is first in the server's queue
        for racer in order:
            racer.join(timeout=30)
        new = take_over.result
        assert isinstance(new, Ledger)
        with new:
            if first == "commit":
                assert commit.result is None
                assert ids_of(new) == ["fact-000001"]
            else:
                assert isinstance(commit.result, Fenced)
                assert commit.result.args == (1, 2)
                assert ids_of(new) == []
            with pytest.raises(Fenced):
                old.commit([written("acme", 2, make_fact(2, draw))], 4.0)
            before = ids_of(new)
            new.commit([written("acme", 2, make_fact(3, draw))], 5.0)
            assert ids_of(new) == [*before, "fact-000003"]


def test_an_incarnation_that_stops_inside_a_commit_is_disconnected(
    url: str, draw: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    """One that was stopped with all rows written cannot hold up its successor, and never commits them afterwards."""
    monkeypatch.setattr(ledger_postgres, "TAKE_OVER_S", 0.3)
    inside, go_on = threading.Event(), threading.Event()

    def stop(name: str) -> None:
        if name == "log.rows_written":
            inside.set()
            assert go_on.wait(30)

    with open_ledger(url, owner="old") as old, open_vault_postgres(url, [ROOT_KEY]) as vault:
        old.commit([created("acme"), written("acme", 1, make_fact(1, draw))], 1.0)
        crash_points.install(stop)
        commit = Racer(lambda: old.commit([written("acme", 2, make_fact(2, draw))], 2.0))
        try:
            commit.start()
            assert inside.wait(30)
            with Ledger.open(url, CONFIG, "new", 3.0, vault) as new:
                assert ids_of(new) == ["fact-000001"]
                go_on.set()
                commit.join(timeout=30)
                assert isinstance(commit.result, LedgerFailed)
                assert commit.result.outcome == "unknown"
                assert ids_of(new) == ["fact-000001"]
        finally:
            go_on.set()
            crash_points.install(None)


def test_two_first_openers_share_one_creation(url: str):
    """Both may find nothing there: the tables are made once, and each has an epoch of its own."""
    with open_vault_postgres(url, [ROOT_KEY]) as vault:
        openers = [Racer(lambda: open_postgres(url, CONFIG, "racer", 1.0, vault)) for _ in range(3)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join(timeout=60)
        ledgers = [opener.result for opener in openers]
        assert all(isinstance(ledger, PostgresLedger) for ledger in ledgers), ledgers
        assert sorted(ledger.epoch for ledger in ledgers) == [1, 2, 3]
        assert len({ledger.salt for ledger in ledgers}) == 1
        for ledger in ledgers:
            ledger.close()


# -- losing the server ------------------------------------------------------------------------------------------


def test_a_lost_connection_ends_the_incarnation(server: PostgresServer, url: str, draw: np.random.Generator):
    """After it neither commits nor reads go on over another connection: only a new opening does."""
    with open_ledger(url) as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw))], 1.0)
        schema = parse(url).schema
        end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'larimar {schema}'"
        assert server.sql(end) == [(True,)]
        with pytest.raises(LedgerFailed, match="connection"):
            ledger.commit([written("acme", 2, make_fact(2, draw))], 2.0)
        for use in (lambda: ledger.commit([written("acme", 2, make_fact(2, draw))], 2.0), lambda: ids_of(ledger)):
            with pytest.raises(LedgerFailed):
                use()
        assert server.sql(f"SELECT 1 FROM pg_stat_activity WHERE application_name = 'larimar {schema}'") == []
    with open_ledger(url) as ledger:
        assert ids_of(ledger) == ["fact-000001"]
        ledger.commit([written("acme", 2, make_fact(2, draw))], 3.0)
        assert ids_of(ledger) == ["fact-000001", "fact-000002"]


# -- what forgetting leaves -------------------------------------------------------------------------------------


def on_disk(server: PostgresServer, needle: bytes) -> list[str]:
    """Data files (tables and indexes, the write-ahead log left out) that hold the bytes."""
    server.sql("CHECKPOINT")
    files = (file for file in (server.folder / "data" / "base").rglob("*") if file.is_file())
    return [file.name for file in files if needle in file.read_bytes()]


def test_destroyed_keys_leave_the_data_files(url: str, server: PostgresServer):
    """A destroyed key's wrapped bytes are in no table file any more after `scrub`; its neighbour's are."""
    with open_vault_postgres(url, [ROOT_KEY]) as vault:
        vault.create_tenant("a" * 32)
        ((gone, kept),) = vault.issue([("a" * 32, 2)])
        stored = server.sql(f"SELECT id, wrapped FROM {parse(url).keys.schema}.data_key")
        wrapped = {key_id: bytes(value) for key_id, value in stored}
        assert on_disk(server, wrapped[gone.id])
        assert vault.destroy("a" * 32, [gone.id]) == 1
        assert on_disk(server, wrapped[gone.id])  # PostgreSQL does not overwrite: this is why there is a scrub
        vault.scrub()
        assert not on_disk(server, wrapped[gone.id])
        assert on_disk(server, wrapped[kept.id])
        assert vault.data_keys("a" * 32, [gone.id, kept.id]) == {kept.id: kept.key}


def test_forgotten_rows_are_vacuumed(url: str, server: PostgresServer, draw: np.random.Generator):
    """After `scrub` the tables hold no dead row, beside an open ledger that goes on."""
    schema = parse(url).schema
    server.sql("CREATE EXTENSION IF NOT EXISTS pgstattuple")

    def dead() -> int:
        tables = f"relnamespace = '{schema}'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'"
        query = f"SELECT sum((pgstattuple(oid)).dead_tuple_count)::int FROM pg_class WHERE {tables}"
        return int(str(server.sql(query)[0][0]))

    with open_ledger(url) as ledger:
        facts = [make_fact(seq, draw) for seq in range(1, 31)]
        ledger.commit([created("acme"), written("acme", 1, *facts)], 1.0)
        ended = tuple(fact.fact_id for fact in facts[:20])
        ledger.commit([LedgerEntry(FactsForgotten("acme", 2, ended), None, b"")], 2.0)
        assert dead() >= 20
        ledger.scrub()
        assert dead() == 0
        assert [plain(fact) for fact in ledger.facts("acme")] == [plain(fact) for fact in facts[20:]]
