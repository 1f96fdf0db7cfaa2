"""Facts forgotten in a real system, then every byte searched for them; the release forgets 1,000."""

from __future__ import annotations

import os
from pathlib import Path

from jobs.campaign import CAMPAIGNS
from jobs.campaign_erase import erase_scan
from jobs.own_system import SystemHandle

COUNT = int(os.environ.get("LARIMAR_TEST_ERASE_SCAN", CAMPAIGNS["erase_scan"].ci))


def test_nothing_of_a_forgotten_fact_is_left(system):
    """After the receipts: no text, tag, key, address, latent, ciphertext, data key in files, logs, object store."""
    recorded = system.record()
    handle = SystemHandle(system.url, system.admin_key, system.state_dir, Path(recorded.temp_dir), recorded.pid)

    outcome = erase_scan(COUNT, 1, lambda steps: None, system=handle)

    assert outcome.passed, outcome.report()
    assert outcome.counts["hits"] == 0
    assert outcome.counts["receipts"] == 3  # of two forgets and of the deletion
    assert outcome.counts["controls_found"] >= 3 * COUNT
