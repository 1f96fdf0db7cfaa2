"""What surrounds a running system: the checks before it, the state folder, Ray's environment, the reaper."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.preflight import preflight
from cluster.ray_environment import (
    OWN_PORTS,
    RayEnvironment,
    free_port,
    free_ports,
    make_temp_dir,
    plan_ray,
    port_is_free,
)
from cluster.reaper import MARK, marked, reap
from cluster.settings import settings_from
from cluster.state_folder import MARKER, RunningSystem, StateFolder
from memory_actor.errors import AlreadyRunning, ExposureRefused, ModelMissing, PortTaken, StateFolderUnusable


def settings(state_dir: Path, **more):
    return settings_from({"state_dir": str(state_dir), "http.port": free_port(), **more}, "test")


def recorded(**more) -> RunningSystem:
    process = psutil.Process()
    fields = {
        "pid": process.pid,
        "process_started_at": process.create_time(),
        "url": "http://127.0.0.1:1",
        "started_at": 1.0,
        "start_s": 2.0,
        "ray_address": "127.0.0.1:2",
        "temp_dir": "/nowhere",
    }
    return RunningSystem(**{**fields, **more})


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# -- preflight --------------------------------------------------------------------------------------------------


def test_fresh_folder_passes_and_is_not_created(tmp_path):
    """With the default models installed, a new folder passes, and the check leaves nothing behind."""
    preflight(settings(tmp_path / "new" / "state"))
    assert tree(tmp_path) == []


def test_file_in_place_of_the_folder(tmp_path):
    """A state folder that is a file is refused with the cure."""
    (tmp_path / "state").write_text("x")
    with pytest.raises(StateFolderUnusable, match=r"is a file, not a folder.*--state-dir"):
        preflight(settings(tmp_path / "state"))


def test_folder_that_cannot_be_written():
    """A folder in which nothing can be created is refused, with the system's reason."""
    with pytest.raises(StateFolderUnusable, match="cannot be written"):
        preflight(settings(Path("/proc/larimar-state")))


def test_foreign_content_is_not_touched(tmp_path):
    """A folder with somebody else's files is refused and stays as it was."""
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StateFolderUnusable, match=r"not ours \(holiday\.jpg\)"):
        preflight(settings(tmp_path))
    assert tree(tmp_path) == [str(tmp_path / "holiday.jpg")]


@pytest.mark.parametrize(("marker", "says"), [("{", "is damaged"), ('{"format": 99}', "has format 99")])
def test_folder_of_another_format(tmp_path, marker, says):
    """A damaged marker, or one of a later version, is refused."""
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(StateFolderUnusable, match=says):
        preflight(settings(tmp_path))


def test_port_of_another_program(tmp_path):
    """A port somebody else listens on is refused by number."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port} is in use by another program"):
            preflight(settings(tmp_path / "state", **{"http.port": port}))
    assert tree(tmp_path) == []


def test_port_of_our_own_system(tmp_path):
    """When the folder's own system runs, that is what is said, with its address."""
    folder = StateFolder(tmp_path)
    folder.prepare()
    folder.record(recorded(url="http://127.0.0.1:4711"))
    with pytest.raises(AlreadyRunning, match=r"already runs at http://127\.0\.0\.1:4711"):
        preflight(settings(tmp_path))


@pytest.mark.parametrize("source", ["package:no_such_package", "/nowhere/model"])
def test_missing_model(tmp_path, source):
    """A model that is not there is named before anything is created."""
    with pytest.raises(ModelMissing, match="decoder not found"):
        preflight(settings(tmp_path / "state", **{"bundle.decoder": source}))
    assert tree(tmp_path) == []


