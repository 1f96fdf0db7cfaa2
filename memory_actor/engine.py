"""Everything one memory actor does, as a plain object: tenants, the ledger under them, one writer.

The Ray actor (`actor.py`) is a shell over this. Changes, here, return futures of the writer thread; reads
(`engine_reads.py`) and safekeeping (`engine_keeping.py`) are called on reader threads. `engine_parts.py` puts it
together. Clock and id sources are injected.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpointing import LOCAL
from memory_actor.draft import Draft
from memory_actor.effects import Erasure, TenantCreated, TenantDeleted
from memory_actor.engine_keeping import EngineKeeping
from memory_actor.engine_settings import EngineSettings, random_fact_id, random_uid
from memory_actor.errors import NotFound
from memory_actor.key_folder import KeyFolder
from memory_actor.ledger_rows import TenantRow
from memory_actor.replies import pack_receipt, pack_summary, pack_write, unpack_receipt, unpack_summary, unpack_write
from memory_actor.storage import open_storage
from memory_actor.tenant import Prepared
from memory_actor.types import (
    EncodedFacts,
    FactText,
    ForgetReceipt,
    Idempotency,
    MemoryConfig,
    Retention,
    TenantSummary,
    WriteReply,
)
from memory_actor.writer import Command, Group, Plan

__all__ = ["EngineSettings", "MemoryEngine", "random_fact_id"]


class MemoryEngine(EngineKeeping):
    """The tenants of one memory actor. What was acknowledged is visible to whoever asks."""

    @classmethod
    def open(
        cls, index: int, state_dir: Path, config: MemoryConfig, settings: EngineSettings, **injected: Any
    ) -> MemoryEngine:
        """Open (or create) the storage of memory actor `index` and take its next epoch. Raises StartupErrors."""
        owner = f"pid {os.getpid()} incarnation {secrets.token_hex(8)}"
        keys = settings.keys_folder or state_dir / "keys"
        locations = {LOCAL: str(state_dir / "checkpoints"), **settings.locations}
        stores = {name: CheckpointStore(name, uri) for name, uri in locations.items()}
        ledger = open_storage(
            state_dir,
            index,
            settings.ledger_url,
            config,
            owner,
            injected.get("clock", time.time)(),
            keys=keys,
            reserve_bytes=settings.reserve_mb << 20,
        )
        try:
            return cls(index, ledger, config, settings, signer=KeyFolder(keys).signer(), stores=stores, **injected)
        except BaseException:
            ledger.close()  # or its lock would outlive the failure
            raise

    def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> Future[TenantSummary]:
        """Begin a tenant. Raises (in the future) TenantExists."""
        salt, uid = secrets.token_bytes(32), random_uid()

        def plan(group: Group) -> Plan:
            self._require_free(group, name)
            row = TenantRow(name, retention, salt, group.now, version=0, next_seq=1, uid=uid, facts=0)
            memory = self._new_memory(row)
            group.drafts[name] = Draft(memory)
            created = TenantCreated(name, retention, salt, group.now, uid)
            return Plan(created, memory.summary(with_hash=True), lambda: self._catalog.put(row, memory))

        return self._writer.submit(
            Command("", plan, adds=True, idempotency=idempotency, record=pack_summary, replay=unpack_summary)
        )

    def delete_tenant(self, name: str, idempotency: Idempotency) -> Future[TenantSummary]:
        """End a tenant with all its facts; the reply is its last summary and names the erasure.

        Works on cold and quarantined tenants. Raises (in the future) NotFound.
        """

        def plan(group: Group) -> Plan:
            if name in group.drafts:
                draft = self._draft(group, name)
                summary, before = draft.summary(), draft.state_hash()
            else:
                summary, before = self._catalog.resident(name).summary(), self._hash_if_known(name)
            erasure = replace(self._erasure(group), state_hash_before=before)
            group.drafts[name] = None

            def apply() -> None:
                self._catalog.remove(name)
                self._eraser.note(erasure.receipt_id, group.now)

            reply = replace(summary, receipt_id=erasure.receipt_id)
            return Plan(TenantDeleted(name, erasure), reply, apply)

        return self._writer.submit(
            Command("", plan, idempotency=idempotency, record=pack_summary, replay=unpack_summary)
        )

    def write(
        self,
        tenant: str,
        texts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None = None,
    ) -> Future[WriteReply]:
        """Write N facts. Resolved when durable and visible; refused whole or applied whole.

        Refused with DeadlineExceeded when its commit has not begun `timeout_s` after this call.
        """

        def plan(group: Group) -> Plan:
            fact_ids = tuple(self._new_fact_id() for _ in texts)
            draft = self._draft(group, tenant)
            prepared = draft.write(texts, encoded, fact_ids, group.now, self._erasure(group))
            reply = WriteReply(tenant, fact_ids, prepared.superseded, prepared.effect.version)
            return self._change(group, draft, prepared, reply)

        return self._writer.submit(
            Command(
                tenant,
                plan,
                facts=len(texts),
                adds=True,
                idempotency=idempotency,
                record=pack_write,
                replay=unpack_write,
                timeout_s=timeout_s,
            )
        )

    def forget(
        self,
        tenant: str,
        fact_ids: Sequence[str],
        idempotency: Idempotency | None,
        *,
        dry_run: bool = False,
        timeout_s: float | None = None,
    ) -> Future[ForgetReceipt]:
        """Forget facts as if they had never been written; a dry run says what would happen and changes nothing.

        Their bytes are destroyed within the erase window; the receipt names that erasure.
        """

        def plan(group: Group) -> Plan:
            draft = Draft(self.tenant(tenant)) if dry_run else self._draft(group, tenant)
            before = draft.state_hash()
            prepared = draft.forget(fact_ids)
            found = prepared.effect.fact_ids  # type: ignore[union-attr]
            receipt = ForgetReceipt(
                tenant=tenant,
                forgotten=found,
                not_found=tuple(one for one in dict.fromkeys(fact_ids) if one not in set(found)),
                state_hash_before=before,
                state_hash_after=draft.state_hash() if found else before,
                version=prepared.effect.version,
                facts=draft.facts,
                dry_run=dry_run,
            )
            if dry_run or not found:
                return Plan(None, receipt, _nothing)
            erasure = replace(self._erasure(group), state_hash_before=before, state_hash_after=receipt.state_hash_after)
            receipt = replace(receipt, receipt_id=erasure.receipt_id, erase_by=erasure.erase_by)
            prepared = replace(prepared, effect=replace(prepared.effect, erasure=erasure))
            return self._change(group, draft, prepared, receipt)

        return self._writer.submit(
            Command(
                tenant,
                plan,
                facts=len(fact_ids),
                idempotency=None if dry_run else idempotency,
                record=pack_receipt,
                replay=unpack_receipt,
                timeout_s=timeout_s,
            )
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _change(self, group: Group, draft: Draft, prepared: Prepared, reply: WriteReply | ForgetReceipt) -> Plan:
        """The plan of a change to the facts of a tenant. Applied to the memory it was drafted on, come what may."""
        memory, erasure = draft.tenant, prepared.effect.erasure

        def apply() -> None:
            memory.apply(prepared)
            if erasure is not None:
                self._eraser.note(erasure.receipt_id, group.now)
            self._evictor.look()

        return Plan(prepared.effect, reply, apply, reply.ms)

    def _erasure(self, group: Group) -> Erasure:
        return Erasure(self._new_receipt_id(), group.now + self._settings.erase_window_s)

    def _draft(self, group: Group, name: str) -> Draft:
        """The group's draft on a tenant: later commands of one commit see what earlier ones will have done."""
        if name not in group.drafts:
            group.drafts[name] = Draft(self.tenant(name))
        draft: Draft | None = group.drafts[name]
        if draft is None:
            raise NotFound("tenant", name)
        return draft


def _nothing() -> None:
    """The change that a dry run makes."""
