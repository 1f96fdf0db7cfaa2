"""The README's commands do what the README says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def _commands() -> list[list[str]]:
    """The `larimar` commands of the README's first code blocks; `up` and `down` are the fixture's."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks[:3] for line in block.splitlines() if line.startswith("larimar ")]
    return [words for line in lines if (words := shlex.split(line)[1:])[0] not in ("up", "down")]


def test_the_commands_do_what_they_say(system):
    """As they stand: known with the memory on, not with it off, forgotten after forget, and verified."""
    commands = _commands()
    assert [words[0] for words in commands] == ["tenant", "write", "query", "query", "forget", "verify"]

    said = []
    for words in commands:
        done = system.larimar(*words)
        assert done.returncode == 0, f"larimar {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)

    assert "blue flower pot" in said[2]
    assert "blue flower pot" not in said[3]
    assert "identical" in said[5].lower()
    assert "blue flower pot" not in system.larimar(*commands[2]).stdout
    assert system.larimar("tenant", "delete", "acme", "--yes").returncode == 0
