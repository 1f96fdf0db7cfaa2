"""What `larimar doctor` can find without a running system: the state folder, its keys, its disk, its ledgers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.diagnosis import Diagnosis, Severity
from cluster.state_folder import StateFolder
from cluster.storage_check import check_modes, check_storage
from memory_actor.errors import AlreadyRunning, LarimarError, NotFound, NotRunning
from memory_actor.types import as_plain

if TYPE_CHECKING:
    from cluster.settings import Settings
    from memory_actor.types import MemoryConfig

Tell = Callable[[str], None]  # what is being looked at

_SAFE = "Looking changed nothing; no process has touched the data since"
_CURES = {
    "ledger_corrupt": "Restore a copy of the ledger folder, or start on an empty state folder and restore tenants from "
    "checkpoints ('larimar restore'); keep the damaged files until then",
    "vault_locked": "Put keys/root.key (and the vaults, if they are missing) back from your backup of secrets",
    "bundle_mismatch": "Configure the models the state was written with (bundle.encoder, bundle.decoder)",
    "state_folder_unusable": "Give this user the folder back (owner and modes), or name the right one with --state-dir",
    "ledger_server_unusable": "Start the PostgreSQL server or correct ledger.url, then run 'larimar doctor' again",
    "model_missing": "'larimar up' builds the bundle again from the installed models",
}


def check_local(settings: Settings) -> list[Diagnosis]:
    """Disk and key files of the state folder; as true of a running system as of one that is not."""
    folders = {"the state folder": settings.state_dir, "the key folder": settings.keys_folder}
    local = Path(settings.checkpoint_locations["local"])
    if local.is_absolute():
        folders["the checkpoints"] = local
    there = {name: folder for name, folder in folders.items() if folder.is_dir()}
    try:
        found = check_storage(_one_each(there), settings.ledger.reserve_mb)
    except OSError as error:
        found = [_unusable(f"{error.filename or settings.state_dir}: {error.strerror or error}")]
    return found + check_modes(settings.keys_folder)


def check_offline(settings: Settings, tenant: str | None, tell: Tell) -> list[Diagnosis]:
    """Everything, in the order in which a start would meet it. Raises NotRunning where there is no state folder."""
    folder = StateFolder(settings.state_dir)
    if not folder.path.is_dir():
        raise NotRunning(folder.path)
    findings: list[Diagnosis] = []
    tell("Looking at disk and key files")
    findings += check_local(settings)
    try:
        folder.check()
        tell("Looking at ledgers and checkpoints")
        with folder.lock():  # no system may start on what is being looked at
            findings += _check_ledgers(settings, tenant)
    except (NotFound, AlreadyRunning):
        raise
    except LarimarError as error:
        findings.append(diagnosis_of(error))
    return findings


def diagnosis_of(error: LarimarError) -> Diagnosis:
    """A refusal to start, as a finding."""
    cure = _CURES.get(error.code, "Follow the message; 'larimar up' says the same when it refuses")
    return Diagnosis(error.code, Severity.ERROR, str(error), _SAFE, cure)


def _check_ledgers(settings: Settings, tenant: str | None) -> list[Diagnosis]:
    from cluster.ledger_check import check_ledgers  # noqa: PLC0415 - SQLAlchemy
    from workers.bundle import Bundle  # noqa: PLC0415

    bundle = StateFolder(settings.state_dir).bundle
    if not bundle.exists():
        return []  # never started: there is nothing that could be damaged
    config = Bundle.open(bundle).memory_config()
    check_ledgers(settings, config)
    return examine_ledgers(settings, config, tenant)


def examine_ledgers(settings: Settings, config: MemoryConfig, tenant: str | None) -> list[Diagnosis]:
    """What is wrong with the tenants of ledgers that `check_ledgers` passed. Raises NotFound and what opening does."""
    if settings.ledger.url is not None:
        # Opening it would take it over from whichever node serves it.
        return [
            Diagnosis(
                "not_examined",
                Severity.WARNING,
                "the tenants of a PostgreSQL ledger are examined by a running system only; server and tables are sound",
                _SAFE,
                "Start the system, or pass --url of the one that uses this ledger",
            )
        ]
    found: list[Diagnosis] = []
    known = 0
    for index in range(settings.memory.actors):
        findings, tenants = _examined(settings, index, config, tenant)
        found += findings
        known += tenants
    if tenant is not None and not known:
        raise NotFound("tenant", tenant)
    return found


def _examined(settings: Settings, index: int, config: MemoryConfig, tenant: str | None) -> tuple[list[Diagnosis], int]:
    """What `memory_actor.doctor` finds in one ledger, and how many of the tenants asked for it holds.

    Opening takes the ledger's next epoch, as a start does; nothing else changes.
    """
    from memory_actor.checkpoint_store import CheckpointStore  # noqa: PLC0415 - pyarrow
    from memory_actor.directory import ledger_path  # noqa: PLC0415
    from memory_actor.doctor import examine  # noqa: PLC0415
    from memory_actor.ledger_sqlite import needs_vault  # noqa: PLC0415
    from memory_actor.storage import open_storage  # noqa: PLC0415

    if not needs_vault(ledger_path(settings.state_dir, index)):
        return [], 0  # no tenants yet, or of an earlier release: a start will carry it over
    stores = {name: CheckpointStore(name, uri) for name, uri in settings.checkpoint_locations.items()}
    now = time.time()
    keys = settings.keys_folder
    ledger = open_storage(settings.state_dir, index, None, config, "larimar doctor", now, keys=keys)
    try:
        findings = examine(ledger, stores, config, tenant, now=now)
        names = {row.name for row in ledger.tenants()} | {finding.tenant for finding in findings}
    finally:
        ledger.close()
    return [Diagnosis.of(as_plain(finding)) for finding in findings], int(tenant is None or tenant in names)


def _unusable(problem: str) -> Diagnosis:
    return Diagnosis("state_folder_unusable", Severity.ERROR, problem, _SAFE, _CURES["state_folder_unusable"])


def _one_each(folders: dict[str, Path]) -> dict[str, Path]:
    """The folders that lie on different devices; the first of each speaks for the others."""
    seen: dict[int, str] = {}
    for name, folder in folders.items():
        seen.setdefault(folder.stat().st_dev, name)
    return {name: folders[name] for name in seen.values()}
