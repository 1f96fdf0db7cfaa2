"""The command line against a real system: what a user types, and what the process does when it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import stat
import uuid
from pathlib import Path

import psutil
import pytest

from cluster.client import Client
from cluster.state_folder import StateFolder


@pytest.fixture(scope="module")
def tenant(system):
    name = f"cli-{uuid.uuid4().hex[:10]}"
    created = system.larimar("tenant", "create", name, "-o", "json")
    assert created.returncode == 0, created.stderr
    yield name
    assert system.larimar("tenant", "delete", name, "--yes").returncode == 0


def _json(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tour_holds(system):
    """Every expectation of the scripted tour holds on this system, and it leaves no tenants behind."""
    done = system.larimar("demo", "--state-dir", str(system.state_dir), "-o", "json")
    tour = json.loads(done.stdout)
    assert [one for one in tour["expectations"] if not one["held"]] == []
    assert done.returncode == 0
    assert len(tour["expectations"]) > 30
    with Client(system.url, system.admin_key) as admin:
        assert {"acme", "globex"}.isdisjoint(one.name for one in admin.tenants())


def test_write_query_forget(system, tenant):
    """A fact typed in is answered, then forgotten by its id; the state hash is back where it was."""
    before = _json(system.larimar("tenant", "show", tenant, "-o", "json"))["state_hash"]
    written = _json(
        system.larimar(
            "write", "-t", tenant, "--prompt", "Who waters the office plants?", "--target", "Ms. Obuya", "-o", "json"
        )
    )
    shown = system.larimar("query", "-t", tenant, "Who waters the plants in the office?")
    assert "Obuya" in shown.stdout
    assert written["ids"][0] in shown.stdout
    receipt = _json(system.larimar("forget", "-t", tenant, *written["ids"], "-o", "json"))
    assert receipt["forgotten"] == written["ids"]
    assert receipt["state_hash_after"] == before
    assert _json(system.larimar("verify", "-t", tenant, "-o", "json"))["identical"] is True


def test_facts_from_stdin_in_batches(system, tenant):
    """250 lines of JSON and plain sentences, three requests: all are stored, in order."""
    lines = [json.dumps({"prompt": f"What is in crate {n}?", "target": f"part {n}"}) for n in range(249)]
    written = _json(
        system.larimar("write", "-t", tenant, "-o", "json", stdin="\n".join([*lines, "Crate 249 is empty."]))
    )
    assert written["written"] == 250
    listed = _json(system.larimar("facts", "list", "-t", tenant, "-o", "json"))
    assert [fact["id"] for fact in listed] == written["ids"]
    assert listed[-1]["prompt"] == "Crate 249 is empty."


def test_forget_by_query_changes_nothing_unasked(system, tenant):
    """Without somebody to ask and without --yes, candidates are shown and the state stays."""
    system.larimar("write", "-t", tenant, "The lift of building 9 is out of order.")
    before = _json(system.larimar("tenant", "show", tenant, "-o", "json"))["state_hash"]
    refused = system.larimar("forget", "-t", tenant, "--query", "The lift of building 9 is out of order.")
    assert refused.returncode == 2
    assert "lift" in refused.stdout
    assert _json(system.larimar("tenant", "show", tenant, "-o", "json"))["state_hash"] == before
    done = system.larimar(
        "forget", "-t", tenant, "--query", "The lift of building 9 is out of order.", "--yes", "-o", "json"
    )
    assert len(_json(done)["forgotten"]) >= 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("query", "-t", "nobody-here", "Anyone?"), 4),
        (("query", "-t", "Not A Name", "Anyone?"), 2),
        (("write", "-t", "TENANT", "   "), 2),
        (("write", "-t", "TENANT", "word " * 700), 6),
        (("tenant", "create", "TENANT"), 5),
        (("status", "--url", "http://127.0.0.1:9"), 7),
    ],
)
def test_refusals_have_their_exit_code(system, tenant, arguments, code):
    """Each kind of refusal has the documented exit code and says why on stderr."""
    done = system.larimar(*(tenant if argument == "TENANT" else argument for argument in arguments))
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")


def test_second_start_is_refused(system):
    """A state folder has one system: the second start says where the first one is and touches nothing."""
    done = system.larimar("up", "-o", "json")
    assert done.returncode == 5
    refusal = json.loads(done.stderr)
    assert refusal["code"] == "already_running"
    assert system.url in refusal["detail"]
    assert system.record().alive()


def test_only_loopback_is_open_without_a_token(system):
    """Nothing of ours listens beyond this machine, except the token-protected port between replicas."""
    open_ports = {
        (process.name(), connection.laddr.ip)
        for process in system.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    outward = {(name, ip) for name, ip in open_ports if not ip.removeprefix("::ffff:").startswith("127.")}
    assert all(name.startswith("ray::ServeRepl") and ip == "::" for name, ip in outward), outward


def test_sockets_and_logs_are_private(system):
    """Nobody else on the machine can enter the folder with Ray's and HAProxy's sockets, logs and the state."""
    for folder in (Path(system.record().temp_dir), system.state_dir / "ledger", system.state_dir / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_killed_supervisor_leaves_nothing_running(system, tenant):
    """kill -9 of the supervisor: the reaper ends every process, and the next start finds all facts."""
    facts = _json(system.larimar("tenant", "show", tenant, "-o", "json"))
    processes = system.processes()
    os.kill(processes[0].pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    assert StateFolder(system.state_dir).running() is None
    system.start()
    again = _json(system.larimar("tenant", "show", tenant, "-o", "json"))
    assert (again["facts"], again["state_hash"]) == (facts["facts"], facts["state_hash"])
