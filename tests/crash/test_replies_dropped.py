"""Writes sent again and again because their replies were dropped; the release runs 100,000."""

from __future__ import annotations

import os

from jobs.campaign import CAMPAIGNS
from jobs.campaign_replies import replies_dropped

COUNT = int(os.environ.get("LARIMAR_TEST_REPLIES", CAMPAIGNS["replies_dropped"].ci))


def test_a_write_sent_one_to_five_times_has_one_effect():
    """All answers to one request are the same, and the store holds its effect once, across restarts too."""
    outcome = replies_dropped(COUNT, 1, lambda steps: None)

    assert outcome.passed, outcome.report()
    assert outcome.counts["writes"] == COUNT
    assert outcome.counts["sends"] > 2 * COUNT
    assert outcome.counts["restarts"] > 0
    assert outcome.counts["more_or_less_than_one_effect"] == 0
