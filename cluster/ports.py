"""What the gateway calls, as protocols. Ray stands behind them in `cluster/handles.py`, fakes in the unit tests.

Dimension legend: N facts or queries, P keys of one query, D key size.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from memory_actor.types import (
    CheckpointGrant,
    CheckpointInfo,
    EncodedFacts,
    EngineStatus,
    ErasureStatus,
    FactPage,
    FactRecord,
    FactText,
    Float16Array,
    ForgetReceipt,
    Idempotency,
    ReadMode,
    Recall,
    RestoreReply,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
)
from workers.ports import Generation, GenerationChunk, GenerationRequest, Readback

if TYPE_CHECKING:
    from memory_actor.doctor import Finding


class CallLost(Exception):
    """The callee stopped answering: the call may or may not have been carried out. Never leaves the router."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


class MemoryPort(Protocol):
    """One memory actor. Every method raises LarimarError when refused and CallLost when nobody answered."""

    async def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> TenantSummary: ...

    async def delete_tenant(self, name: str, idempotency: Idempotency) -> TenantSummary: ...

    async def tenants(self) -> list[TenantSummary]: ...

    async def tenant(self, name: str) -> TenantSummary: ...

    async def write(
        self,
        tenant: str,
        facts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None,
    ) -> WriteReply: ...

    async def forget(
        self,
        tenant: str,
        fact_ids: Sequence[str],
        dry_run: bool,
        idempotency: Idempotency | None,
        timeout_s: float | None = None,
    ) -> ForgetReceipt: ...

    async def select(self, tenant: str, selector: Selector, limit: int) -> list[FactRecord]: ...

    async def recall(self, tenant: str, keys: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        """Read with the keys (P, D) of one query."""
        ...

    async def verify(self, tenant: str) -> Verification: ...

    async def facts(self, tenant: str, after: int, limit: int) -> FactPage: ...

    async def fact(self, tenant: str, fact_id: str) -> FactRecord: ...

    async def status(self) -> EngineStatus: ...

    async def sleep(self, name: str) -> TenantSummary: ...

    async def wake(self, name: str) -> TenantSummary: ...

    async def checkpoint(self, tenant: str, location: str) -> CheckpointInfo:
        """Raises InvalidLocation, LocationUnavailable."""
        ...

    async def checkpoints(self, tenant: str) -> list[CheckpointInfo]: ...

    async def grant(self, tenant: str, checkpoint_id: str) -> CheckpointGrant:
        """What the owner of another tenant needs to read this checkpoint. Raises NotFound, CheckpointUnreadable."""
        ...

    async def restore(
        self, name: str, grant: CheckpointGrant | None, version: int | None, in_place: bool, idempotency: Idempotency
    ) -> RestoreReply:
        """Without a grant, the stored reply to this idempotency key or a refusal; nothing is changed."""
        ...

    async def erasure(self, receipt_id: str) -> ErasureStatus: ...

    async def doctor(self, tenant: str | None) -> list[Finding]: ...


class MemoryDirectory(Protocol):
    """All memory actors, and which of them owns a tenant."""

    def owner_of(self, tenant: str) -> MemoryPort: ...

    def everyone(self) -> Sequence[MemoryPort]: ...


class EncoderPort(Protocol):
    """Texts to numbers. Pure: a lost call may be repeated."""

    async def encode_facts(self, facts: Sequence[FactText]) -> EncodedFacts: ...

    async def encode_queries(self, texts: Sequence[str]) -> list[Float16Array]:
        """N queries to the keys of each, (P, D) float16 of unit norm."""
        ...

    async def match(self, readback: Readback) -> float:
        """In [0, 1], whether a query asks for the fact that was read for it."""
        ...

    async def match_prompts(self, query: str, prompts: Sequence[str]) -> list[float]:
        """In [0, 1], whether a query asks for the facts of these prompts."""
        ...

    async def status(self) -> dict[str, Any]: ...


class DecoderPort(Protocol):
    """Prompts, conditioned or not, to text. Pure: a call lost before its first chunk may be repeated."""

    async def generate(self, request: GenerationRequest) -> Generation: ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]: ...

    async def status(self) -> dict[str, Any]: ...


class PrincipalPort(Protocol):
    """Who a key belongs to. `tenant` is None for the admin."""

    @property
    def tenant(self) -> str | None: ...

    def require_admin(self, action: str) -> None:
        """Raises Forbidden."""
        ...

    def require_tenant(self, name: str) -> None:
        """Raises NotFound: a foreign tenant looks like a missing one."""
        ...


class KeysPort(Protocol):
    """API keys. Synchronous: what may touch the disk is called in a thread."""

    def authenticate(self, authorization: str | None, now: float) -> PrincipalPort:
        """Raises Unauthenticated."""
        ...

    def issue(self, tenant: str, now: float) -> str:
        """A new key in the place of the tenant's earlier ones."""
        ...

    def revoke_tenant(self, tenant: str, now: float) -> Any: ...
