"""What can keep the ledgers from opening, found before any process starts. Nothing is changed, locked or created."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_actor.directory import check_actor_count, ledger_path
from memory_actor.errors import VaultLocked

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.settings import Settings
    from memory_actor.types import MemoryConfig

ROOT_KEY = "root.key"


def check_ledgers(settings: Settings, config: MemoryConfig) -> None:
    """Pass if every memory actor will find its ledger, and the keys that its ledger needs.

    Raises: BundleMismatch, LedgerCorrupt, StateFolderUnusable, VaultLocked, and for PostgreSQL SettingsInvalid and
    LedgerServerUnusable.
    """
    check_actor_count(settings.state_dir, settings.memory.actors)
    for index in range(settings.memory.actors):
        if settings.ledger.url is None:
            sealed = _check_sqlite(settings.state_dir, index, config)
        else:
            sealed = _check_postgres(settings.ledger.url, index, config)
        if sealed:
            _check_root_key(settings.keys_folder)


def _check_sqlite(state_dir: Path, index: int, config: MemoryConfig) -> bool:
    from memory_actor.ledger_sqlite import check_sqlite, needs_vault  # noqa: PLC0415 - SQLAlchemy

    path = ledger_path(state_dir, index)
    check_sqlite(path, config)
    return needs_vault(path)


def _check_postgres(url: str, index: int, config: MemoryConfig) -> bool:
    from memory_actor.ledger_postgres import check_postgres, needs_vault  # noqa: PLC0415 - psycopg
    from memory_actor.postgres import location_of  # noqa: PLC0415

    location = location_of(url, index)
    check_postgres(location, config)
    return needs_vault(location)


def _check_root_key(folder: Path) -> None:
    """A new root key would open none of what is there: it must not even be made."""
    if not (folder / ROOT_KEY).is_file():
        raise VaultLocked(str(folder), f"there are ledgers with sealed facts, but {ROOT_KEY} is missing")
