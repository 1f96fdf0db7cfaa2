"""What a commit changes, resolved to numbers: recovery applies effects and never re-runs an encoder.

Effects are made by `TenantMemory.prepare_*`, made durable by the ledger, then applied by `TenantMemory.apply`.
"""

from __future__ import annotations

from dataclasses import dataclass

from memory_actor.types import Float16Array, Int8Array, Retention


@dataclass(frozen=True, slots=True)
class StoredFact:
    """One fact as kept. key (D,) float16; addresses (P, K) int8; latents (P, C) int8, one row per part."""

    fact_id: str
    seq: int  # position in the tenant's history, strictly increasing
    key: Float16Array
    addresses: Int8Array
    latents: Int8Array
    prompt_tokens: int
    target_tokens: int
    prompt_digest: bytes  # 16 bytes, keyed by the tenant's salt: finds a fact with the same prompt
    created_at: float
    tags: tuple[str, ...] = ()
    supersedes: str | None = None
    prompt: str | None = None  # None under `latent` retention
    target: str | None = None
    version: int = 0  # the tenant's version that wrote it; what a restore to a version goes by


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an effect that ends facts leaves to destroy: the ledger notes it in the same commit.

    The hashes are of the tenant before and after, and go into the signed receipt; empty where none was asked for.
    """

    receipt_id: str  # "r_" and 26 characters
    erase_by: float  # seconds since the epoch
    state_hash_before: str = ""
    state_hash_after: str = ""


@dataclass(frozen=True, slots=True)
class TenantCreated:
    """A tenant begins. `salt` (32 bytes) keys its digests and dies with it.

    `uid` (32 hex digits) names this incarnation: keys and checkpoints go by it, so that a tenant created later under
    the same name shares nothing with this one.
    """

    tenant: str
    retention: Retention
    salt: bytes
    created_at: float
    uid: str = ""


@dataclass(frozen=True, slots=True)
class TenantDeleted:
    """A tenant and all its facts end; its key and its checkpoints go with the erasure."""

    tenant: str
    erasure: Erasure | None = None


@dataclass(frozen=True, slots=True)
class TenantRestored:
    """A tenant's facts are replaced by those of a checkpoint. Facts not among them end.

    `created` begins the tenant in the same commit; None for a restore in place. `version` is the tenant's new one.
    """

    tenant: str
    version: int
    facts: tuple[StoredFact, ...]
    created: TenantCreated | None = None
    erasure: Erasure | None = None


@dataclass(frozen=True, slots=True)
class FactsWritten:
    """Facts begin; `forgotten` ids (the superseded ones) end in the same commit. `version` is the tenant's new one."""

    tenant: str
    version: int
    facts: tuple[StoredFact, ...]
    forgotten: tuple[str, ...] = ()
    erasure: Erasure | None = None  # set when `forgotten` is not empty


@dataclass(frozen=True, slots=True)
class FactsForgotten:
    """Facts end, as if never written."""

    tenant: str
    version: int
    fact_ids: tuple[str, ...]
    erasure: Erasure | None = None


Effect = TenantCreated | TenantDeleted | TenantRestored | FactsWritten | FactsForgotten
