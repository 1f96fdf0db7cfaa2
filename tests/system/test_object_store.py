"""What a memory actor is told and answers never lies in Ray's object store, whose memory outlives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ray_environment import make_temp_dir, plan_ray
from cluster.reaper import reap
from cluster.settings import settings_from

# Sends 3.6 MB to an actor and gets them back, then reads every byte of the store's shared memory.
SCRIPT = """
import json, os, sys
from pathlib import Path
import ray

sent, answered = (bytes(byte ^ 0x5A for byte in b"needle-%d-" % number) for number in (1, 2))

@ray.remote
class Echo:
    async def take(self, argument, needle):
        return bytes(byte ^ 0x5A for byte in needle) * 400_000

ray.init(**json.loads(sys.argv[1]))
back = ray.get(Echo.remote().take.remote(bytes(byte ^ 0x5A for byte in sent) * 400_000, answered))
assert len(back) == len(answered) * 400_000
found = {"sent": 0, "answered": 0, "stores": 0}
for process in Path("/proc").iterdir():
    if not process.name.isdigit():
        continue
    try:
        descriptors = [(fd, os.readlink(fd)) for fd in (process / "fd").iterdir()]
        ours = f"--temp_dir={os.environ['STORE_OF']}" in (process / "cmdline").read_bytes().decode().split("\\0")
    except OSError:
        continue
    for fd, target in descriptors:
        if ours and "/plasma" in target:
            whole = fd.read_bytes()
            found["stores"] += 1
            for name, needle in (("sent", sent), ("answered", answered)):
                found[name] += whole.count(bytes(byte ^ 0x5A for byte in needle))
print(json.dumps(found))
"""


def needles(limits: bool) -> dict[str, int]:
    """How often the argument and the reply of one call are found in the object store, with our limits or Ray's own."""
    temp_dir = make_temp_dir()
    try:
        settings = settings_from({"state_dir": str(temp_dir), "ray.haproxy": False, "ray.object_store_mb": 80}, "test")
        plan = plan_ray(settings, temp_dir / "token", temp_dir)
        variables = {
            name: value
            for name, value in plan.variables.items()
            if limits or name not in ("RAY_max_direct_call_object_size", "RAY_task_rpc_inlined_bytes_limit")
        }
        (temp_dir / "token").write_text("ab" * 32)
        environment = {**os.environ, **variables, "STORE_OF": plan.init_arguments["_temp_dir"]}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(plan.init_arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found
    finally:
        reap(Path(temp_dir))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the store's memory through /proc")
def test_calls_of_megabytes_leave_nothing_in_the_object_store():
    """With our limits neither argument nor reply is found in its memory; with Ray's own limits both are."""
    ours = needles(limits=True)
    assert (ours["sent"], ours["answered"]) == (0, 0)
    rays = needles(limits=False)
    assert ours["stores"] == rays["stores"] > 0
    assert rays["sent"] > 0
    assert rays["answered"] > 0
