"""The checkpoints of one memory actor's tenants: taking, listing, granting, opening, retaining and purging them.

What a checkpoint is and how its files are written is `checkpoints.py`; here it is decided when, and the ledger is told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from memory_actor.checkpoint import Snapshot
from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpoints import (
    delete_checkpoint,
    delete_unregistered,
    find_manifests,
    read_checkpoint,
    rewrite_without,
    write_checkpoint,
)
from memory_actor.effects import StoredFact
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.eraser import Purged
from memory_actor.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointUnreadable,
    InvalidLocation,
    LocationUnavailable,
    NotFound,
)
from memory_actor.ledger_erasures import ErasureRow
from memory_actor.ledger_rows import TenantDamaged, TenantRow
from memory_actor.state_hash import state_hash
from memory_actor.tenant import sums
from memory_actor.types import CheckpointGrant, CheckpointInfo, MemoryConfig
from memory_actor.vault import DataKey, KeyDamaged
from memory_actor.waking import FACTS_AT_ONCE

log = logging.getLogger("larimar.checkpoints")

LOCAL: Final = "local"  # the location that cold tenants live in
_ATTEMPTS: Final = 3

T = TypeVar("T")


class CheckpointLedger(Protocol):
    """What this needs of the ledger."""

    def tenant_row(self, name: str) -> TenantRow | None: ...
    def facts(self, tenant: str, *, after_seq: int = 0, limit: int = FACTS_AT_ONCE) -> list[StoredFact]: ...
    def checkpoints(self, uid: str | None = None) -> list[CheckpointInfo]: ...
    def add_checkpoint(self, info: CheckpointInfo, replaces: str | None = None) -> Any: ...
    def remove_checkpoints(self, ids: Sequence[str]) -> Any: ...
    def erasures(self, pending_only: bool = True) -> list[ErasureRow]: ...
    def damaged_erasures(self) -> list[TenantDamaged]: ...


class CheckpointVault(Protocol):
    """What this needs of the vault."""

    def issue(self, wanted: Sequence[tuple[str, int]]) -> list[list[DataKey]]: ...
    def data_keys(self, uid: str, ids: Sequence[int]) -> dict[int, bytes]: ...
    def destroy(self, uid: str, ids: Sequence[int]) -> int: ...


class Checkpointing:
    """Thread-safe; no method may be called on the writer thread but `newest_snapshot` and `grant`."""

    def __init__(
        self,
        ledger: CheckpointLedger,
        vault: CheckpointVault,
        stores: Mapping[str, CheckpointStore],
        config: MemoryConfig,
        *,
        keep: int,
        clock: Callable[[], float],
        between_commits: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """`keep`: newest checkpoints retained per tenant and location. `between_commits(read)` runs `read` on the
        writer thread, where nothing changes meanwhile, and returns its result.
        """
        self._ledger, self._vault, self.stores, self._config = ledger, vault, dict(stores), config
        self._keep, self._clock, self._between_commits = keep, clock, between_commits
        #: One lock per incarnation, held from reading the facts of a checkpoint until it is registered, and while an
        #: erasure rewrites: so none can be published that holds a fact whose erasure is done.
        self._saving: dict[str, threading.RLock] = {}
        self._saving_gate = threading.Lock()
        #: Why checkpoints could not be read when their tenant woke or forgot, by id. The ledger has all of it.
        self.damaged: dict[str, str] = {}

    # -- taking -------------------------------------------------------------------------------------------------

    def take(self, name: str, location: str) -> CheckpointInfo:
        """Publish and register a checkpoint of one version of the tenant; older ones beyond `keep` go.

        Raises: InvalidLocation, LocationUnavailable, NotFound, TenantDamaged.
        """
        row, store = self._row(name), self._store(location)
        with self._saving_of(row.uid):
            snapshot = self.snapshot(name)
            if snapshot.uid != row.uid:
                raise NotFound("tenant", name)
            key = self._vault.issue([(row.uid, 1)])[0][0]
            info = write_checkpoint(store, snapshot, key, self._config, self._clock())
            self._ledger.add_checkpoint(info)
            self._retain(row.uid, location)
        return info

    def keep_cold(self, name: str) -> CheckpointInfo:
        """The newest sound local checkpoint when it is up to date, else a new one. Raises as `take`."""
        row = self._row(name)
        newest = self._newest(row.uid)
        if newest is not None and newest.version == row.version and newest.checkpoint_id not in self.damaged:
            return newest
        return self.take(name, LOCAL)

    def snapshot(self, name: str) -> Snapshot:
        """The tenant at one version, from the ledger alone: beside the writer, or between two commits if it is busy."""
        for _ in range(_ATTEMPTS):
            before = self._row(name)
            facts = self._facts(name)
            if self._ledger.tenant_row(name) == before:
                return self._made(before, facts)
        row, facts = self._between_commits(lambda: (self._row(name), self._facts(name)))
        return self._made(row, facts)

    def _made(self, row: TenantRow, facts: list[StoredFact]) -> Snapshot:
        total = SufficientStatistics.zeros(self._config.address_size, self._config.latent_size)
        for start in range(0, len(facts), FACTS_AT_ONCE):
            total.merge_(sums(self._config, facts[start : start + FACTS_AT_ONCE]))
        return Snapshot(
            tenant=row.name,
            uid=row.uid,
            retention=row.retention,
            salt=row.salt,
            created_at=row.created_at,
            version=row.version,
            state_hash=state_hash(self._config, total, (fact.fact_id for fact in facts)),
            sums=total,
            facts=tuple(sorted(facts, key=lambda fact: fact.fact_id)),
        )

    def _facts(self, name: str) -> list[StoredFact]:
        facts: list[StoredFact] = []
        while page := self._ledger.facts(name, after_seq=facts[-1].seq if facts else 0, limit=FACTS_AT_ONCE):
            facts += page
        return facts

    def _retain(self, uid: str, location: str) -> None:
        """Delete what is older than the newest `keep` checkpoints of this location."""
        held = [info for info in self._ledger.checkpoints(uid) if info.location == location]
        held.sort(key=lambda info: (info.version, info.created_at))
        for info in held[: -self._keep]:
            try:
                self._end(info)
            except LocationUnavailable as error:  # its key is gone; the files go with the next erasure at the latest
                log.warning("checkpoint_files_stay: %s", error)

    # -- reading ------------------------------------------------------------------------------------------------

    def of(self, uid: str) -> list[CheckpointInfo]:
        """All registered checkpoints of a tenant, oldest first."""
        return sorted(self._ledger.checkpoints(uid), key=lambda info: (info.created_at, info.version))

    def newest_hash(self, row: TenantRow) -> str | None:
        """The state hash of a cold tenant, when a local checkpoint of its very version knows it."""
        newest = self._newest(row.uid)
        return newest.state_hash if newest is not None and newest.version == row.version else None

    def newest_snapshot(self, row: TenantRow) -> Snapshot | None:
        """What the newest local checkpoint holds, or None: without one, or when it is damaged, the ledger is read."""
        for _ in range(_ATTEMPTS):
            newest = self._newest(row.uid)
            if newest is None or newest.version > row.version:
                return None
            try:
                return self.open(self.grant(newest))
            except (CheckpointDamaged, CheckpointUnreadable, CheckpointMismatch, LocationUnavailable) as error:
                if self._newest(row.uid) != newest:
                    continue  # an erasure replaced it meanwhile
                self.damaged[newest.checkpoint_id] = str(error)
                log.warning("checkpoint_passed_over: %s; the tenant wakes from the ledger, nothing is lost", error)
                return None
        return None

    def grant(self, info: CheckpointInfo) -> CheckpointGrant:
        """What it takes to read this checkpoint.

        Raises: CheckpointUnreadable when its key was destroyed; CheckpointDamaged, also as `ended`.
        """
        try:
            key = self._vault.data_keys(info.uid, [info.key_id]).get(info.key_id)
        except KeyDamaged as error:
            raise CheckpointDamaged(info.checkpoint_id, f"its key is damaged: {error.reason}") from error
        if key is None:
            raise CheckpointUnreadable(info.checkpoint_id)
        return CheckpointGrant(info, key, tuple(sorted(self.ended(info))))

    def ended(self, info: CheckpointInfo) -> set[str]:
        """Ids that ended and may still be in this checkpoint: no restore brings them back.

        Raises CheckpointDamaged when an erasure's row is damaged, whoever's: its tenant is part of what was changed.
        """
        if self._ledger.damaged_erasures():
            reason = "a note of what was forgotten is damaged, so what may not come back is not known (larimar doctor)"
            raise CheckpointDamaged(info.checkpoint_id, reason)
        pending = self._ledger.erasures(pending_only=True)
        return {one for row in pending if row.uid == info.uid for one in row.fact_ids}

    def open(self, grant: CheckpointGrant) -> Snapshot:
        """The contents of a checkpoint, of this actor or another, verified.

        Raises: CheckpointDamaged, CheckpointMismatch, InvalidLocation, LocationUnavailable.
        """
        return read_checkpoint(self._store(grant.info.location), grant.info, grant.file_key, self._config)

    def is_registered(self, info: CheckpointInfo) -> bool:
        """Whether it still stands as it was granted: an erasure replaces what held a forgotten fact."""
        return any(one.checkpoint_id == info.checkpoint_id for one in self._ledger.checkpoints(info.uid))

    # -- purging ------------------------------------------------------------------------------------------------

    def purge(self, uid: str, fact_ids: frozenset[str] | None) -> Purged:
        """Rid all checkpoints of a tenant of these facts, under new keys; None: delete all of them.

        Files that no checkpoint owns, left by a crash, go too. What can be done is done before LocationUnavailable is
        raised; doing it again goes on where that ended.
        """
        purged, failure = Purged(), None
        with self._saving_of(uid):
            for info in self._ledger.checkpoints(uid):
                try:
                    if fact_ids is None:
                        purged.deleted += self._end(info)
                    else:
                        self._rid(info, fact_ids, purged)
                except (LocationUnavailable, InvalidLocation) as error:
                    failure = error
            for location in self.stores:
                try:
                    purged.deleted += self._sweep(uid, location)
                except LocationUnavailable as error:
                    failure = error
            if fact_ids is None:
                with self._saving_gate:
                    self._saving.pop(uid, None)
        if isinstance(failure, InvalidLocation):
            raise LocationUnavailable(failure.args[0], "it holds checkpoints but is not configured any more")
        if failure is not None:
            raise failure
        return purged

    def _rid(self, info: CheckpointInfo, fact_ids: frozenset[str], purged: Purged) -> None:
        """Replace a checkpoint by one without these facts, if it holds any."""
        store = self._store(info.location)
        try:
            old_key = self.grant(info).file_key
            key = self._vault.issue([(info.uid, 1)])[0][0]
            new = rewrite_without(store, info, old_key, fact_ids, key, self._config, self._clock())
        except (CheckpointDamaged, CheckpointUnreadable, CheckpointMismatch) as error:
            # It may hold one of them, and nobody can take it out: the whole checkpoint goes.
            log.warning("checkpoint_deleted: %s", error)
            purged.deleted += self._end(info)
            self.damaged[info.checkpoint_id] = f"{error} (deleted: it may have held what was forgotten)"
            return
        if new is info:
            self._vault.destroy(info.uid, [key.id])  # it was not used
            return
        self._ledger.add_checkpoint(new, replaces=info.checkpoint_id)
        self._vault.destroy(info.uid, [info.key_id])
        purged.rewritten.append((info.manifest_sha256, new.manifest_sha256))
        purged.deleted += delete_checkpoint(store, info)

    def _end(self, info: CheckpointInfo) -> list[str]:
        """Unregister a checkpoint, destroy its key, delete its files; hashes of the files."""
        store = self._store(info.location)
        self._ledger.remove_checkpoints([info.checkpoint_id])
        self.damaged.pop(info.checkpoint_id, None)
        self._vault.destroy(info.uid, [info.key_id])
        return delete_checkpoint(store, info)

    def _sweep(self, uid: str, location: str) -> list[str]:
        """Delete this tenant's files that belong to no registered checkpoint, and their keys: a crash left them."""
        store = self.stores[location]
        registered = {info.checkpoint_id for info in self._ledger.checkpoints(uid) if info.location == location}
        strays = [one for one in find_manifests(store, uid=uid) if one.checkpoint_id not in registered]
        self._vault.destroy(uid, [one.key_id for one in strays if one.uid == uid])
        return delete_unregistered(store, uid, registered)

    # -- inside -------------------------------------------------------------------------------------------------

    def _newest(self, uid: str) -> CheckpointInfo | None:
        held = [info for info in self._ledger.checkpoints(uid) if info.location == LOCAL]
        return max(held, key=lambda info: (info.version, info.created_at), default=None)

    def _store(self, location: str) -> CheckpointStore:
        store = self.stores.get(location)
        if store is None:
            raise InvalidLocation(location, ", ".join(sorted(self.stores)))
        return store

    def _row(self, name: str) -> TenantRow:
        row = self._ledger.tenant_row(name)
        if row is None:
            raise NotFound("tenant", name)
        return row

    def _saving_of(self, uid: str) -> threading.RLock:
        with self._saving_gate:
            return self._saving.setdefault(uid, threading.RLock())
