"""The command line without a server: what it imports, what it refuses, what it remembers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cli_memory import _parse_lines
from cluster.console_output import Exit, exit_code
from cluster.credentials import DEFAULT_URL, Credentials, CredentialsDamaged
from cluster.launcher import StartRefused
from cluster.startup_events import Failed, PipeWriter, Ready, StageReached, read_events


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """No test sees the user's keys, server or state folder."""
    for name in [name for name in os.environ if name.startswith("LARIMAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LARIMAR_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(app, arguments, input=stdin)


def test_help_imports_nothing_heavy():
    """`larimar --help` is quick: neither pydantic nor an HTTP library, Ray or torch is imported for it."""
    heavy = {"pydantic", "httpx2", "ray", "torch", "sqlalchemy", "numpy"}
    code = f"import sys, cluster.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_commands_are_there():
    """The documented commands exist, each with a one-line help."""
    shown = run("--help").stdout
    for command in (
        "up",
        "down",
        "status",
        "demo",
        "write",
        "query",
        "forget",
        "verify",
        "tenant",
        "facts",
        "key",
        "bench",
        "checkpoint",
        "checkpoints",
        "restore",
        "receipt",
        "vault",
        "doctor",
        "campaign",
    ):
        assert f" {command} " in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("write", "-t", "acme", "text", "--prompt", "p"), "only one of TEXT and --prompt"),
        (("write", "-t", "acme", "--target", "x"), "--target needs --prompt"),
        (("write", "-t", "acme", "--file", "/nowhere.jsonl"), "No such file"),
        (("forget", "-t", "acme"), "give the ids of facts, or --query"),
        (("forget", "-t", "acme", "f_1", "--query", "x"), "give the ids of facts, or --query"),
        (("tenant", "create", "acme", "--retention", "forever"), "must be text or latent"),
        (("up", "--set", "http.port"), "is not NAME=VALUE"),
        (("up", "--bundle", "gpt-5"), "'gpt-5' is not one of token-smollm2-135m, latent-smollm2-135m"),
        (("query", "-t", "acme"), "Missing argument"),
        (("checkpoint",), "give --tenant NAME, or --all"),
        (("restore", "-t", "acme"), "give --from TENANT, or --in-place"),
        (("nonsense",), "No such command"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, says):
    """Wrong usage is refused before anything is sent or started."""
    result = run(*arguments)
    assert result.exit_code == Exit.USAGE
    assert says in " ".join(result.stderr.replace("│", " ").split())


def test_unknown_setting_names_the_nearest():
    """`--set` with an unknown key exits 2 and names the nearest valid one."""
    result = run("up", "--set", "http.prot=1", "-o", "json")
    assert result.exit_code == Exit.USAGE
    refusal = json.loads(result.stderr)
    assert refusal["code"] == "settings_invalid"
    assert "did you mean 'port'?" in refusal["detail"]


@pytest.mark.parametrize(
    ("arguments", "codec"),
    [
        ((), "token"),
        (("--bundle", "token-smollm2-135m"), "token"),
        (("--bundle", "latent-smollm2-135m"), "larimar:latent"),
    ],
)
def test_a_bundle_by_name_is_its_codec(arguments, codec, monkeypatch, tmp_path):
    """What is handed to the launcher; it refuses here, since nothing is to be started."""
    started = []

    def start(settings, tell):
        started.append(settings.bundle.codec)
        raise StartRefused("refused", "not now")

    monkeypatch.setattr("cluster.launcher.start", start)
    assert run("up", "--state-dir", str(tmp_path / "state"), *arguments).exit_code != 0
    assert started == [codec]


def test_down_without_a_system(tmp_path):
    """Stopping what does not run is exit code 7, and creates nothing."""
    result = run("down", "--state-dir", str(tmp_path / "none"))
    assert result.exit_code == Exit.UNAVAILABLE
    assert "no system runs" in result.stderr
    assert not (tmp_path / "none").exists()


def test_unreachable_server_is_exit_code_7(monkeypatch):
    """Nobody listens at the address: exit code 7 and a hint, no traceback."""
    monkeypatch.setattr("cluster.client.Retries.__init__.__defaults__", (1, 1.0, 0.1, 0.1))
    result = run("tenant", "list", "--url", "http://127.0.0.1:9")
    assert result.exit_code == Exit.UNAVAILABLE
    assert "larimar up" in result.stderr


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("unauthenticated", 401, Exit.AUTH),
        ("forbidden", 403, Exit.AUTH),
        ("not_found", 404, Exit.NOT_FOUND),
        ("tenant_exists", 409, Exit.CONFLICT),
        ("memory_capacity_exceeded", 409, Exit.LIMITS),
        ("text_too_long", 422, Exit.LIMITS),
        ("body_too_large", 413, Exit.LIMITS),
        ("invalid_field", 422, Exit.USAGE),
        ("overloaded", 503, Exit.UNAVAILABLE),
        ("port_taken", 500, Exit.CONFLICT),
        ("internal", 500, Exit.FAILED),
        ("storage_full", 507, Exit.LIMITS),
        ("checkpoint_erased", 410, Exit.NOT_FOUND),
        ("location_unavailable", 503, Exit.UNAVAILABLE),
        ("tenant_quarantined", 503, Exit.DAMAGED),
        ("vault_locked", 500, Exit.DAMAGED),
        ("ledger_corrupt", 500, Exit.DAMAGED),
        ("receipt_invalid", 422, Exit.FAILED),
    ],
)
def test_exit_codes(code, status, expected):
    """Each kind of refusal has its documented exit code."""
    assert exit_code(code, status) is expected