def test_other_machines_need_a_token(tmp_path, monkeypatch):
    """Listening beyond loopback is refused unless Ray's token authentication is asked for."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ExposureRefused, match="RAY_AUTH_MODE=token"):
        preflight(settings(tmp_path, **{"http.host": "192.0.2.1"}))


# -- state folder -----------------------------------------------------------------------------------------------


def test_one_supervisor_per_folder(tmp_path):
    """The lock is exclusive, and free again when its holder is gone."""
    folder = StateFolder(tmp_path)
    folder.prepare()
    with folder.lock(), pytest.raises(AlreadyRunning):
        folder.lock()
    folder.lock().close()


def test_prepared_folder_is_private_and_passes(tmp_path):
    """What `prepare` makes belongs to its owner alone and is recognised as ours."""
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    assert folder.path.stat().st_mode & 0o077 == 0
    (folder.path / "notes.txt").write_text("a file beside ours, in a folder that is marked, is no reason to refuse")
    folder.check()


@pytest.mark.parametrize(
    "changes", [{"pid": 2**22 - 1}, {"process_started_at": 1.0}], ids=["no such process", "number used again"]
)
def test_record_of_a_dead_system_is_not_believed(tmp_path, changes):
    """run.json of a killed supervisor does not count, even when another process has its number now."""
    folder = StateFolder(tmp_path)
    folder.prepare()
    folder.record(recorded(**changes))
    assert folder.recorded() is not None
    assert folder.running() is None


def test_damaged_record_is_no_record(tmp_path):
    """A run.json that cannot be read is as good as none."""
    folder = StateFolder(tmp_path)
    folder.prepare()
    (tmp_path / "run.json").write_text("{")
    assert folder.running() is None


def test_ray_token_is_made_once_and_private(tmp_path):
    """The token is 256 random bits in a file only the owner can read; later starts use the same."""
    folder = StateFolder(tmp_path)
    path = folder.ray_token()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text()) == 64
    assert folder.ray_token().read_text() == path.read_text()


# -- Ray's environment ------------------------------------------------------------------------------------------


def test_ray_asks_for_a_token_and_joins_nobody(tmp_path):
    """Token authentication is set, no cluster is joined, no statistics are sent."""
    plan = plan_ray(settings(tmp_path), tmp_path / "token", tmp_path)
    assert plan.variables["RAY_AUTH_MODE"] == "token"
    assert plan.variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert plan.init_arguments["address"] == "local"


def test_facts_never_enter_the_object_store(tmp_path):
    """The names are ones this Ray knows, the limits hold the largest request, and nothing is spilled to files.

    Ray takes any variable without a word, so the names are looked up in its binary.
    """
    ray = pytest.importorskip("ray")
    plan = plan_ray(settings(tmp_path), tmp_path / "token", tmp_path)
    names = ("max_direct_call_object_size", "task_rpc_inlined_bytes_limit", "automatic_object_spilling_enabled")
    binary = (Path(ray.__file__).parent / "_raylet.so").read_bytes()
    for name in names:
        assert f"RAY_{name}".encode() in binary
    # 1 MiB of text, a token per character, 24 tokens to a row of 768 bytes and an address of 512
    largest = 2**20 / 24 * (768 + 512)
    assert all(int(plan.variables[f"RAY_{name}"]) > 2 * largest for name in names[:2])
    assert int(plan.variables["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > 2 * largest
    assert plan.variables["RAY_automatic_object_spilling_enabled"] == "0"


def test_no_core_files():
    """A process that died would leave facts and keys on the disk; its children inherit the limit."""
    code = (
        "import resource, subprocess, sys; from cluster.hardening import forbid_core_dumps; forbid_core_dumps()\n"
        "show = 'import resource; print(resource.getrlimit(resource.RLIMIT_CORE))'\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), flush=True); subprocess.run([sys.executable, '-c', show])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(0, 0)", "(0, 0)"]


def test_token_of_the_user_stays():
    """A token given in the environment is not replaced by ours."""
    environ = {"RAY_AUTH_TOKEN": "theirs"}
    RayEnvironment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/ours"}, {}, Path("/t")).apply(environ)
    assert environ == {"RAY_AUTH_TOKEN": "theirs", "RAY_AUTH_MODE": "token"}


def test_without_haproxy_its_switches_are_off(tmp_path):
    """`ray.haproxy: false` leaves Ray's own proxy in place."""
    plan = plan_ray(settings(tmp_path, **{"ray.haproxy": False}), tmp_path / "token", tmp_path)
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in plan.variables
    assert plan.variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"


