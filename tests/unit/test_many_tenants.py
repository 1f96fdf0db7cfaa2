"""Work on many tenants: the jobs and `larimar checkpoint --all`, against the application over fakes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest
import stamina
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cluster.cli import app
from cluster.client import ApiError, Client, Retries
from cluster.console_output import Exit
from cluster.many_tenants import for_each, pairs_of
from jobs import checkpoint as checkpoint_job
from jobs import restore as restore_job
from memory_actor.errors import LocationUnavailable
from tests.fakes import World


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=1, cap=True):
        yield


@pytest.fixture
def world(monkeypatch, tmp_path) -> World:
    """The application over fakes, reached by every command of this process with the admin key."""
    made = World.make(timeout_s=0.05)

    def connect(url: str | None, tenant: str | None = None) -> Client:
        transport = TestClient(made.app)._transport
        return Client("http://testserver", "admin", retries=Retries(attempts=1), transport=transport)

    monkeypatch.setenv("LARIMAR_CONFIG_DIR", str(tmp_path))
    for module in ("cluster.cli_safekeeping", "jobs.checkpoint", "jobs.restore"):
        monkeypatch.setattr(f"{module}.admin_client", connect)
    monkeypatch.setattr("cluster.cli_safekeeping.tenant_client", connect)
    return made


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_all_tenants_get_a_checkpoint(world, capsys):
    """One line of JSON each, exit code 0."""
    assert checkpoint_job.main(["--all"]) == 0
    assert [(row["tenant"], row["done"]) for row in lines(capsys.readouterr().out)] == [
        ("acme", True),
        ("globex", True),
    ]
    assert [info.tenant for info in world.memory.actors[1].store.infos] == ["acme", "globex"]


def test_what_fails_is_told_and_the_rest_goes_on(world, capsys):
    """A tenant that is not there, or a location that is down, is a line with its code, and exit code 1."""
    assert checkpoint_job.main(["--tenant", "nobody", "--tenant", "acme"]) == 1
    first, second = lines(capsys.readouterr().out)
    assert (first["done"], first["code"], second["done"]) == (False, "not_found", True)
    world.memory.actors[1].before = [LocationUnavailable("local", "it is down")]
    assert checkpoint_job.main(["--tenant", "acme", "--tenant", "globex"]) == 1
    first, second = lines(capsys.readouterr().out)
    assert (first["code"], second["done"]) == ("location_unavailable", True)


def test_a_refused_key_ends_the_job_at_once(world):
    """The next tenant would be refused as well."""
    transport = TestClient(world.app)._transport
    with Client("http://testserver", "wrong", retries=Retries(attempts=1), transport=transport) as client:
        work = for_each(["acme", "globex"], client.checkpoint)
        with pytest.raises(ApiError) as refused:
            next(work)
    assert refused.value.status == httpx2.codes.UNAUTHORIZED


def test_many_tenants_are_restored_and_their_keys_not_printed(world, capsys):
    """New tenants by pairs of names, or in place by names; a job's output is kept, so no key stands in it."""
    checkpoint_job.main(["--all"])
    capsys.readouterr()
    assert restore_job.main(["acme=acme-two", "globex=beta"]) == 0
    out = capsys.readouterr().out
    assert [row["tenant"] for row in lines(out)] == ["acme-two", "beta"]
    assert "key-acme-two" in world.keys.keys.__repr__()
    assert "key-" not in out
    assert restore_job.main(["--in-place", "acme"]) == 0
    assert lines(capsys.readouterr().out)[0]["in_place"] is True


@pytest.mark.parametrize("argument", ["acme", "=x", "x=", "acme=acme"])
def test_pairs_have_two_different_names(argument):
    """One name alone would mean replacing: that must be said."""
    with pytest.raises(ValueError, match="is not SOURCE=TARGET"):
        pairs_of([argument])
    with pytest.raises(SystemExit):
        restore_job.main([argument])


def test_the_command_shows_a_table_of_all_and_fails_if_any_failed(world):
    """`larimar checkpoint --all`: exit code 0, or 1 with the names that failed."""
    done = CliRunner().invoke(app, ["checkpoint", "--all", "-o", "json"])
    assert done.exit_code == Exit.OK, done.output
    assert [row["tenant"] for row in json.loads(done.stdout)] == ["acme", "globex"]
    world.memory.actors[1].tenants_by_name["acme"].broken = LocationUnavailable("local", "down")
    failed = CliRunner().invoke(app, ["checkpoint", "--all"])
    assert failed.exit_code == Exit.FAILED
    assert "1 of 2 failed: acme" in failed.stderr


def test_restore_keeps_the_new_tenants_key_for_this_user(world):
    """As for a tenant that is created."""
    CliRunner().invoke(app, ["checkpoint", "-t", "acme"])
    done = CliRunner().invoke(app, ["restore", "-t", "beta", "--from", "acme", "--url", "http://x", "-o", "json"])
    assert done.exit_code == Exit.OK, done.output
    from cluster.credentials import Credentials

    assert Credentials().tenant_key("http://x", "beta") == json.loads(done.stdout)["key"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoint",),
        ("restore", "-t", "beta"),
        ("restore", "-t", "beta", "--in-place", "--from", "acme"),
        ("restore", "-t", "beta", "--from", "acme", "--version", "-1"),
    ],
)
def test_wrong_usage_sends_nothing(world, arguments):
    """Exit code 2, before anything is asked of the server."""
    before = world.state()
    assert CliRunner().invoke(app, arguments).exit_code == Exit.USAGE
    assert world.state() == before


def test_a_receipt_is_shown_and_saved_as_it_was_signed(world, tmp_path):
    """Byte for byte, so that it can be verified; before it is done, exit code 7."""
    client = TestClient(world.app, headers={"Authorization": "Bearer admin"})
    ids = client.post("/v1/tenants/acme/facts", json={"text": "sky"}, headers={"Idempotency-Key": "a"}).json()["ids"]
    forgot = client.post("/v1/tenants/acme/forget", json={"ids": ids}, headers={"Idempotency-Key": "b"}).json()
    path = tmp_path / "receipt.json"
    arguments = ["receipt", "show", forgot["receipt_id"], "--save", str(path)]
    early = CliRunner().invoke(app, arguments)
    assert (early.exit_code, path.exists()) == (Exit.UNAVAILABLE, False)
    world.memory.actors[1].finish_erasures()
    assert CliRunner().invoke(app, [*arguments, "--wait"]).exit_code == Exit.OK
    assert path.read_text() == world.memory.actors[1].erasures[forgot["receipt_id"]].receipt
