"""Placement of tenants on memory actors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from memory_actor.directory import actor_name, actor_of, check_actor_count, ledger_path, virtual_shard
from memory_actor.errors import StateFolderUnusable


def test_placement_never_changes():
    """Known tenants stay on their virtual shards for ever: a release that moves them would lose them."""
    assert [virtual_shard(name) for name in ("acme", "globex", "", "Zürich")] == [560, 1000, 740, 112]


def test_tenants_spread_evenly():
    """10,000 tenants over 16 actors: each gets its share within 20 % (a binomial's 5 sigma)."""
    load = Counter(actor_of(virtual_shard(f"tenant-{i}"), 16) for i in range(10_000))
    assert set(load) == set(range(16))
    assert all(abs(count - 625) < 125 for count in load.values())


@pytest.mark.parametrize("actors", [1, 2, 3, 7, 16, 1000, 1024])
def test_every_actor_owns_its_share_of_shards(actors: int):
    """Shares of the 1,024 virtual shards differ by at most one."""
    shares = Counter(actor_of(shard, actors) for shard in range(1024))
    assert len(shares) == actors
    assert max(shares.values()) - min(shares.values()) <= 1


def test_impossible_placements_are_refused():
    """No actors, or a negative shard, is an error and not a surprising index."""
    with pytest.raises(ValueError, match="no actor"):
        actor_of(3, 0)
    with pytest.raises(ValueError, match="no actor"):
        actor_of(-1, 4)


def test_names():
    """Names sort like indexes, and a ledger's file carries its actor's number."""
    assert actor_name(0) == "larimar-memory-00"
    assert ledger_path(Path("/s"), 7) == Path("/s/ledger/memory-07.sqlite")


def test_actor_count_binds_once_a_ledger_exists(tmp_path: Path):
    """Before the first ledger the number may change; afterwards another number is refused, naming the right one."""
    check_actor_count(tmp_path, 2)
    check_actor_count(tmp_path, 3)
    ledger_path(tmp_path, 0).touch()  # a first start that was interrupted after one of three ledgers
    check_actor_count(tmp_path, 3)
    for wrong in (1, 2, 4):
        with pytest.raises(StateFolderUnusable, match=r"Set memory\.actors to 3"):
            check_actor_count(tmp_path, wrong)
    check_actor_count(tmp_path, 3)


def test_actor_count_without_note_follows_the_files(tmp_path: Path):
    """Where the note was removed, the ledger files are counted; other files are not."""
    check_actor_count(tmp_path, 2)
    for index in (0, 1):
        ledger_path(tmp_path, index).touch()
    (tmp_path / "ledger" / "memory-00.sqlite-wal").touch()
    (tmp_path / "ledger" / "actors").unlink()
    check_actor_count(tmp_path, 2)
    with pytest.raises(StateFolderUnusable):
        check_actor_count(tmp_path, 3)


def test_actor_count_counts_what_is_on_a_server(tmp_path: Path):
    """With ledgers on a database server their number binds, also on a node that has no note; files do not count."""
    check_actor_count(tmp_path, 2, on_server=0)
    check_actor_count(tmp_path, 2, on_server=2)
    with pytest.raises(StateFolderUnusable, match=r"Set memory\.actors to 2"):
        check_actor_count(tmp_path, 3, on_server=2)
    (tmp_path / "ledger" / "actors").unlink()
    ledger_path(tmp_path, 0).touch()
    check_actor_count(tmp_path, 2, on_server=2)
    with pytest.raises(StateFolderUnusable):
        check_actor_count(tmp_path, 1, on_server=2)


def test_unusable_folder_is_named(tmp_path: Path):
    """A file in the place of the ledger folder is reported as an unusable state folder."""
    (tmp_path / "ledger").write_text("not a folder")
    with pytest.raises(StateFolderUnusable, match="ledger folder"):
        check_actor_count(tmp_path, 1)
