"""A process that issues, destroys and rotates keys is killed at random moments; its vault keeps its word."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from memory_actor.key_folder import KeyFolder
from memory_actor.vault import Vault

KILLS = int(os.environ.get("LARIMAR_TEST_KILLS", "30"))
UID = "a" * 32
GROUP = 8


def work_for_ever(folder: Path) -> None:
    """The victim. Says `got ID HEX` and `gone ID` on stdout, after each became durable; rotates now and then."""
    keys = KeyFolder(folder)
    keys.ensure(may_create=True)
    with Vault.open_sqlite(folder / "vault-00.sqlite", keys.root_keys()) as vault:
        vault.create_tenant(UID)
        for turn in itertools.count():
            issued = vault.issue([(UID, GROUP)])[0]
            _say(f"got {one.id} {one.key.hex()}" for one in issued)
            ended = issued[:: 1 + turn % 3]
            _say(f"going {one.id}" for one in ended)
            vault.destroy(UID, [one.id for one in ended])
            _say(f"gone {one.id}" for one in ended)
            if turn % 5 == 4:
                vault.scrub()
            if turn % 7 == 6:
                vault.rotate_tenant(UID)
            if turn % 11 == 10:
                vault.rotate_root(keys.begin_rotation())
                keys.finish_rotation()


def _say(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def run_and_kill(folder: Path, lines: int) -> list[str]:
    """Run a victim until it has said that many lines, kill it; returns all it said, whole lines only."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, __file__, str(folder)]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment, text=True) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            said.append(line)
            if len(said) == lines:
                victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL, "the victim ended by itself"
    return [line.rstrip("\n") for line in said if line.endswith("\n")]


def test_kills_lose_no_key_and_bring_none_back(tmp_path: Path):
    """After every kill: each key that was acknowledged is there unless its end was begun; none that is gone returns.

    Numbers ascend over all incarnations, and one or two root keys open the vault at any time.
    """
    draw = random.Random(20260105)
    folder = tmp_path / "keys"
    got: dict[int, bytes] = {}
    going: set[int] = set()
    gone: set[int] = set()
    for _ in range(KILLS):
        for line in run_and_kill(folder, draw.randrange(1, 400)):
            word, number, *key = line.split()
            if word == "got":
                assert int(number) > max(got, default=0)
                got[int(number)] = bytes.fromhex(key[0])
            else:
                (going if word == "going" else gone).add(int(number))
        keys = KeyFolder(folder)
        keys.ensure(may_create=False)
        with Vault.open_sqlite(folder / "vault-00.sqlite", keys.root_keys()) as vault:
            found = vault.data_keys(UID, list(got))
        assert found.items() <= got.items()
        assert not found.keys() & gone
        assert got.keys() - going <= found.keys()
    assert len(gone) > KILLS


if __name__ == "__main__":
    work_for_ever(Path(sys.argv[1]))
