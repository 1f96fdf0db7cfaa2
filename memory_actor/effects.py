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


@dataclass(frozen=True, slots=True)
class TenantCreated:
    """A tenant begins. `salt` (32 bytes) keys its digests and dies with it."""

    tenant: str
    retention: Retention
    salt: bytes
    created_at: float


@dataclass(frozen=True, slots=True)
class TenantDeleted:
    """A tenant and all its facts end."""

    tenant: str


@dataclass(frozen=True, slots=True)
class FactsWritten:
    """Facts begin; `forgotten` ids (the superseded ones) end in the same commit. `version` is the tenant's new one."""

    tenant: str
    version: int
    facts: tuple[StoredFact, ...]
    forgotten: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FactsForgotten:
    """Facts end, as if never written."""

    tenant: str
    version: int
    fact_ids: tuple[str, ...]


Effect = TenantCreated | TenantDeleted | FactsWritten | FactsForgotten
