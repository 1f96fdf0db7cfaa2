"""The byte search of the erase scan finds what is there: the campaign's zero means nothing if it does not."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from jobs.campaign_search import ByteSearch

SHARED = Path(f"/dev/shm/larimar-search-test-{os.getpid()}")  # noqa: S108 - removed at once


def needles(draw: random.Random, count: int) -> dict[str, bytes]:
    return {f"needle {number}": draw.randbytes(draw.randint(15, 70)) for number in range(count)}


@pytest.mark.parametrize("seed", range(5))
def test_every_planted_needle_is_found_where_it_is(tmp_path, seed):
    """Hundreds of needles at random offsets, first and last byte included, and nothing else."""
    draw = random.Random(seed)
    planted = needles(draw, 300)
    content, expected = bytearray(), set()
    for name, needle in planted.items():
        content += draw.randbytes(draw.randint(0, 40) if content else 0)
        expected.add((name, len(content)))
        content += needle
    (tmp_path / "file").write_bytes(content)

    search = ByteSearch(planted)
    assert {(hit.needle, hit.offset) for hit in search.folder(tmp_path)} == expected
    assert search.bytes_searched == len(content)
    assert list(ByteSearch(needles(random.Random(99), 300)).folder(tmp_path)) == []


def test_a_needle_across_two_reads_and_behind_a_hole_is_found_once(tmp_path):
    """Neither the border between two reads nor a hole in a file hides a needle or shows it twice."""
    needle = random.Random(1).randbytes(40)
    path = tmp_path / "sparse"
    places = [(1 << 24) - 13, (1 << 25) + 5, (1 << 27) + 3]
    with path.open("wb") as file:
        for place in places:
            file.seek(place)
            file.write(needle)

    hits = list(ByteSearch({"it": needle}).folder(tmp_path))
    assert [hit.offset for hit in hits] == places


def test_names_of_files_are_searched(tmp_path):
    """A text that became a file's name is found."""
    (tmp_path / "what opens vault 7").write_bytes(b"")
    assert [hit.needle for hit in ByteSearch({"text": b"what opens vault 7"}).folder(tmp_path)] == ["text"]


def test_deleted_memory_of_a_process_is_searched():
    """A file in memory that a process holds and no folder shows, as Ray's object store is, is searched."""
    needle = random.Random(2).randbytes(32)
    with SHARED.open("w+b") as file:
        SHARED.unlink()
        file.write(bytes(100_000) + needle)
        file.flush()
        hits = list(ByteSearch({"it": needle}).shared_memory([os.getpid()]))
    assert [(hit.needle, hit.offset) for hit in hits] == [("it", 100_000)]


@pytest.mark.parametrize("needle", [b"short", bytes(20), b"\xff" * 9 + b"x" * 20])
def test_a_needle_that_would_match_anywhere_is_refused(needle):
    """Needles too short or too common to be looked up are an error, not a search that finds nothing."""
    with pytest.raises(ValueError, match="needle 'it'"):
        ByteSearch({"it": needle})
