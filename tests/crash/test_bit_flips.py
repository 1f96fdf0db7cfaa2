"""Single flipped bits in copies of a store's files; the release runs 10,000."""

from __future__ import annotations

from jobs.campaign_flips import flip

CAMPAIGN = "bit_flips"


def test_no_flipped_bit_is_silently_wrong(campaign):
    """Everything read after a flip is what was written, or the damage is reported as such."""
    result = campaign()

    assert result["passed"], result
    assert result["silently_wrong"] == 0
    assert result["detected"] + result["same_content"] == result["count"]
    for kind in ("ledger", "vault", "root_key", "checkpoint", "manifest"):
        assert result[f"detected_in_{kind}"] > 0, result


def test_a_flip_changes_one_bit(tmp_path):
    """The fault itself: one bit, and twice is none."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4))

    flip(path, 13)
    assert path.read_bytes() == b"\0\x20\0\0"
    flip(path, 13)
    assert path.read_bytes() == bytes(4)
