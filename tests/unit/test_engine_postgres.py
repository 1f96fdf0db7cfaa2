# ruff: noqa: S608 - names in statements are the tests' own
"""The engine over PostgreSQL: an erasure to its receipt, a lost session, a successor on another node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.campaign_load import TIMEOUT_S, Request, create_tenants
from jobs.campaign_store import LOCAL, PlannedFact, opened
from memory_actor.errors import Fenced, LedgerFailed
from memory_actor.postgres import location_of, parse
from memory_actor.types import ErasureState
from tests.postgres_server import PostgresServer, shared_server


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh_url()


def write(number: int) -> Request:
    return Request(number, "ant", (PlannedFact(number, number),))


def test_an_erasure_ends_in_a_receipt_that_names_what_postgresql_keeps(
    server: PostgresServer, url: str, tmp_path: Path
):
    """The key of the forgotten fact is in no table file, its row is gone, and the receipt admits the server's log."""
    keys = parse(location_of(url, 0)).keys.schema
    with opened(tmp_path, url=url, erase_window_s=3600.0) as store:
        create_tenants(store, ["ant"])
        gone, *kept = (write(number).submit(store).result(TIMEOUT_S).fact_ids[0] for number in range(1, 21))
        store.engine.checkpoint("ant", LOCAL)
        server.sql("ANALYZE")  # as the server does by itself, sooner or later: it samples values
        server.sql(f"ANALYZE {keys}.data_key")
        wrapped = {bytes(one) for (one,) in server.sql(f"SELECT wrapped FROM {keys}.data_key")}
        receipt = Request(99, "ant", fact_ids=(gone,)).submit(store).result(TIMEOUT_S)
        assert store.engine.erase_now() == 1
        status = store.engine.erasure(receipt.receipt_id)
        assert [fact.fact_id for fact in store.ledger.facts("ant")] == kept
        assert store.engine.verify("ant").identical
    assert status.state is ErasureState.DONE
    remaining = " ".join(json.loads(status.receipt)["receipt"]["remaining"])
    assert "write-ahead log" in remaining
    assert "backups" in remaining
    live = {bytes(one) for (one,) in server.sql(f"SELECT wrapped FROM {keys}.data_key")}
    destroyed = wrapped - live
    assert destroyed
    server.sql("CHECKPOINT")
    for file in (server.folder / "data" / "base").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(key in content for key in destroyed), file.name


def test_a_lost_session_stops_the_engine(server: PostgresServer, url: str, tmp_path: Path):
    """The watchdog's look and the next write fail, the process is told to end; the next one has everything."""
    schema = parse(location_of(url, 0)).schema
    with opened(tmp_path, url=url) as store:
        create_tenants(store, ["ant"])
        written = write(1).submit(store).result(TIMEOUT_S).fact_ids
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'larimar {schema}'"
        assert server.sql(query) == [(True,)]
        with pytest.raises(LedgerFailed, match="connection"):
            store.engine.superseded()
        with pytest.raises(LedgerFailed) as caught:
            write(2).submit(store).result(TIMEOUT_S)
        assert caught.value.outcome == "unknown"
        assert len(store.poisoned) == 1
    with opened(tmp_path, url=url) as store:
        assert [fact.fact_id for fact in store.ledger.facts("ant")] == list(written)
        write(2).submit(store).result(TIMEOUT_S)
        assert store.engine.verify("ant").identical


def test_a_successor_on_another_node_serves_the_same_memory(url: str, tmp_path: Path):
    """With the root key and the URL alone another folder takes over; the one before notices, and stores no more."""
    node_a, node_b = tmp_path / "a", tmp_path / "b"
    with opened(node_a, url=url) as old:
        create_tenants(old, ["ant"])
        write(1).submit(old).result(TIMEOUT_S)
        before = old.engine.summary("ant").state_hash
        assert old.engine.superseded() is None
        (node_b / "keys").mkdir(mode=0o700, parents=True)
        for name in ("root.key", "signing.key"):
            target = node_b / "keys" / name
            target.write_bytes((node_a / "keys" / name).read_bytes())
            target.chmod(0o400)
        with opened(node_b, url=url) as new:
            assert new.engine.summary("ant").state_hash == before
            assert "epoch 2" in (old.engine.superseded() or "")
            with pytest.raises(Fenced):
                write(2).submit(old).result(TIMEOUT_S)
            write(3).submit(new).result(TIMEOUT_S)
            assert new.engine.verify("ant").identical
            assert len(new.ledger.facts("ant")) == 2
