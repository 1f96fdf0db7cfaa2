"""What an engine does for safety's sake: sleep, checkpoints, grants, restores, erasing now, diagnosis.

Called on reader threads; all of it may take as long as a disk or a bucket takes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from memory_actor.checkpoint import Snapshot
from memory_actor.doctor import Finding, examine
from memory_actor.draft import Draft
from memory_actor.effects import Erasure, TenantCreated, TenantRestored
from memory_actor.engine_reads import EngineReads
from memory_actor.engine_settings import random_uid
from memory_actor.errors import CheckpointMismatch, Fenced, LarimarError, LedgerFailed, NotFound, TenantExists
from memory_actor.ledger_rows import TenantRow
from memory_actor.replies import pack_restored, unpack_restored
from memory_actor.restoring import Contents
from memory_actor.types import (
    CheckpointGrant,
    CheckpointInfo,
    Idempotency,
    Residency,
    RestoreReply,
    TenantSummary,
)
from memory_actor.writer import Command, Group, Plan

_LET_GO_ATTEMPTS = 3


class EngineKeeping(EngineReads):
    """The careful half of `MemoryEngine`."""

    # -- residency ----------------------------------------------------------------------------------------------

    def sleep(self, name: str) -> TenantSummary:
        """Take a tenant out of memory, its local checkpoint up to date. A tenant that is written to may stay.

        Raises: NotFound, TenantQuarantined, LocationUnavailable.
        """
        for _ in range(_LET_GO_ATTEMPTS):
            self._require_serving()
            resident = self._catalog.resident(name)
            resident.require_sound()
            if resident.residency is not Residency.HOT:
                break
            self._saving(name, lambda: self._checkpointing.keep_cold(name))
            self._let_go(name)
        return self._catalog.resident(name).summary()

    # -- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint(self, name: str, location: str) -> CheckpointInfo:
        """Publish and register a checkpoint of one version. Beside the writer.

        Raises: NotFound, TenantQuarantined, InvalidLocation, LocationUnavailable.
        """
        return self._saving(name, lambda: self._checkpointing.take(name, location))

    def _saving(self, name: str, save: Callable[[], CheckpointInfo]) -> CheckpointInfo:
        """Ledger and vault take nothing more after a failed change, so the process ends, as after a failed commit."""
        try:
            return self._listing(name, save)
        except (LedgerFailed, Fenced) as error:
            self._poison(error)
            raise

    def grant(self, name: str, checkpoint_id: str | None) -> CheckpointGrant:
        """What it takes to read one of the tenant's checkpoints, the newest for None; of a quarantined tenant too.

        Raises: NotFound, CheckpointUnreadable, CheckpointDamaged.
        """
        held = self.checkpoints(name)
        if checkpoint_id is None:
            newest = max(held, key=lambda info: (info.version, info.created_at), default=None)
        else:
            newest = next((info for info in held if info.checkpoint_id == checkpoint_id), None)
        if newest is None:
            raise NotFound("checkpoint", checkpoint_id or f"of tenant {name}")
        return self._checkpointing.grant(newest)

    # -- restoring ----------------------------------------------------------------------------------------------

    def restore(
        self,
        name: str,
        grant: CheckpointGrant | None,
        version: int | None,
        in_place: bool,
        idempotency: Idempotency,
    ) -> Future[RestoreReply]:
        """Fill a new tenant from a checkpoint of any actor, or one that exists, in place of what it holds.

        Reads the checkpoint on this thread. Without a grant only the reply to an earlier request of that key can be
        given. Facts that were forgotten since do not come back. Raises, here or in the future: NotFound, TenantExists,
        CheckpointDamaged, CheckpointMismatch, CheckpointUnreadable, InvalidLocation, LocationUnavailable.
        """
        self._require_serving()
        plan: Callable[[Group], Plan] = _refused(NotFound("checkpoint", "of this request"))
        facts = 1
        # A known key is answered by the writer, whatever became of the checkpoint.
        if self._ledger.idempotent_reply("", idempotency) is None:
            if grant is None:
                raise NotFound("checkpoint", "of this request")
            snapshot = self._restorer.read(grant, version)
            facts = len(snapshot.facts)
            make = self._restored_in_place if in_place else self._restored_anew
            plan = make(name, grant, snapshot)
        return self._writer.submit(
            Command(
                "",
                plan,
                facts=facts,
                adds=True,
                idempotency=idempotency,
                record=pack_restored,
                replay=unpack_restored,
            )
        )

    def _restored_anew(self, name: str, grant: CheckpointGrant, snapshot: Snapshot) -> Callable[[Group], Plan]:
        uid = random_uid()
        row = TenantRow(name, snapshot.retention, snapshot.salt, 0.0, snapshot.version, next_seq=1, uid=uid, facts=0)
        contents = self._restorer.contents(snapshot, row)

        def plan(group: Group) -> Plan:
            self._require_free(group, name)
            created = TenantCreated(name, row.retention, row.salt, group.now, uid)
            contents.memory.created_at = group.now
            whole = replace(contents, row=replace(contents.row, created_at=group.now))
            return self._restoration(group, grant, whole, created=created)

        return plan

    def _restored_in_place(self, name: str, grant: CheckpointGrant, snapshot: Snapshot) -> Callable[[Group], Plan]:
        expected = self._target(name, grant)
        ready = self._restorer.contents(snapshot, expected)

        def plan(group: Group) -> Plan:
            if name in group.drafts and group.drafts[name] is None:
                raise NotFound("tenant", name)
            draft: Draft | None = group.drafts.get(name)
            allowed = self._restorer.still_allowed(snapshot, grant, draft.ended if draft else frozenset())
            target = self._target(name, grant, draft)
            contents = ready
            if allowed is not snapshot or target != expected:
                contents = self._restorer.contents(allowed, target)
            before = draft.state_hash() if draft else self._hash_if_known(name)
            erasure = Erasure(
                self._new_receipt_id(), group.now + self._settings.erase_window_s, before, contents.state_hash
            )
            return self._restoration(group, grant, contents, erasure=erasure)

        return plan

    def _target(self, name: str, grant: CheckpointGrant, draft: Draft | None = None) -> TenantRow:
        """The row of a tenant that is about to be restored in place. Raises NotFound, CheckpointMismatch."""
        row = self._ledger.tenant_row(name)
        if row is None:
            raise NotFound("tenant", name)
        if row.uid != grant.info.uid:
            # Another tenant's digests are keyed by another salt: its facts would not be recognised again.
            raise CheckpointMismatch(grant.info.checkpoint_id, "its tenant", grant.info.tenant, name)
        if draft is not None:
            row = replace(row, version=draft.version, next_seq=draft.next_seq)
        return replace(row, version=row.version + 1)

    def _restoration(
        self,
        group: Group,
        grant: CheckpointGrant,
        contents: Contents,
        *,
        created: TenantCreated | None = None,
        erasure: Erasure | None = None,
    ) -> Plan:
        row = contents.row
        effect = TenantRestored(row.name, row.version, contents.facts, created, erasure)
        group.drafts[row.name] = Draft(contents.memory)
        reply = self._restorer.reply(contents, grant, in_place=created is None)

        def apply() -> None:
            self._catalog.put(row, contents.memory)
            if erasure is not None:
                self._eraser.note(erasure.receipt_id, group.now)
            self._evictor.look()

        return Plan(effect, reply, apply, reply.ms)

    def _require_free(self, group: Group, name: str) -> None:
        """Raise TenantExists unless no tenant has this name when the commands before this one are carried out."""
        taken = group.drafts[name] is not None if name in group.drafts else name in self._catalog
        if taken:
            raise TenantExists(name)

    def _hash_if_known(self, name: str) -> str:
        """The state hash of a tenant that need not be in memory; "" when it would have to be loaded to tell."""
        resident = self._catalog.resident(name)
        memory = resident.memory
        if memory is not None:
            return memory.state_hash()
        return "" if resident.damage is not None else self._checkpointing.newest_hash(resident.row) or ""

    # -- erasing, diagnosis -------------------------------------------------------------------------------------

    def erase_now(self) -> int:
        """Erase everything that is pending, on this thread, without waiting for the next pass; how many were done.

        Storage errors end the process, as they do in the background. Raises Overloaded, Unavailable.
        """
        self._require_serving()
        try:
            return self._eraser.run()
        except (OSError, LarimarError) as error:
            if not (isinstance(error, LarimarError) and error.code in {"overloaded", "unavailable"}):
                self._poison(error)
            raise

    def doctor(self, name: str | None) -> list[Finding]:
        """What is wrong with one tenant, or with everything here; see `doctor.py`. Raises NotFound."""
        if name is not None:
            self._catalog.resident(name)
        return examine(self._ledger, self._checkpointing.stores, self._config, name, now=self._clock())


def _refused(refusal: LarimarError) -> Callable[[Group], Plan]:
    def plan(_: Group) -> Plan:
        raise refusal

    return plan
