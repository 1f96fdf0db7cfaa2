"""Every named crash point met by a kill, by EIO, by ENOSPC and by a duplicate call; the release runs all 20 times."""

from __future__ import annotations

import os

from jobs.campaign import CAMPAIGNS
from jobs.campaign_points import FAULTS, crash_points
from memory_actor.crash_points import CRASH_POINTS

COUNT = int(os.environ.get("LARIMAR_TEST_CRASH_POINTS", CAMPAIGNS["crash_points"].ci))


def test_every_crash_point_recovers_without_a_manual_step():
    """Each point is reached; afterwards the store opens, the scenario ends as it must, erasures end in receipts."""
    outcome = crash_points(COUNT, 1, lambda steps: None)

    assert outcome.passed, outcome.report()
    assert outcome.counts["cells"] == COUNT * len(CRASH_POINTS) * len(FAULTS)
