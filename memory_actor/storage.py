"""Opens what one memory actor keeps: key folder, vault and ledger, in the order in which they depend on each other."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from memory_actor.directory import ledger_path
from memory_actor.errors import VaultLocked
from memory_actor.key_folder import KeyFolder
from memory_actor.ledger import RESERVE_BYTES, Ledger
from memory_actor.ledger_sqlite import needs_vault
from memory_actor.types import MemoryConfig
from memory_actor.vault import Vault


def vault_path(keys: Path, index: int) -> Path:
    """The vault file of a memory actor in the key folder `keys`."""
    return keys / f"vault-{index:02d}.sqlite"


def open_storage(  # noqa: PLR0917 - all of them named at each call
    state_dir: Path,
    index: int,
    url: str | None,
    config: MemoryConfig,
    owner: str,
    now: float,
    *,
    keys: Path | None = None,
    reserve_bytes: int = RESERVE_BYTES,
) -> Ledger:
    """Open or create memory actor `index`'s ledger with its vault (`.vault`), which is closed with it.

    Args: url: a PostgreSQL URL, None for files in `state_dir`. keys: the key folder, None for `state_dir`/keys.
    owner: who takes the next epoch, for people. now: seconds.
    A root key is made only where there is neither ledger nor vault: a lost one must be put back, not replaced.
    Raises: VaultLocked and what `Ledger.open` raises; then nothing was changed.
    """
    folder = KeyFolder(keys or state_dir / "keys")
    if url is not None:
        # Needs psycopg, few use it.
        from memory_actor.ledger_postgres import open_vault_postgres, vault_exists  # noqa: PLC0415
        from memory_actor.postgres import location_of  # noqa: PLC0415

        schema = location_of(url, index)
        folder.ensure(may_create=not vault_exists(schema))
        vault = open_vault_postgres(schema, folder.root_keys())
        location: Path | str = schema
    else:
        path, location = vault_path(folder.path, index), ledger_path(state_dir, index)
        if needs_vault(location) and not path.exists():
            raise VaultLocked(str(path), f"the file is missing, and ledger {location} was sealed with its keys")
        folder.ensure(may_create=not any(folder.path.glob("vault-*.sqlite")))
        vault = Vault.open_sqlite(path, folder.root_keys())
    with ExitStack() as undo:
        undo.callback(vault.close)
        ledger = Ledger.open(location, config, owner, now, vault, reserve_bytes=reserve_bytes)
        undo.pop_all()  # the ledger closes it now
    return ledger
