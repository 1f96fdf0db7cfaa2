"""One content has one hash, however it came about, on both engines; the release tells 200 histories."""

from __future__ import annotations

CAMPAIGN = "state_hash"


def test_the_state_hash_is_the_same_by_every_way(campaign):
    """live = replayed = woken = restored = merged from parts = other thread counts, on SQLite and on PostgreSQL."""
    result = campaign()

    assert result["passed"], result
    assert result["different"] == 0
    assert result["hashes"] >= 20 * result["count"]  # by each way on both engines
