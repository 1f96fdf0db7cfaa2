"""What a ledger database says of itself, and its migrations: the same for every engine, used by the openers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from memory_actor.crash_points import reached
from memory_actor.errors import BundleMismatch, LedgerCorrupt, VaultLocked
from memory_actor.ledger_rows import checksum
from memory_actor.ledger_schema import HEAD, actor_epoch, meta
from memory_actor.types import MemoryConfig

if TYPE_CHECKING:
    from alembic.config import Config

    from memory_actor.vault import Vault

UNSWEPT: Final = "unswept"
"""The meta row that stands while a migration has left bytes of deleted rows in the file."""

_IDENTITY = ("fingerprint", "key_size", "address_size", "latent_size", "address_scale", "latent_scale")


# -- meta rows --------------------------------------------------------------------------------------------------


def identity_of(config: MemoryConfig) -> bytes:
    """The bundle's numbers that give stored vectors their meaning, as the meta row `identity`."""
    return json.dumps({name: getattr(config, name) for name in _IDENTITY}).encode()


def check_identity(stored: bytes, config: MemoryConfig, location: str) -> None:
    """Raises BundleMismatch when the ledger was written under another bundle."""
    given = identity_of(config)
    if stored != given:
        raise BundleMismatch(location, _describe(stored), _describe(given))


def check_vault(stored: bytes, vault: Vault, location: str) -> None:
    """Raises VaultLocked when the ledger was sealed with the keys of another vault."""
    if stored != vault.identity.encode():
        raise VaultLocked(vault.location, f"it is not the vault that ledger {location} was sealed with")


def put_meta(connection: sa.Connection, values: dict[str, bytes]) -> None:
    """Write meta rows, replacing those of the same names."""
    connection.execute(sa.delete(meta).where(meta.c.name.in_(values)))
    rows = [{"name": name, "value": value, "checksum": checksum((name, value))} for name, value in values.items()]
    connection.execute(sa.insert(meta), rows)


def get_meta(rows: Iterable[Any], location: str, needed: Iterable[str] = ("identity", "salt")) -> dict[str, bytes]:
    """All meta rows (name, value, checksum) by name. Raises LedgerCorrupt when one of `needed` is lost or changed."""
    values = {name: value for name, value, stored in rows if checksum((name, value)) == stored}
    if not set(needed) <= values.keys():
        raise LedgerCorrupt(location, "its identity is damaged")
    return values


def take_epoch(connection: sa.Connection, owner: str, now: float) -> int:
    """Take the next epoch for `owner`; from the commit on every earlier incarnation is fenced."""
    epoch: int = (connection.execute(sa.select(sa.func.max(actor_epoch.c.epoch))).scalar() or 0) + 1
    reached("epoch.before_slot")
    connection.execute(sa.insert(actor_epoch), {"epoch": epoch, "owner": owner, "started_at": float(now)})
    return epoch


def _describe(identity: bytes) -> str:
    values = json.loads(identity)
    sizes = f"D {values['key_size']}, K {values['address_size']}, C {values['latent_size']}"
    return f"{values['fingerprint']} ({sizes}, scales {values['address_scale']} and {values['latent_scale']})"


# -- migrations (Alembic costs 0.3 s to import, so only when there is something to migrate) -------------------------


def known_revisions() -> set[str]:
    """The revisions that this release can migrate from."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above

    return {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}


def upgrade(connection: sa.Connection, vault: Vault, location: str) -> None:
    """Make or change the tables to revision HEAD inside the transaction that is open on `connection`.

    Facts of older revisions are sealed with keys from `vault`. Raises LedgerCorrupt for rows that are damaged.
    """
    from alembic import command  # noqa: PLC0415 - see above

    config = _alembic_config()
    config.attributes["connection"] = connection
    config.attributes["vault"] = vault
    try:
        command.upgrade(config, HEAD)
    except ValueError as damage:  # a row that does not match its checksum; migrations raise it for nothing else
        raise LedgerCorrupt(location, f"it cannot be migrated: {damage}") from damage


def _alembic_config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
