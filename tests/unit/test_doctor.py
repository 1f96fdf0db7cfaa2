"""What the doctor finds without a running system: disk, key files, ledgers; and how it says it."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.console_output import Exit
from cluster.diagnosis import Diagnosis, Severity
from cluster.ledger_check import check_ledgers
from cluster.offline_check import check_local, check_offline, diagnosis_of, examine_ledgers
from cluster.settings import Settings, settings_from
from cluster.state_folder import StateFolder
from cluster.storage_check import Measured, check_modes, filesystem_of, judge, measure
from memory_actor.directory import check_actor_count, ledger_path
from memory_actor.errors import NotFound, NotRunning, VaultLocked
from memory_actor.storage import open_storage, vault_path
from tests.ledger_samples import CONFIG, created, make_fact, written

MOUNTS = """\
overlay / overlay rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/sda1 /srv ext4 rw 0 0
/dev/sdb1 /srv/larimar\\040state xfs rw 0 0
server:/x /home nfs4 rw 0 0
"""


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """No test sees the user's keys, server or state folder."""
    for name in [name for name in os.environ if name.startswith("LARIMAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LARIMAR_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))


def settings(state_dir: Path, **more):
    return settings_from({"state_dir": str(state_dir), **more}, "test")


def codes(findings) -> list[str]:
    return [finding.code for finding in findings]


# -- disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/run/x", "tmpfs"),
        ("/running", "overlay"),
        ("/srv/other", "ext4"),
        ("/srv/larimar state", "xfs"),
        ("/srv/larimar state/ledger", "xfs"),
        ("/home/ana", "nfs4"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount(path, kind):
    """As /proc/mounts writes it, spaces in names included."""
    assert filesystem_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("filesystem", "fsync_s", "free_mb", "expected"),
    [
        ("ext4", 0.002, 9999, []),
        ("tmpfs", 1e-6, 9999, ["storage_in_memory"]),
        ("overlay", 0.002, 9999, ["storage_in_layer"]),
        ("nfs4", 0.002, 9999, ["storage_remote"]),
        ("ext4", 0.3, 9999, ["storage_slow"]),
        ("ext4", 1e-6, 9999, ["storage_untrue"]),
        ("ext4", 0.002, 100, ["storage_full"]),
        ("xfs", 0.3, 10, ["storage_slow", "storage_full"]),
    ],
)
def test_a_disk_is_judged_by_kind_speed_and_space(filesystem, fsync_s, free_mb, expected):
    """Each doubt has its own code; a sound disk has none."""
    assert codes(judge("it", Measured(Path("/x"), filesystem, fsync_s, free_mb), reserve_mb=64)) == expected


def test_below_the_reserve_is_an_error_and_near_it_a_warning():
    """Below it writes are refused; up to twice of it somebody should look."""
    severities = [
        next(judge("it", Measured(Path("/x"), "ext4", 0.002, free_mb), reserve_mb=64)).severity for free_mb in (63, 127)
    ]
    assert severities == [Severity.ERROR, Severity.WARNING]


def test_measuring_leaves_nothing_behind(tmp_path):
    """The probe file has no name; the time is that of fsync alone."""
    ticks = iter(range(100))
    found = measure(tmp_path, timer=lambda: float(next(ticks)))
    assert (found.fsync_s, list(tmp_path.iterdir())) == (1.0, [])
    assert found.free_mb > 0


# -- keys -----------------------------------------------------------------------------------------------------------


def test_key_files_that_others_can_read_are_named(tmp_path):
    """Folder and files are for their owner alone."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    (keys / "root.key").write_text("x")
    (keys / "root.key").chmod(0o400)
    assert check_modes(keys) == []
    (keys / "root.key").chmod(0o440)
    (finding,) = check_modes(keys)
    assert (finding.code, finding.severity) == ("keys_exposed", Severity.ERROR)
    assert str(keys / "root.key") in finding.what
    assert check_modes(tmp_path / "none") == []


# -- ledgers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledgers(tmp_path) -> Settings:
    """A state folder, not running, whose one ledger holds tenants `acme` and `globex` with five facts each."""
    made = settings(tmp_path / "state")
    StateFolder(made.state_dir).prepare()
    check_actor_count(made.state_dir, 1)
    draw = np.random.default_rng(7)
    with open_storage(made.state_dir, 0, None, CONFIG, "test", 1.0, keys=made.keys_folder) as ledger:
        for name in ("acme", "globex"):
            facts = [make_fact(seq, draw, fact_id=f"{name}-{seq}") for seq in range(1, 6)]
            ledger.commit([created(name), written(name, 1, *facts)], 2.0)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sound_ledgers_pass_and_nothing_is_found(ledgers):
    """Checking changes no byte; examining finds nothing about any tenant, or about one."""
    before = files(ledgers.state_dir)
    check_ledgers(ledgers, CONFIG)
    assert files(ledgers.state_dir) == before
    assert examine_ledgers(ledgers, CONFIG, None) == []
    assert examine_ledgers(ledgers, CONFIG, "acme") == []


def test_an_unknown_tenant_is_not_healthy(ledgers):
    """A mistyped name is not found."""
    with pytest.raises(NotFound):
        examine_ledgers(ledgers, CONFIG, "acne")


@pytest.mark.parametrize(
    ("lost", "says"), [("root.key", "root key file is missing"), ("vault-00.sqlite", "the file is missing")]
)
def test_a_lost_key_is_refused_before_anything_starts(ledgers, lost, says):
    """Neither is made anew: what is sealed would be lost behind a fresh key. Put back, all is well."""
    path = ledgers.keys_folder / lost
    kept = path.read_bytes()
    path.unlink()
    before = files(ledgers.state_dir)
    with pytest.raises(VaultLocked, match=says):
        check_ledgers(ledgers, CONFIG)
    assert files(ledgers.state_dir) == before
    path.write_bytes(kept)
    check_ledgers(ledgers, CONFIG)


def test_a_lost_key_folder_is_refused(ledgers):
    """The whole folder gone, for instance a mount that is missing: nothing is created in its place."""
    ledgers.keys_folder.rename(ledgers.keys_folder.with_name("elsewhere"))
    with pytest.raises(VaultLocked):
        check_ledgers(ledgers, CONFIG)
    assert not ledgers.keys_folder.exists()


def test_another_root_key_is_refused_without_being_shown(ledgers):
    """Both are named by fingerprint."""
    root = ledgers.keys_folder / "root.key"
    other = "ab" * 32
    root.chmod(0o600)
    root.write_text(other + "\n")
    with pytest.raises(VaultLocked, match=r"sealed under root key [0-9a-f]{16}, but .* holds [0-9a-f]{16}") as caught:
        check_ledgers(ledgers, CONFIG)
    assert other not in str(caught.value)


def test_a_damaged_row_is_found_with_its_tenant(ledgers):
    """One flipped bit in one sealed row: that tenant is named, with what is safe and what to do; the other is not."""
    with sqlite3.connect(ledger_path(ledgers.state_dir, 0)) as driver:
        rowid, words = driver.execute("SELECT rowid, words FROM fact WHERE fact_id = 'acme-3'").fetchone()
        driver.execute("UPDATE fact SET words = ? WHERE rowid = ?", (bytes([words[0] ^ 1]) + words[1:], rowid))
    driver.close()
    (finding,) = examine_ledgers(ledgers, CONFIG, None)
    assert (finding.tenant, finding.severity) == ("acme", Severity.ERROR)
    assert all((finding.what, finding.safe, finding.cure))
    assert examine_ledgers(ledgers, CONFIG, "globex") == []


def test_a_vault_beside_no_ledger_is_no_reason_to_refuse(ledgers):
    """A first start that was killed leaves keys that nothing is sealed with."""
    for path in ledger_path(ledgers.state_dir, 0).parent.glob("memory-00.sqlite*"):
        path.unlink()
    check_ledgers(ledgers, CONFIG)
    assert vault_path(ledgers.keys_folder, 0).exists()


# -- the whole ------------------------------------------------------------------------------------------------------


def test_a_fresh_folder_is_healthy(tmp_path):
    """Prepared and never started: nothing to find but what the disk of this machine is like."""
    StateFolder(tmp_path / "state").prepare()
    told: list[str] = []
    findings = check_offline(settings(tmp_path / "state"), None, told.append)
    assert [finding for finding in findings if not finding.code.startswith("storage_")] == []
    assert len(told) == 2


def test_no_folder_is_no_health(tmp_path):
    """A mistyped --state-dir must not be called healthy."""
    with pytest.raises(NotRunning):
        check_offline(settings(tmp_path / "none"), None, print)


def test_a_damaged_marker_is_a_finding(tmp_path):
    """What keeps the system from starting is found, with its cure, and looking changes nothing."""
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    (folder.path / "larimar.json").write_text("{")
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*") if path.is_file())
    findings = [item for item in check_offline(settings(folder.path), None, print) if item.code[:8] != "storage_"]
    assert codes(findings) == ["state_folder_unusable"]
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*") if path.is_file()) == before


def test_a_locked_vault_says_what_is_safe_and_what_to_do():
    """Every refusal to start becomes a finding with all four answers."""
    finding = diagnosis_of(VaultLocked("/srv/keys/root.key", "the root key file is missing"))
    assert "root key file is missing" in finding.what
    assert "backup of secrets" in finding.cure
    assert finding.safe


def test_folders_on_one_disk_are_measured_once(tmp_path):
    """Three folders of one device: one finding, not three."""
    for name in ("keys", "checkpoints"):
        (tmp_path / name).mkdir(mode=0o700)
    found = check_local(settings(tmp_path, **{"ledger.reserve_mb": 10**12}))
    assert codes(found).count("storage_full") == 1


def test_findings_end_in_exit_code_8(tmp_path):
    """An error is exit code 8, as JSON and as a table with the four answers; a folder that is not there is 7."""
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    (folder.path / "larimar.json").write_text("{")
    done = CliRunner().invoke(app, ["doctor", "--state-dir", str(folder.path), "-o", "json"])
    assert done.exit_code == Exit.DAMAGED
    report = json.loads(done.stdout)
    assert (report["healthy"], report["mode"]) == (False, "offline")
    assert {"code", "severity", "what", "safe", "cure", "tenant"} == set(report["findings"][0])
    table = CliRunner().invoke(app, ["doctor", "--state-dir", str(folder.path)])
    assert table.exit_code == Exit.DAMAGED
    assert all(word in table.stdout for word in ("what", "which", "safe", "do", "ERROR state_folder_unusable"))
    assert CliRunner().invoke(app, ["doctor", "--state-dir", str(tmp_path / "none")]).exit_code == Exit.UNAVAILABLE


def test_a_finding_survives_its_way_through_json():
    """What a memory actor found is shown as it was worded."""
    finding = Diagnosis("row_damaged", Severity.ERROR, "a", "b", "c", "acme")
    plain = {"code": "row_damaged", "severity": "error", "what": "a", "safe": "b", "cure": "c", "tenant": "acme"}
    assert Diagnosis.of(json.loads(json.dumps(plain))) == finding
