"""The way to a PostgreSQL server, and what the server must keep before the ledger trusts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_actor.errors import LedgerServerUnusable, SettingsInvalid
from memory_actor.ledger_postgres import check_postgres, open_vault_postgres
from memory_actor.postgres import PASSWORD_VARIABLE, connect, location_of, parse
from tests.ledger_samples import CONFIG, ROOT_KEY
from tests.postgres_ledgers import opened, wait_for
from tests.postgres_server import PASSWORD, PASSWORD_ROLE, ROLE, PostgresServer, shared_server, start_server


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


# -- the way in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:s3cret@db/larimar",
        "postgresql+psycopg://me:s3cret@db:5432/larimar?sslmode=require",
        "postgresql://me@db/larimar?password=s3cret",
        "postgresql://db/larimar?sslpassword=s3cret",
        "postgresql://me:s3cret@[::1/larimar",
        "postgresql://me:s3cret%zz@db/larimar",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(text: str):
    """Settings must not hold secrets: wherever it stands in the URL, the refusal does not quote it."""
    with pytest.raises(SettingsInvalid, match=r"ledger\.url") as caught:
        parse(text)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mysql://db/larimar", "not supported"),
        ("postgresql+asyncpg://db/larimar", "not supported"),
        ("postgresql://db", "names no database"),
        ("postgresql://db/larimar?schema=Bad-Name", "must match"),
        ("postgresql://db/larimar?schema=x;drop", "must match"),
        ("postgresql://db/larimar?no_such_option=1", "cannot read it"),
    ],
)
def test_a_url_that_cannot_work_is_refused(text: str, problem: str):
    """Other databases, no database, impossible schema names and unknown options are refused before any connection."""
    with pytest.raises(SettingsInvalid, match=problem):
        parse(text)


def test_each_memory_actor_has_a_schema_of_its_own():
    """`larimar_NN`, or another prefix so that several systems can share a database; keys are beside it."""
    assert parse(location_of("postgresql://me@db/larimar?sslmode=require", 7)).schema == "larimar_07"
    assert parse(location_of("postgresql+psycopg://db/larimar?schema=staging", 0)).schema == "staging_00"
    one, two = (parse(location_of("postgresql://db/larimar", index)) for index in (0, 1))
    assert one.keys.schema == "larimar_00_keys"
    assert len({one.lock_number, two.lock_number, one.keys.lock_number}) == 3
    assert parse("postgresql://me@db:5433/larimar?schema=x_00").options == {
        "user": "me",
        "host": "db",
        "port": "5433",
        "dbname": "larimar",
    }


def test_the_password_comes_from_the_environment(server: PostgresServer, monkeypatch: pytest.MonkeyPatch):
    """Without it the refusal names the variable; with it the ledger opens; no message and no repr shows it."""
    text = f"{server.ledger_url(PASSWORD_ROLE)}&schema=with_password"
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with pytest.raises(LedgerServerUnusable, match=PASSWORD_VARIABLE):
        connect(parse(text), wait_s=30)
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong " + PASSWORD)
    with pytest.raises(LedgerServerUnusable) as caught:
        connect(parse(text), wait_s=30)
    assert PASSWORD not in str(caught.value) + repr(caught.value.__cause__)
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with opened(text) as ledger:
        assert PASSWORD not in repr(ledger)
        assert ledger.epoch == 1


def test_a_server_that_is_not_there_is_named_within_the_time_given(tmp_path: Path):
    """No server: an error that says where we looked and what to do, after the wait and not before."""
    begun = time.monotonic()
    with pytest.raises(LedgerServerUnusable, match="See that the server runs"):
        connect(parse(f"postgresql://me@/larimar?host={tmp_path}"), wait_s=0.5)
    assert 0.5 <= time.monotonic() - begun < 20


# -- what the server must keep ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spare() -> Iterator[PostgresServer]:
    """A server that tests may misconfigure and stop."""
    other = start_server()
    yield other
    other.remove()


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_does_not_flush_is_refused(spare: PostgresServer, name: str):
    """Opening and the check before the start refuse it, name the setting, and create nothing."""
    where = spare.fresh_url()
    spare.sql(f"ALTER SYSTEM SET {name} = off", "SELECT pg_reload_conf()")
    wait_for(lambda: spare.sql(f"SHOW {name}") == [("off",)])
    try:
        for refuse in (lambda: check_postgres(where, CONFIG), lambda: open_vault_postgres(where, [ROOT_KEY])):
            with pytest.raises(LedgerServerUnusable, match=f"{name} is off"):
                refuse()
    finally:
        spare.sql(f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")
    wait_for(lambda: spare.sql(f"SHOW {name}") == [("on",)])
    assert spare.sql("SELECT nspname FROM pg_namespace WHERE nspname ~ '^t[0-9]'") == []


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("synchronous_commit = off", "synchronous_commit is off"),
        ("default_transaction_read_only = on", "read-only"),
        ("zero_damaged_pages = on", "zero_damaged_pages is on"),
        ("session_replication_role = replica", "session_replication_role is replica"),
    ],
)
def test_a_role_that_weakens_the_promise_is_refused(spare: PostgresServer, setting: str, problem: str):
    """The same when only this role's sessions are set so."""
    spare.sql(f"ALTER ROLE {ROLE} SET {setting}")
    try:
        with pytest.raises(LedgerServerUnusable, match=problem):
            check_postgres(spare.fresh_url(), CONFIG, wait_s=0)
    finally:
        spare.sql(f"ALTER ROLE {ROLE} RESET ALL")


