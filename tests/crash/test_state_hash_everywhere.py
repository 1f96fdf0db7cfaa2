"""One content has one hash, however it came about, on both engines; the release tells 200 histories."""

from __future__ import annotations

import os

from jobs.campaign import CAMPAIGNS
from jobs.campaign_states import state_hash
from tests.postgres_server import shared_server

COUNT = int(os.environ.get("LARIMAR_TEST_HISTORIES", CAMPAIGNS["state_hash"].ci))


def test_the_state_hash_is_the_same_by_every_way():
    """live = replayed = woken = restored = merged from parts = other thread counts, on SQLite and on PostgreSQL."""
    outcome = state_hash(COUNT, 1, lambda steps: None, ledger_url=shared_server().ledger_url())

    assert outcome.passed, outcome.report()
    assert outcome.counts["different"] == 0
    assert outcome.counts["hashes"] >= 20 * COUNT
