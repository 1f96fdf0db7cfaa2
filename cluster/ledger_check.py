"""What can keep the ledgers from opening, found before any process starts. Nothing is changed, locked or created."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_actor.directory import check_actor_count, ledger_path
from memory_actor.errors import VaultLocked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cluster.settings import Settings
    from memory_actor.types import MemoryConfig


def check_ledgers(settings: Settings, config: MemoryConfig) -> None:
    """Pass if every memory actor will find its ledger, and the keys that its ledger needs.

    Raises: BundleMismatch, LedgerCorrupt, StateFolderUnusable, VaultLocked, and for PostgreSQL SettingsInvalid and
    LedgerServerUnusable.
    """
    check_actor_count(settings.state_dir, settings.memory.actors, _ledgers_on_server(settings))
    for index in range(settings.memory.actors):
        if settings.ledger.url is None:
            _check_sqlite(settings, index, config)
        else:
            _check_postgres(settings, index, config)


def _ledgers_on_server(settings: Settings) -> int | None:
    if settings.ledger.url is None:
        return None
    from memory_actor.ledger_postgres import count_ledgers  # noqa: PLC0415 - psycopg
    from memory_actor.postgres import location_of  # noqa: PLC0415

    return count_ledgers(location_of(str(settings.ledger.url), 0), wait_s=5.0)


def _check_sqlite(settings: Settings, index: int, config: MemoryConfig) -> None:
    from memory_actor.ledger_sqlite import check_sqlite, needs_vault  # noqa: PLC0415 - SQLAlchemy
    from memory_actor.storage import vault_path  # noqa: PLC0415

    path = ledger_path(settings.state_dir, index)
    check_sqlite(path, config)
    if needs_vault(path):
        _check_vault(vault_path(settings.keys_folder, index), _root_keys(settings.keys_folder), str(path))


def _check_postgres(settings: Settings, index: int, config: MemoryConfig) -> None:
    from memory_actor.ledger_postgres import check_postgres, needs_vault  # noqa: PLC0415 - psycopg
    from memory_actor.postgres import location_of  # noqa: PLC0415

    location = location_of(str(settings.ledger.url), index)
    check_postgres(location, config)
    if needs_vault(location):
        _root_keys(settings.keys_folder)


def _root_keys(folder: Path) -> Sequence[bytes]:
    """The root keys there are. A fresh one would open nothing of what is sealed, so none may be made."""
    from memory_actor.key_folder import KeyFolder  # noqa: PLC0415 - cryptography

    keys = KeyFolder(folder)
    keys.ensure(may_create=False)
    return keys.root_keys()


def _check_vault(path: Path, root_keys: Sequence[bytes], ledger: str) -> None:
    from memory_actor.vault_lock import fingerprint  # noqa: PLC0415 - SQLAlchemy
    from memory_actor.vault_sqlite import inspect_file  # noqa: PLC0415

    if not path.is_file():
        raise VaultLocked(str(path), f"the file is missing, and with it the keys of the facts in ledger {ledger}")
    sealed_under = inspect_file(path)["root_key"]
    given = [fingerprint(key) for key in root_keys]
    if sealed_under not in given:
        raise VaultLocked(
            str(path), f"it is sealed under root key {sealed_under}, but the root key file holds {given[0]}"
        )
