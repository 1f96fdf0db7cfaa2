"""What is particular to vaults on PostgreSQL: several incarnations at once, and what is left in the server's files."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from memory_actor.errors import LedgerFailed
from memory_actor.ledger_postgres import open_vault_postgres
from memory_actor.vault import Vault
from memory_actor.vault_schema import WRAPPED_BYTES
from tests.postgres_server import PostgresServer, shared_server

ROOT = bytes(range(32))
ACME = "a" * 32
WINDOW = 12


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh_url()


def issue(vault: Vault, count: int) -> dict[int, bytes]:
    return {one.id: one.key for one in vault.issue([(ACME, count)])[0]}


def test_a_stale_incarnation_only_adds_orphans(url: str):
    """Two incarnations draw different numbers, and neither replaces what the other stored."""
    with open_vault_postgres(url, [ROOT]) as old, open_vault_postgres(url, [ROOT]) as new:
        old.create_tenant(ACME)
        new.create_tenant(ACME)
        keys = [issue(vault, 10) for vault in (old, new, old, new)]
        together = {key_id: key for some in keys for key_id, key in some.items()}
        assert len(together) == 40
        for vault in (old, new):
            assert vault.data_keys(ACME, list(together)) == together


def test_incarnations_that_start_at_once_share_one_vault(url: str):
    """Eight openings of a vault that does not exist yet make one, and one key of the tenant."""
    found: list[tuple[str, dict[int, bytes]]] = []

    def begin() -> None:
        with open_vault_postgres(url, [ROOT]) as vault:
            vault.create_tenant(ACME)
            found.append((vault.identity, issue(vault, 1)))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = {key_id: key for _, keys in found for key_id, key in keys.items()}
    with open_vault_postgres(url, [ROOT]) as vault:
        assert {identity for identity, _ in found} == {vault.identity}
        assert vault.data_keys(ACME, list(together)) == together
        assert len(together) == 8


@pytest.mark.parametrize("what", ["root", "tenant"])
def test_no_key_is_wrapped_under_one_that_was_replaced(url: str, what: str):
    """An incarnation that runs while another process rotates is stopped at its next key, before it is stored."""
    other_root = bytes(32)
    with open_vault_postgres(url, [ROOT]) as running:
        running.create_tenant(ACME)
        keys = issue(running, 3)
        with open_vault_postgres(url, [ROOT]) as rotating:
            if what == "root":
                rotating.rotate_root(other_root)
            else:
                rotating.rotate_tenant(ACME)
        with pytest.raises(LedgerFailed, match="rotated"):
            issue(running, 1)
        with pytest.raises(LedgerFailed, match="rotated"):
            running.create_tenant("b" * 32)
    with open_vault_postgres(url, [other_root, ROOT]) as vault:
        assert vault.data_keys(ACME, list(keys)) == keys
        assert vault.counts() == {"tenants": 1, "keys": 3}


def heap_files(server: PostgresServer, schema: str) -> dict[str, bytes]:
    """The content of the files of the schema's tables and indexes."""
    rows = server.sql(
        "SELECT c.relname, pg_relation_filepath(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "  # noqa: S608 - ours
        f"WHERE n.nspname = '{schema}' AND c.relkind IN ('r', 'i', 'S')"
    )
    data = server.folder / "data"
    return {str(name): (data / str(path)).read_bytes() for name, path in rows}


def remainders(contents: Iterable[bytes], secrets: Iterable[bytes]) -> int:
    pieces = {one[start : start + WINDOW] for one in secrets for start in range(0, WRAPPED_BYTES - WINDOW + 1, WINDOW)}
    return sum(content[at : at + WINDOW] in pieces for content in contents for at in range(len(content) - WINDOW + 1))


def test_destroyed_keys_leave_no_byte_in_the_tables(server: PostgresServer, url: str):
    """After a scrub: neither in the tables' files nor, from before it, in files the server has let go.

    Its write-ahead log is out of our reach, which the receipts of such a system say.
    """
    with open_vault_postgres(url, [ROOT]) as vault:
        vault.create_tenant(ACME)
        ids = list(issue(vault, 2000))
        prefix = vault._text.prefix
        schema = prefix.strip('".')
        with vault._connection.begin():
            rows = dict(vault._connection.exec_driver_sql(f"SELECT id, wrapped FROM {prefix}data_key").all())  # noqa: S608 - ours
        server.sql("CHECKPOINT")
        assert remainders(heap_files(server, schema).values(), rows.values()) >= len(rows)
        old_files = [
            server.folder / "data" / str(path)
            for (path,) in server.sql(f"SELECT pg_relation_filepath('{schema}.data_key')")
        ]
        gone = ids[::3]
        vault.destroy(ACME, gone)
        vault.rotate_tenant(ACME)
        vault.scrub()
        server.sql("CHECKPOINT")
        assert remainders(heap_files(server, schema).values(), rows.values()) == 0
        assert all(_length(file) == 0 for file in old_files)


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
