"""What is wrong with stored data: every row opened, every checkpoint read, every promise of erasure looked up.

Changes nothing. The actor runs it beside the writer, `larimar doctor` on the files of a system that does not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from memory_actor.checkpoint_store import CheckpointStore
from memory_actor.checkpoints import read_checkpoint
from memory_actor.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    LedgerCorrupt,
    LocationUnavailable,
    StorageFull,
)
from memory_actor.ledger import Ledger
from memory_actor.ledger_rows import TenantDamaged, TenantRow
from memory_actor.types import CheckpointInfo, MemoryConfig
from memory_actor.vault import KeyDamaged

ERROR: Final = "error"
WARNING: Final = "warning"

_FACTS_AT_ONCE: Final = 256
_OTHERS_SAFE: Final = "All other tenants; nothing was changed by looking"
_LEDGER_SAFE: Final = "The tenant's facts are whole in the ledger; it is served and wakes from there"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what happened, to which tenant (None: to all), what is safe, what to do.

    `severity` is `error` (something is refused, or a promise is broken) or `warning` (all is served, but a promise is
    weaker). No text holds content.
    """

    code: str
    severity: str
    tenant: str | None
    what: str
    safe: str
    cure: str


def examine(
    ledger: Ledger,
    stores: Mapping[str, CheckpointStore],
    config: MemoryConfig,
    tenant: str | None = None,
    *,
    now: float,
) -> list[Finding]:
    """The findings about one tenant, or about everything in this ledger.

    `stores` are the checkpoint locations by name; `now` is in seconds since the epoch. Raises LedgerFailed.
    """
    findings = [] if tenant is not None else list(_of_the_ledger(ledger))
    for damage in ledger.damaged_tenants():
        if tenant in {None, damage.args[0]}:
            findings.append(_unknown_tenant(damage))
    for row in ledger.tenants():
        if tenant in {None, row.name}:
            findings += _of_tenant(ledger, stores, config, row)
    findings += [
        Finding(
            "erasure_overdue",
            ERROR,
            row.tenant,
            f"erasure {row.receipt_id} was to be done by {now - row.erase_by:.0f} s ago and is not",
            "What was forgotten is not answered with, listed or restored any more; its data key is destroyed first",
            "See whether a checkpoint location is unreachable (warnings here and in the log); it is retried by itself",
        )
        for row in ledger.erasures(pending_only=True)
        if row.erase_by < now and tenant in {None, row.tenant}
    ]
    return findings


# -- the ledger as a whole --------------------------------------------------------------------------------------


def _of_the_ledger(ledger: Ledger) -> Iterator[Finding]:
    try:
        if not ledger.audit_chain_ok():
            yield Finding(
                "audit_broken",
                ERROR,
                None,
                f"the audit chain of {ledger.location} is broken: an entry was changed, lost or inserted",
                "Facts are sealed one by one and do not depend on the chain",
                "Keep a copy of the ledger for whoever investigates; who may write to the state folder?",
            )
    except LedgerCorrupt as error:
        yield Finding("ledger_corrupt", ERROR, None, str(error), "What can still be read is served", _new_ledger())
    try:
        ledger.require_space()
    except StorageFull as full:
        yield Finding("storage_full", ERROR, None, str(full), "Reads and forgets go on", "Free space on that disk")
    for damage in ledger.damaged_registrations():
        yield Finding(
            "registration_damaged",
            ERROR,
            damage.args[0],
            damage.args[1],
            _LEDGER_SAFE,
            "An erasure or a checkpoint may be left that nobody destroys: restore a fresh checkpoint as a new tenant, "
            "then delete this one",
        )


def _new_ledger() -> str:
    return "Restore a copy of the ledger and its vault, or start on an empty state folder and restore from checkpoints"


def _unknown_tenant(damage: TenantDamaged) -> Finding:
    name, reason = damage.args
    return Finding(
        "tenant_row_damaged",
        ERROR,
        name,
        f"the row that names the tenant is damaged: {reason}",
        f"Its checkpoints. {_OTHERS_SAFE}",
        f"'larimar restore -t NEW --from {name}', then 'larimar tenant delete {name}'",
    )


