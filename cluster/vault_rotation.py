"""Rotating the keys of a stopped system: finds all its vaults, wraps them anew, and only then lets the old key go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from memory_actor.directory import check_actor_count, ledger_path
from memory_actor.errors import NotFound, TenantQuarantined, VaultLocked
from memory_actor.key_folder import KeyFolder
from memory_actor.vault import KeyDamaged, Vault
from memory_actor.vault_lock import fingerprint
from memory_actor.vault_sqlite import inspect_file

if TYPE_CHECKING:
    from cluster.settings import Settings

_UID = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class VaultPlace:
    """A vault that exists, and how to open it."""

    name: str
    open: Callable[[Sequence[bytes]], Vault]
    file: Path | None  # None for a vault on a server


def find_vaults(settings: Settings) -> list[VaultPlace]:
    """All vaults of a state folder. Raises VaultLocked when a ledger's vault is missing; the server's refusals."""
    check_actor_count(settings.state_dir, settings.memory.actors)
    folder = settings.keys_folder
    files = sorted(folder.glob("vault-*.sqlite"))
    places = [VaultPlace(path.name, _opener(path), path) for path in files]
    if settings.ledger.url is not None:
        return places + list(_on_server(settings, settings.ledger.url))
    from memory_actor.ledger_sqlite import needs_vault  # noqa: PLC0415 - SQLite only

    for index in range(settings.memory.actors):
        ledger, vault = ledger_path(settings.state_dir, index), folder / f"vault-{index:02d}.sqlite"
        if vault not in files and needs_vault(ledger):
            raise VaultLocked(str(vault), f"the file is missing, and ledger {ledger} was sealed with its keys")
    return places


def _opener(path: Path) -> Callable[[Sequence[bytes]], Vault]:
    return lambda root_keys: Vault.open_sqlite(path, root_keys)


def _on_server(settings: Settings, url: str) -> Iterator[VaultPlace]:
    from memory_actor.ledger_postgres import needs_vault, open_vault_postgres, vault_exists  # noqa: PLC0415 - psycopg
    from memory_actor.postgres import location_of  # noqa: PLC0415

    for index in range(settings.memory.actors):
        location = location_of(url, index)
        if needs_vault(location) or vault_exists(location):
            name = f"vault {index:02d} on PostgreSQL"
            yield VaultPlace(name, lambda keys, where=location: open_vault_postgres(where, keys), None)  # type: ignore[misc]


@contextmanager
def _all_open(places: Sequence[VaultPlace], root_keys: Sequence[bytes]) -> Iterator[list[Vault]]:
    """Every vault, open at once: what refuses to open does so before anything is changed."""
    with ExitStack() as stack:
        try:
            yield [stack.enter_context(place.open(root_keys)) for place in places]
        except KeyDamaged as error:
            raise TenantQuarantined(error.uid, f"{error.reason}; restore or delete it, then rotate") from error


def rotate_root(settings: Settings) -> dict[str, Any]:
    """Replace the root key; an unfinished rotation is taken up again. The system must not run on the folder.

    Raises: VaultLocked, StateFolderUnusable, LedgerFailed; TenantQuarantined for one whose key does not open. Until the
    last vault is wrapped anew both root keys stay, and the system can be started in between.
    """
    keys = KeyFolder(settings.keys_folder)
    places = find_vaults(settings)
    with _all_open(places, keys.root_keys()) as vaults:
        before = fingerprint(keys.root_keys()[-1])
        new = keys.begin_rotation()
        tenants = 0
        for vault in vaults:
            tenants += vault.rotate_root(new)
            vault.scrub()
    keys.finish_rotation()
    return {"root_key": fingerprint(new), "replaced": before, "vaults": len(places), "tenant_keys": tenants}


def rotate_tenant(settings: Settings, tenant: str) -> dict[str, Any]:
    """Replace one tenant's key, `tenant` being its name or its uid (32 hex digits). The system must not run.

    Raises: NotFound, and as `rotate_root`.
    """
    uid = tenant if _UID.match(tenant) else _uid_of(settings, tenant)
    if uid is None:
        raise NotFound("tenant", tenant)
    keys = KeyFolder(settings.keys_folder)
    with _all_open(find_vaults(settings), keys.root_keys()) as vaults:
        for vault in vaults:
            if vault.holds(uid):
                wrapped = vault.rotate_tenant(uid)
                vault.scrub()
                return {"tenant": tenant, "uid": uid, "data_keys": wrapped}
    raise NotFound("tenant", tenant)


def status(settings: Settings, *, running: bool) -> dict[str, Any]:
    """What can be said without opening a key: which root key there is, and what each vault is sealed under.

    A file that a running system holds is only named. Raises as `find_vaults`, but never for the lack of a root key.
    """
    keys = KeyFolder(settings.keys_folder)
    try:
        roots = [fingerprint(key) for key in keys.root_keys()]
    except VaultLocked:
        roots = []
    rows = []
    for place in find_vaults(settings):
        if place.file is None:
            rows.append({"vault": place.name})
        elif running:
            rows.append({"vault": place.name, "state": "in use"})
        else:
            rows.append({"vault": place.name, "state": "closed"} | inspect_file(place.file))
    return {
        "folder": str(keys.path),
        "root_keys": roots,
        "rotation": "unfinished" if keys.rotating else "none",
        "receipts_key": keys.signer().public_key.hex(),
        "vaults": rows,
    }


def _uid_of(settings: Settings, name: str) -> str | None:
    """A tenant's uid, read from the ledgers as they stand."""
    statement = "SELECT uid FROM tenant WHERE name = ?"
    for index in range(settings.memory.actors):
        if settings.ledger.url is None:
            path = ledger_path(settings.state_dir, index)
            found = _query_sqlite(path, statement, name) if path.is_file() else None
        else:
            found = _query_postgres(settings.ledger.url, index, statement, name)
        if found is not None:
            return found
    return None


def _query_sqlite(path: Path, statement: str, name: str) -> str | None:
    import sqlite3  # noqa: PLC0415 - here only

    from memory_actor.sqlite_errors import opening_error  # noqa: PLC0415

    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=0)) as driver:
            row = driver.execute(statement, (name,)).fetchone()
    except sqlite3.Error as error:
        raise opening_error(path, error) from error
    return None if row is None else str(row[0])


def _query_postgres(url: str, index: int, statement: str, name: str) -> str | None:
    from memory_actor.postgres import attach, connect, location_of, parse  # noqa: PLC0415 - psycopg

    with closing(connect(parse(location_of(url, index)), 5.0)) as driver, closing(attach(driver)) as connection:
        found: str | None = connection.execute(sa.text(statement.replace("?", ":name")), {"name": name}).scalar()
    return found
