"""What the doctor finds without a running system: disk, key files, ledgers; and how it says it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.console_output import Exit
from cluster.diagnosis import Diagnosis, Severity
from cluster.offline_check import check_local, check_offline, diagnosis_of
from cluster.settings import settings_from
from cluster.state_folder import StateFolder
from cluster.storage_check import Measured, check_modes, filesystem_of, judge, measure
from memory_actor.errors import NotRunning, VaultLocked

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