# -- one tenant -------------------------------------------------------------------------------------------------


def _of_tenant(
    ledger: Ledger, stores: Mapping[str, CheckpointStore], config: MemoryConfig, row: TenantRow
) -> list[Finding]:
    sound: list[CheckpointInfo] = []
    findings: list[Finding] = []
    for info in ledger.checkpoints(row.uid):
        problem = _checkpoint_problem(ledger, stores, config, info)
        if problem is None:
            sound.append(info)
        else:
            findings.append(problem)
    damage = _row_damage(ledger, row)
    if damage is not None:
        findings.insert(0, _damaged(row, damage, max(sound, key=lambda info: info.version, default=None)))
    return findings


def _damaged(row: TenantRow, damage: str, newest: CheckpointInfo | None) -> Finding:
    if newest is None:
        safe = f"No checkpoint of it can be read. {_OTHERS_SAFE}"
        cure = f"Restore a copy of ledger and vault from before the damage, or 'larimar tenant delete {row.name}'"
    else:
        safe = (
            f"Checkpoint {newest.checkpoint_id} in {newest.location!r} is sound: {newest.facts} facts of version "
            f"{newest.version}; the tenant was at version {row.version} with {row.facts}. {_OTHERS_SAFE}"
        )
        cure = f"'larimar restore -t {row.name} --from {row.name} --checkpoint {newest.checkpoint_id} --in-place'"
    return Finding("tenant_damaged", ERROR, row.name, damage, safe, cure)


def _row_damage(ledger: Ledger, row: TenantRow) -> str | None:
    """What is wrong with the tenant's rows, the first bad position named; None when all of them open."""
    try:
        positions = ledger.live_ids(row.name)
        for start in range(0, len(positions), _FACTS_AT_ONCE):
            some = positions[start : start + _FACTS_AT_ONCE]
            problem = _page_damage(ledger, row.name, some)
            if problem is not None:
                return problem
    except (TenantDamaged, LedgerCorrupt) as damage:
        return str(damage.args[1])
    return None


def _page_damage(ledger: Ledger, name: str, positions: list[tuple[str, int]]) -> str | None:
    try:
        ledger.facts_by_id(name, [fact_id for fact_id, _ in positions])
    except (TenantDamaged, LedgerCorrupt):
        for fact_id, seq in positions:
            try:
                ledger.facts_by_id(name, [fact_id])
            except (TenantDamaged, LedgerCorrupt) as damage:
                return f"first bad position {seq}: {damage.args[1]}"
    return None


def _checkpoint_problem(
    ledger: Ledger, stores: Mapping[str, CheckpointStore], config: MemoryConfig, info: CheckpointInfo
) -> Finding | None:
    """Read the whole checkpoint, as a restore would."""

    def finding(code: str, what: str, cure: str) -> Finding:
        named = f"checkpoint {info.checkpoint_id} in {info.location!r}: {what}"
        return Finding(code, WARNING, info.tenant, named, _LEDGER_SAFE, cure)

    again = f"Take a new one: 'larimar checkpoint -t {info.tenant} --location {info.location}'"
    store = stores.get(info.location)
    if store is None:
        cure = "Configure it again (checkpoints.locations): erasures wait for what it holds"
        return finding("location_unknown", "its location is not configured any more", cure)
    try:
        key = ledger.vault.data_keys(info.uid, [info.key_id]).get(info.key_id)
        if key is None:
            return finding("checkpoint_erased", "its key was destroyed and it is still registered", again)
        read_checkpoint(store, info, key, config)
    except (CheckpointDamaged, CheckpointMismatch) as error:
        return finding("checkpoint_damaged", str(error), again)
    except KeyDamaged as error:
        return finding("checkpoint_damaged", f"its key is damaged: {error.reason}", again)
    except LocationUnavailable as error:
        return finding("location_unavailable", str(error), "Bring the storage back; erasures wait for it, then go on")
    return None
