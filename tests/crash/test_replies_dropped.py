"""Writes sent again and again because their replies were dropped; the release runs 100,000."""

from __future__ import annotations

CAMPAIGN = "replies_dropped"


def test_a_write_sent_one_to_five_times_has_one_effect(campaign):
    """All answers to one request are the same, and the store holds its effect once, across restarts too."""
    result = campaign()

    assert result["passed"], result
    assert result["writes"] == result["count"]
    assert result["sends"] > 2 * result["count"]
    assert result["restarts"] > 0
    assert result["more_or_less_than_one_effect"] == 0
