"""The nouns that cross process borders: facts, encodings, recalls, replies. Plain dataclasses over NumPy arrays.

Dimension legend: N facts, R rows (parts of facts; R >= N), P parts of one fact or keys of one query, D key size,
C latent size, K addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int8Array = NDArray[np.int8]
Int32Array = NDArray[np.int32]
Float16Array = NDArray[np.float16]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


class ReadMode(StrEnum):
    """How the address of a read is found: the matched fact's stored address, or phi(query)."""

    SNAP = "snap"
    SOFT = "soft"


class Residency(StrEnum):
    """Where a tenant's memory is: `hot` in the actor's memory, `cold` on disk only, `quarantined` refused."""

    HOT = "hot"
    COLD = "cold"
    QUARANTINED = "quarantined"


class ErasureState(StrEnum):
    """How far an erasure is: `pending` (forgotten, bytes still on disk) or `done` (bytes destroyed, receipt signed)."""

    PENDING = "pending"
    DONE = "done"


class Retention(StrEnum):
    """What a tenant's ledger keeps of the words: `text` keeps them, `latent` keeps only numbers."""

    TEXT = "text"
    LATENT = "latent"


@dataclass(frozen=True, slots=True)
class FactText:
    """What a caller writes: a prompt and its target, or one sentence (`target is None`, the sentence is the prompt)."""

    prompt: str
    target: str | None = None
    tags: tuple[str, ...] = ()
    keep_both: bool = False  # do not supersede a stored fact with the same prompt


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """The identity of a memory: everything that gives its numbers their meaning. Comes from the bundle.

    `fingerprint` (hex) names the bundle; a ledger written under one fingerprint is never read under another.
    """

    fingerprint: str
    key_size: int = 384  # D
    address_size: int = 512  # K
    latent_size: int = 768  # C
    feature_map: str = "fourier"  # fourier | pinv | gaussian
    feature_map_seed: int = 0
    feature_map_scale: float = 1.0  # fourier: standard deviation of G; gaussian: alpha; pinv: unused
    address_scale: int = 127  # w = round(phi / max|phi| * address_scale), int8
    latent_scale: int = 1  # z is stored as round(z * latent_scale), int8
    ridge: float = 1e-2  # lambda, in units of address_scale^2
    collinearity_max: float = 0.95  # |cosine| of two addresses above which they may not share a shard
    scope_threshold: float = 0.7  # cosine of query and stored key from which a query is in scope
    rows_per_fact_max: int = 8  # parts one fact may have

    @property
    def shard_rows_max(self) -> int:
        """Rows one shard holds: K, the number of independent addresses."""
        return self.address_size


@dataclass(frozen=True, slots=True)
class EncodedFacts:
    """N encoded facts in R rows. `rows[i]` is the number of consecutive rows of `latents` that fact i owns.

    keys (N, D) float16, unit norm. latents (R, C) int8. rows, prompt_tokens, target_tokens (N,) int32;
    target_tokens is 0 for a fact without target.
    """

    keys: Float16Array
    latents: Int8Array
    rows: Int32Array
    prompt_tokens: Int32Array
    target_tokens: Int32Array

    def __post_init__(self) -> None:
        n = self.keys.shape[0]
        if self.keys.ndim != 2 or self.latents.ndim != 2:
            raise ValueError(f"keys and latents must be matrices, got {self.keys.shape} and {self.latents.shape}")
        for name in ("rows", "prompt_tokens", "target_tokens"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"{name} must have shape ({n},), got {getattr(self, name).shape}")
        if int(self.rows.sum()) != self.latents.shape[0]:
            raise ValueError(f"rows sum to {int(self.rows.sum())} but latents have {self.latents.shape[0]} rows")

    def __len__(self) -> int:
        return int(self.keys.shape[0])


@dataclass(frozen=True, slots=True)
class Recall:
    """What the memory answers to one query. `readout` (P, C) float32 is None when the query is out of scope."""

    tenant: str
    version: int
    in_scope: bool
    score: float  # best cosine of a key of the query and a stored one; 0.0 for an empty memory
    fact_id: str | None = None
    readout: Float32Array | None = None
    prompt_tokens: int = 0
    target_tokens: int = 0
    scope_ms: float = 0.0
    read_ms: float = 0.0
    match: float | None = None  # in [0, 1], what the bundle's verifier said of the query and what was read


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's idempotency key and a digest of the request it was sent with."""

    key: str
    request_digest: bytes  # SHA-256 of the canonical request, 32 bytes
    endpoint: str


@dataclass(frozen=True, slots=True)
class WriteReply:
    """An acknowledged write: durable, and visible to every query that starts after it."""

    tenant: str
    fact_ids: tuple[str, ...]
    superseded: tuple[str, ...]
    version: int
    replayed: bool = False
    ms: dict[str, float] = field(default_factory=dict, compare=False)  # by stage; no part of what the reply says


