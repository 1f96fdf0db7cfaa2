"""The engine killed at random microseconds of its life under write load; the release runs 10,000."""

from __future__ import annotations

import os

from jobs.campaign import CAMPAIGNS
from jobs.campaign_kills import kills

COUNT = int(os.environ.get("LARIMAR_TEST_KILLS", CAMPAIGNS["kills"].ci))


def test_kill_minus_nine_at_any_moment_loses_and_repeats_nothing():
    """After each kill: acknowledged changes are there once, unheard ones whole or not at all, as their keys tell."""
    outcome = kills(COUNT, 1, lambda steps: None)

    assert outcome.passed, outcome.report()
    assert (outcome.counts["lost"], outcome.counts["duplicates"]) == (0, 0)
    # The kills came at all times: while opening, and under load with requests under way that made it and that did not.
    assert outcome.counts["killed_opening"] > COUNT / 10
    assert outcome.counts["acknowledged"] > COUNT
    assert outcome.counts["in_flight_absent"] > 0
    assert outcome.counts["in_flight_applied"] > 0
