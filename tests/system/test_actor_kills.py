"""The memory actor of a real system killed -9 under HTTP write load; the release kills 500 times."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.campaign import CAMPAIGNS
from jobs.campaign_ray import actor_kills
from jobs.own_system import SystemHandle

COUNT = int(os.environ.get("LARIMAR_TEST_ACTOR_KILLS", CAMPAIGNS["actor_kills"].ci))


def test_actor_kills_under_load_lose_nothing(system):
    """Every acknowledged write is there once after all kills, and each recovery took seconds."""
    recorded = system.record()
    handle = SystemHandle(system.url, system.admin_key, system.state_dir, Path(recorded.temp_dir), recorded.pid)

    outcome = actor_kills(COUNT, 1, lambda steps: None, system=handle)

    print(outcome.report())
    assert outcome.passed, outcome.report()
    assert outcome.counts["kills"] == COUNT
    assert outcome.counts["acknowledged"] > 2 * COUNT