@dataclass(frozen=True, slots=True)
class ForgetReceipt:
    """Proof of one forget. `not_found` ids were unknown or already forgotten; forgetting is idempotent."""

    tenant: str
    forgotten: tuple[str, ...]
    not_found: tuple[str, ...]
    state_hash_before: str
    state_hash_after: str
    version: int
    facts: int
    dry_run: bool = False
    replayed: bool = False
    #: Names the erasure that destroys the bytes, None when nothing was forgotten. See `ErasureStatus`.
    receipt_id: str | None = None
    erase_by: float | None = None  # seconds since the epoch; the bytes are gone by then
    ms: dict[str, float] = field(default_factory=dict, compare=False)  # by stage; no part of what the reply says


@dataclass(frozen=True, slots=True)
class ErasureStatus:
    """One erasure: what a forget, a supersede, a restore in place or the end of a tenant leaves to destroy.

    `receipt` is the signed receipt (canonical JSON, see `receipts.py`) once `state` is done, else None.
    """

    receipt_id: str
    tenant: str
    state: ErasureState
    requested_at: float
    erase_by: float
    receipt: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One published checkpoint of a tenant, as registered in the ledger and listed.

    `uid` is the tenant's incarnation (32 hex digits), `key_id` the data key its files are sealed with,
    `manifest_sha256` (hex) what must match before a byte is trusted.
    """

    checkpoint_id: str  # "c_" and 26 characters
    tenant: str
    uid: str
    location: str  # a configured location's name, never a URI
    version: int  # of the tenant when it was taken
    facts: int
    bytes: int
    state_hash: str
    key_id: int
    manifest_sha256: str
    created_at: float


@dataclass(frozen=True, slots=True)
class CheckpointGrant:
    """What another memory actor needs to read one checkpoint: where it is and the key of its files.

    `excluded` are ids that may no longer be restored: forgotten, their erasure still pending.
    """

    info: CheckpointInfo
    file_key: bytes = field(repr=False)
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreReply:
    """A tenant holds what a checkpoint held, less what was forgotten since. `state_hash` is that of the result."""

    tenant: str
    checkpoint_id: str
    facts: int
    version: int
    state_hash: str
    in_place: bool
    replayed: bool = False
    ms: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Verification:
    """The live state against a state rebuilt from nothing but the surviving facts in the ledger."""

    tenant: str
    identical: bool
    state_hash: str
    rebuilt_hash: str
    facts: int
    version: int
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class FactRecord:
    """A stored fact as listed. `prompt` and `target` are None under `latent` retention."""

    fact_id: str
    seq: int
    created_at: float  # seconds since the epoch
    rows: int
    tags: tuple[str, ...]
    supersedes: str | None
    prompt: str | None
    target: str | None
    score: float | None = None  # set in previews by query


@dataclass(frozen=True, slots=True)
class FactPage:
    """One page of facts in the order they were written; `next_after` is the seq to continue after, or None."""

    facts: tuple[FactRecord, ...]
    next_after: int | None


@dataclass(frozen=True, slots=True)
class TenantSummary:
    """One tenant as listed. `state_hash` is None in listings (it costs a hash) and set when one tenant is shown."""

    name: str
    retention: Retention
    created_at: float
    facts: int
    version: int
    shards: int  # 0 while cold
    state_hash: str | None = None
    replayed: bool = False
    residency: Residency = Residency.HOT
    receipt_id: str | None = None  # of the erasure, in the reply to a deletion


@dataclass(frozen=True, slots=True)
class Selector:
    """Which facts a forget preview is about. Exactly one of the fields is set."""

    keys: Float16Array | None = None  # (P, D) facts whose key is in scope of one of these, a query's
    tags: tuple[str, ...] | None = None  # facts with all of these tags
    before: float | None = None  # facts written before this time


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Health of one memory actor."""

    index: int
    pid: int
    epoch: int
    tenants: int
    facts: int
    replayed_facts: int
    replay_s: float
    uptime_s: float
    ledger: str
    device: str
    hot_tenants: int = 0
    #: Name and reason of each tenant that is refused because its stored data is damaged.
    quarantined: tuple[tuple[str, str], ...] = ()
    pending_erasures: int = 0
    oldest_pending_erasure_s: float = 0.0
    #: What a person should look at although everything is served: checkpoints that could not be read.
    warnings: tuple[str, ...] = ()


def as_plain(value: Any) -> Any:
    """`value` with dataclasses, enums and tuples turned into dicts, strings and lists (arrays are not accepted)."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_plain(item) for item in value]
    return value
