"""Filling a tenant from a checkpoint: into a new one, or in place of what it holds.

The checkpoint is read and the memory built before the command is queued, so that the writer has little left to do.
What was forgotten since does not come back: its ids are left out, and a checkpoint that was rewritten meanwhile is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace

from memory_actor.checkpoint import Snapshot
from memory_actor.checkpointing import Checkpointing
from memory_actor.crash_points import reached
from memory_actor.effects import StoredFact
from memory_actor.errors import CheckpointMismatch, CheckpointUnreadable
from memory_actor.ledger_rows import TenantRow
from memory_actor.tenant import TenantMemory
from memory_actor.types import CheckpointGrant, MemoryConfig, RestoreReply


@dataclass(frozen=True, slots=True)
class Contents:
    """What a tenant will hold: its facts at their positions, and the memory of them. `row` is the tenant's new one."""

    row: TenantRow
    facts: tuple[StoredFact, ...]
    memory: TenantMemory
    state_hash: str


class Restorer:
    """Reads checkpoints into contents. `new_memory(row)` is an empty memory of that tenant."""

    def __init__(
        self, checkpoints: Checkpointing, config: MemoryConfig, new_memory: Callable[[TenantRow], TenantMemory]
    ) -> None:
        self._checkpoints, self._config, self._new_memory = checkpoints, config, new_memory

    def read(self, grant: CheckpointGrant, version: int | None) -> Snapshot:
        """The checkpoint as of `version` (None: its own) less what may not come back.

        Raises: CheckpointDamaged, CheckpointMismatch, InvalidLocation, LocationUnavailable.
        """
        snapshot = self._checkpoints.open(grant)
        if version is not None:
            if version > snapshot.version:
                what = grant.info.checkpoint_id
                raise CheckpointMismatch(what, "version", snapshot.version, f"{version} or later")
            snapshot = snapshot.up_to(version, self._config)
        return snapshot.without(grant.excluded, self._config)

    def still_allowed(self, snapshot: Snapshot, grant: CheckpointGrant, ended: Set[str]) -> Snapshot:
        """The snapshot less what was forgotten since it was read; `ended` are ids not even committed yet.

        For a tenant of this actor, on the writer thread. Raises CheckpointUnreadable when an erasure replaced the
        checkpoint meanwhile: what that took out is not known here any more; CheckpointDamaged as `Checkpointing.ended`.
        """
        gone = self._checkpoints.ended(grant.info) | ended
        # In this order: an erasure replaces checkpoints first and is done after that.
        if not self._checkpoints.is_registered(grant.info):
            raise CheckpointUnreadable(grant.info.checkpoint_id)
        return snapshot.without(gone, self._config)

    def contents(self, snapshot: Snapshot, row: TenantRow) -> Contents:
        """The snapshot as the contents of the tenant `row`, whose `next_seq` is the position of the first fact."""
        reached("restore.mid_copy")
        ordered = sorted(snapshot.facts, key=lambda fact: fact.seq)
        facts = tuple(replace(fact, seq=row.next_seq + i, supersedes=None) for i, fact in enumerate(ordered))
        memory = self._new_memory(row)
        memory.load(snapshot, {fact.fact_id: fact.seq for fact in facts})
        memory.version, memory.next_seq = row.version, row.next_seq + len(facts)
        filled = replace(row, facts=len(facts), next_seq=memory.next_seq)
        return Contents(filled, facts, memory, snapshot.state_hash)

    def reply(self, contents: Contents, grant: CheckpointGrant, *, in_place: bool) -> RestoreReply:
        return RestoreReply(
            tenant=contents.row.name,
            checkpoint_id=grant.info.checkpoint_id,
            facts=len(contents.facts),
            version=contents.row.version,
            state_hash=contents.state_hash,
            in_place=in_place,
        )