def test_reserved_cpus_never_queue(tmp_path):
    """Ray has more logical CPUs than all actors and replicas together reserve."""
    asked = {"memory.actors": 3, "memory.num_cpus": 2, "decoder.replicas": 2, "decoder.num_cpus": 8}
    plan = plan_ray(settings(tmp_path, **asked), tmp_path / "token", tmp_path)
    assert plan.init_arguments["num_cpus"] >= 3 * 2 + 2 * 8


def test_haproxy_wrapper_narrows_its_ports(tmp_path, monkeypatch):
    """The wrapper moves the statistics and metrics ports to loopback and hands all arguments on."""
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/echo")  # stands for HAProxy
    temp_dir = make_temp_dir()
    try:
        variables = plan_ray(settings(tmp_path), tmp_path / "token", temp_dir).variables
        stats, metrics = variables["RAY_SERVE_HAPROXY_STATS_PORT"], variables["RAY_SERVE_HAPROXY_METRICS_PORT"]
        config = temp_dir / "haproxy.cfg"
        config.write_text(
            f"frontend prometheus\n    bind :{metrics}\nlisten stats\n  bind *:{stats}\n  bind 127.0.0.1:1\n"
        )
        wrapper = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
        done = subprocess.run(
            [wrapper, "-db", "-f", str(config), "-sf", "7"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["-db", "-f", str(config), "-sf", "7"]
        binds = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
        assert binds == [f"127.0.0.1:{metrics}", f"127.0.0.1:{stats}", "127.0.0.1:1"]
        longest = Path(variables["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"])
        assert len(str(longest.parent / ("n" * 56) / longest.name)) <= 97  # Serve puts a folder per node in between
    finally:
        reap(temp_dir)


def test_port_probe():
    """A port in use is seen, a free one is free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert not port_is_free("127.0.0.1", other.getsockname()[1])
    assert port_is_free("127.0.0.1", free_port())


def test_free_ports_are_different_and_not_given_out_by_the_system():
    """Below the range of outgoing connections, where one could be taken before it is bound."""
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(port in OWN_PORTS and port < 32_768 and port_is_free("127.0.0.1", port) for port in ports)


# -- reaper -----------------------------------------------------------------------------------------------------


def _sleeper(**options) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, **options)


def test_reaper_finds_by_mark_and_by_open_file(tmp_path):
    """Marked processes and those that write into the folder are killed; others, and the spared one, are not."""
    temp_dir = tmp_path / "larimar-x"
    temp_dir.mkdir()
    with (temp_dir / "agent.log").open("w") as log:
        by_file = _sleeper(stdout=log)
    by_mark = _sleeper(env={**os.environ, MARK: str(temp_dir)})
    spared = _sleeper(env={**os.environ, MARK: str(temp_dir)})
    other = _sleeper(env={**os.environ, MARK: str(tmp_path / "larimar-y")})
    try:
        assert {process.pid for process in marked(temp_dir, spared.pid)} == {by_file.pid, by_mark.pid}
        reap(temp_dir, spared.pid)
        assert (by_file.wait(timeout=10), by_mark.wait(timeout=10)) == (-9, -9)
        assert (spared.poll(), other.poll()) == (None, None)
        assert not temp_dir.exists()
    finally:
        for process in (by_file, by_mark, spared, other):
            process.kill()
            process.communicate()


def test_reaper_waits_for_the_end_of_its_supervisor(tmp_path):
    """Its prey lives as long as the pipe is open and ends when the supervisor is killed."""
    temp_dir = tmp_path / "larimar-z"
    temp_dir.mkdir()
    code = (
        "import sys, subprocess, pathlib; from cluster.reaper import reaper\n"
        f"with reaper(pathlib.Path({str(temp_dir)!r})):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "    print(child.pid, flush=True); sys.stdin.read()\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    child = psutil.Process(int(supervisor.stdout.readline()))
    assert child.is_running()
    supervisor.kill()
    supervisor.communicate()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
