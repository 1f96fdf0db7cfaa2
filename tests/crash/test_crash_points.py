"""Every named crash point met by a kill, by EIO, by ENOSPC and by a duplicate call; the release runs all 20 times."""

from __future__ import annotations

from jobs.campaign_points import FAULTS
from memory_actor.crash_points import CRASH_POINTS

CAMPAIGN = "crash_points"


def test_every_crash_point_recovers_without_a_manual_step(campaign):
    """Each point is reached; afterwards the store opens, the scenario ends as it must, erasures end in receipts."""
    result = campaign()

    assert result["passed"], result
    assert result["cells"] == result["count"] * len(CRASH_POINTS) * len(FAULTS)
    assert result["failed"] == 0
    assert result["receipts"] > result["cells"]
