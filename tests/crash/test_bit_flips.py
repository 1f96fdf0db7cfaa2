"""Single flipped bits in copies of a store's files; the release runs 10,000."""

from __future__ import annotations

import os

from jobs.campaign import CAMPAIGNS
from jobs.campaign_flips import bit_flips, flip

COUNT = int(os.environ.get("LARIMAR_TEST_BIT_FLIPS", CAMPAIGNS["bit_flips"].ci))


def test_no_flipped_bit_is_silently_wrong():
    """Everything read after a flip is what was written, or the damage is reported as such."""
    outcome = bit_flips(COUNT, 1, lambda steps: None)

    assert outcome.passed, outcome.report()
    assert outcome.counts["silently_wrong"] == 0
    assert outcome.counts["detected"] + outcome.counts["same_content"] == COUNT
    for kind in ("ledger", "vault", "checkpoint", "manifest"):
        assert outcome.counts[f"detected_in_{kind}"] > 0, outcome.report()


def test_a_flip_changes_one_bit(tmp_path):
    """The fault itself: one bit, and twice is none."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4))

    flip(path, 13)
    assert path.read_bytes() == b"\0\x20\0\0"
    flip(path, 13)
    assert path.read_bytes() == bytes(4)