def test_lines_are_facts():
    """A line is a JSON object or a sentence; empty lines do not count."""
    facts = _parse_lines(['{"prompt": "p", "target": "t"}\n', "\n", " Ana is here. \n"], "stdin")
    assert facts == [{"prompt": "p", "target": "t"}, {"text": "Ana is here."}]


@pytest.mark.parametrize(
    ("lines", "says"), [(["ok", '{"prompt": '], "line 2"), ([], "holds no facts"), (["\n"], "holds no facts")]
)
def test_bad_lines_are_refused_whole(lines, says):
    """A line that is no JSON is named by its number, before anything is sent."""
    result = run("write", "-t", "acme", "--url", "http://127.0.0.1:9", stdin="\n".join(lines))
    assert result.exit_code == Exit.USAGE
    assert says in result.stderr


def test_credentials_are_private(tmp_path):
    """The file and its folder can be read by nobody else, however the umask is set."""
    os.umask(0)
    kept = Credentials(tmp_path / "c")
    kept.save_admin("http://a", "lm_admin_x")
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700


def test_credentials_are_kept_by_server(tmp_path):
    """Keys belong to one server; the current one is the one started last."""
    kept = Credentials(tmp_path)
    assert (kept.current_url(), kept.admin_key(DEFAULT_URL)) == (DEFAULT_URL, None)
    kept.save_admin("http://a", "A")
    kept.save_tenant("http://a", "acme", "T")
    kept.save_tenant("http://b", "acme", "U")
    kept.choose("http://b")
    again = Credentials(tmp_path)
    assert again.current_url() == "http://b"
    assert (again.admin_key("http://a"), again.admin_key("http://b")) == ("A", None)
    assert (again.tenant_key("http://a", "acme"), again.tenant_key("http://b", "acme")) == ("T", "U")
    again.drop_tenant("http://a", "acme")
    assert again.tenant_key("http://a", "acme") is None
    assert again.admin_key("http://a") == "A"


def test_damaged_credentials_are_not_overwritten(tmp_path):
    """A file that is no JSON is refused by name and left as it is."""
    kept = Credentials(tmp_path)
    kept.path.write_text("{oops")
    with pytest.raises(CredentialsDamaged, match=r"credentials\.json"):
        kept.save_admin("http://a", "A")
    assert kept.path.read_text() == "{oops"


def test_events_cross_the_pipe():
    """What the supervisor tells arrives as it was, until it closes its end."""
    events = [
        StageReached("Starting Ray"),
        StageReached("Models", 0.5),
        Ready("http://x", "key", 1.5),
        Failed("c", "m"),
    ]
    reader, writer = os.pipe()
    tell = PipeWriter(writer)
    for event in events:
        tell(event)
    tell.close()
    with os.fdopen(reader, encoding="utf-8") as file:
        assert list(read_events(file)) == events


def test_events_without_a_reader_are_dropped():
    """The supervisor goes on when whoever started it has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    tell = PipeWriter(writer)
    tell(StageReached("Starting Ray"))
    tell(StageReached("Waiting"))
    tell.close()
