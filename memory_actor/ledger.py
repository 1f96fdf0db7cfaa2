"""The ledger: the durable truth from which every memory is rebuilt. What `commit` returned from survives anything.

SQL through SQLAlchemy Core; the statements are the same for every engine, and `Ledger.open` dispatches on the scheme:
`ledger_sqlite` for files, `ledger_postgres` for servers. Facts are sealed with keys from the vault, which are durable
before the commit that uses them; forgetting notes in the same commit which keys and files are to be destroyed.

Deleted rows are overwritten in the file. Copies of what they held, sealed, may stay in the write-ahead log until
`scrub`, at the latest until `close`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import sqlalchemy as sa

from memory_actor.crash_points import reached
from memory_actor.effects import FactsWritten, TenantCreated, TenantRestored
from memory_actor.errors import LedgerFailed, SettingsInvalid, StorageFull
from memory_actor.ledger_erasures import ErasureRow
from memory_actor.ledger_keys import KeyStore
from memory_actor.ledger_opened import OpenedLedger
from memory_actor.ledger_reader import LedgerReader
from memory_actor.ledger_registry import LedgerRegistry
from memory_actor.ledger_rows import TenantDamaged, TenantRow, require_uid
from memory_actor.ledger_schema import idempotency
from memory_actor.ledger_session import key_damage
from memory_actor.ledger_sqlite import open_sqlite
from memory_actor.ledger_writer import EffectRefused, GroupWriter, LedgerEntry
from memory_actor.sealing import SealBroken
from memory_actor.types import MemoryConfig
from memory_actor.vault import Vault

__all__ = ["ErasureRow", "Ledger", "LedgerEntry", "TenantDamaged", "TenantRow"]

RESERVE_BYTES: Final = 64 << 20
"""Free space that writes leave alone, so that forgetting and recovery never lack it."""

_PRUNE = sa.delete(idempotency).where(idempotency.c.created_at < sa.bindparam("before"))


class Ledger(LedgerReader, LedgerRegistry):
    """One memory actor's ledger. Safe to share between threads: one lock, held for one transaction or one page."""

    def __init__(self, opened: OpenedLedger, config: MemoryConfig, reserve_bytes: int = RESERVE_BYTES) -> None:
        """Use `open`."""
        super().__init__(opened, config)
        self._key_store = KeyStore(opened.vault)
        self._reserve_bytes = reserve_bytes

    @classmethod
    def open(
        cls,
        location: Path | str,
        config: MemoryConfig,
        owner: str,
        now: float,
        vault: Vault,
        *,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> Self:
        """Open or create a ledger, migrate it and take the next epoch, which fences every earlier incarnation.

        Args: location: a path, `sqlite:///PATH` or a postgresql URL. owner: who takes the epoch, for people. now:
        seconds. vault: the ledger's from now on, closed with it; still the caller's when this raises.
        Raises: StateFolderUnusable, LedgerCorrupt, BundleMismatch, VaultLocked (sealed with another vault),
        SettingsInvalid; then nothing was changed.
        """
        if isinstance(location, str):
            scheme, separator, rest = location.partition("://")
            if separator and scheme.partition("+")[0] == "postgresql":
                from memory_actor.ledger_postgres import open_postgres  # noqa: PLC0415 - needs psycopg, few use it

                return cls._taken_over(open_postgres(location, config, owner, now, vault), config, reserve_bytes)
            if separator and scheme.partition("+")[0] != "sqlite":
                raise SettingsInvalid("ledger.url", f"{scheme!r} ledgers are not supported; use sqlite or postgresql")
            location = Path(rest.removeprefix("/")) if separator else Path(location)
        return cls._taken_over(open_sqlite(location, config, owner, now, vault), config, reserve_bytes)

    @classmethod
    def _taken_over(cls, opened: OpenedLedger, config: MemoryConfig, reserve_bytes: int) -> Self:
        try:
            reached("epoch.after_slot")
        except OSError as error:
            opened.close()
            raise LedgerFailed(opened.location, error.strerror or type(error).__name__) from error
        return cls(opened, config, reserve_bytes)

    # -- writing ------------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[LedgerEntry], now: float) -> None:
        """Make a group of entries durable, all or none; on return they are on the disk.

        The caller has looked up each idempotency key, and no key comes twice in a group.
        Raises: StorageFull, TenantDamaged: nothing was begun, and other groups can be committed. Fenced, LedgerFailed:
        the ledger takes no further commit, since only a replay can tell what was stored.
        """
        with self._lock:
            with self._stopping():
                self._require_open()
            wanted, created = self._plan(entries)
            if wanted:
                self._require_space()
            try:
                with self._stopping():
                    for uid in created:
                        require_uid(uid)
                        self.vault.create_tenant(uid)
                    keys = self._key_store.take(wanted)
                    reached("log.before_begin")
            except SealBroken as error:
                raise self._without_key(entries, error) from error
            with self._writing():
                writer = GroupWriter(
                    self._connection,
                    self._config,
                    self._opened.salt,
                    self.epoch,
                    now,
                    known=self._known,
                    keys=keys,
                )
                for entry in entries:
                    writer.add(entry)
                writer.finish()
                reached("log.rows_written")
            self._know(writer.tenants)
            with self._stopping():
                reached("log.after_commit_before_apply")

    def require_space(self) -> None:
        """Raises StorageFull while the disk has less room than the reserve: what adds facts is to be refused."""
        with self._lock:
            self._require_space()

    def prune_idempotency(self, before: float) -> int:
        """Drop the replies stored before that time; returns how many. Raises Fenced, LedgerFailed."""
        with self._lock, self._writing():
            return self._connection.execute(_PRUNE, {"before": before}).rowcount

    def scrub(self) -> None:
        """Leave no bytes of deleted rows and destroyed keys in log and files. Raises LedgerFailed."""
        beside = self._opened.truncates_beside_commits
        with nullcontext() if beside else self._lock, self._stopping():
            self._require_open()
            reached("truncate.before")
            self._opened.truncate_log()
            self.vault.scrub()
            reached("truncate.after")

    # -- life ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the file, then the vault; may be called twice."""
        with self._lock:
            if not self._connection.closed:
                self._opened.close()
        self.vault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _plan(self, entries: Sequence[LedgerEntry]) -> tuple[Counter[str], list[str]]:
        """How many facts begin in each incarnation, and the incarnations that begin. Raises TenantDamaged."""
        wanted: Counter[str] = Counter()
        created: list[str] = []
        begun: dict[str, str] = {}  # incarnations of this very group by tenant
        for entry in entries:
            effect = entry.effect
            start = effect.created if isinstance(effect, TenantRestored) else effect
            if isinstance(start, TenantCreated):
                begun[start.tenant] = start.uid
                created.append(start.uid)
            if isinstance(effect, (FactsWritten, TenantRestored)) and effect.facts:
                uid = begun.get(effect.tenant) or self._stored_uid(effect.tenant)
                wanted[uid] += len(effect.facts)
        return wanted, created

    def _stored_uid(self, name: str) -> str:
        row = self._tenant(name)
        if row is None:
            with self._stopping():
                raise EffectRefused(f"tenant {name!r} is not in the ledger")
        return row.uid

    def _require_space(self) -> None:
        with self._stopping():
            free = self._opened.free_bytes()
        if free is not None and free < self._reserve_bytes:
            raise StorageFull(self.location, free >> 20, self._reserve_bytes >> 20)

    def _without_key(self, entries: Sequence[LedgerEntry], error: SealBroken) -> TenantDamaged:
        """The vault's complaint about one of the incarnations of a group, as one about its tenant."""
        uid = getattr(error, "uid", None)
        names = [entry.effect.tenant for entry in entries if entry.effect is not None]
        known = [name for name in names if (row := self._known.get(name)) is not None and row.uid == uid]
        return key_damage((known or names)[0], error)