def test_a_database_that_is_not_utf8_is_refused(spare: PostgresServer):
    """Tenant names and tags are Unicode: LATIN1 could not hold them all."""
    spare.sql(f"CREATE DATABASE latin OWNER {ROLE} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with pytest.raises(LedgerServerUnusable, match="encoding is LATIN1"):
        check_postgres(spare.ledger_url(database="latin"), CONFIG)


def test_defaults_of_the_role_do_not_reach_the_session(spare: PostgresServer):
    """Whatever else the role is set to, the session has what the ledger rests on, and keeps it."""
    hostile = {
        "extra_float_digits": "-15",
        "statement_timeout": "1",
        "lock_timeout": "1",
        "default_transaction_isolation": "'serializable'",
        "search_path": "public",
        "bytea_output": "escape",
    }
    spare.sql(*(f"ALTER ROLE {ROLE} SET {name} = {value}" for name, value in hostile.items()))
    try:
        with opened(spare.fresh_url()) as ledger:
            spare.sql(f"ALTER ROLE {ROLE} SET synchronous_commit = off")
            with ledger.connection.begin():
                shown = {
                    name: ledger.connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                    for name in (*hostile, "transaction_isolation", "synchronous_commit")
                }
            assert ledger.connection.exec_driver_sql("SELECT 0.1::float8 + 0.2::float8").scalar_one() == 0.1 + 0.2
    finally:
        spare.sql(f"ALTER ROLE {ROLE} RESET ALL")
    assert shown["transaction_isolation"] == "read committed"
    assert (shown["statement_timeout"], shown["lock_timeout"], shown["extra_float_digits"]) == ("0", "0", "1")
    assert shown["search_path"] == f"{ledger.where.schema},pg_temp"
    assert shown["synchronous_commit"] == "on"


def test_a_starting_server_is_waited_for(spare: PostgresServer):
    """A server that comes up while a ledger is opened is used; nobody has to restart anything."""
    where = spare.fresh_url()
    with opened(where):
        pass
    spare.kill()
    epochs: list[int] = []

    def open_late() -> None:
        with opened(where) as ledger:
            epochs.append(ledger.epoch)

    opener = threading.Thread(target=open_late)
    opener.start()
    spare.start()
    opener.join(timeout=60)
    assert epochs == [2]
