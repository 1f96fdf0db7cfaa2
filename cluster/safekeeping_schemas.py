"""Bodies of the routes that keep memories: checkpoints, restores, receipts, diagnoses. Strict like the others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from cluster.schemas import INTEGER_MAX, Applied, Request, Usage, iso_time
from memory_actor.types import CheckpointInfo, ErasureStatus, RestoreReply


class CheckpointRequest(Request):
    """Where to put a checkpoint: a location's name from the settings, never a path or an address."""

    location: str = "local"


class RestoreBody(Request):
    """Fill a new tenant from a checkpoint of `from_tenant`, or with `in_place` this tenant from one of its own."""

    from_tenant: str | None = Field(default=None, description="whose checkpoint; not needed in place")
    checkpoint_id: str = Field(default="latest", description="'latest', or an id from the tenant's list")
    version: int | None = Field(
        default=None, ge=0, le=INTEGER_MAX, description="only facts that the tenant had up to this version"
    )
    in_place: bool = Field(default=False, description="replace what the tenant holds now")

    @model_validator(mode="after")
    def _one_shape(self) -> RestoreBody:
        if not self.in_place and self.from_tenant is None:
            raise PydanticCustomError("shape", "give 'from_tenant' to fill a new tenant, or 'in_place': true")
        return self


class CheckpointReply(Applied):
    """A published checkpoint: its bytes are in the location, sealed, and were read back and hashed."""

    checkpoint_id: str
    tenant: str
    location: str
    version: int
    facts: int
    bytes: int
    state_hash: str
    manifest_sha256: str
    created_at: str


class ListedCheckpoint(BaseModel):
    checkpoint_id: str
    location: str
    version: int
    facts: int
    bytes: int
    state_hash: str
    manifest_sha256: str
    created_at: str


class CheckpointsReply(BaseModel):
    """Newest first."""

    tenant: str
    checkpoints: list[ListedCheckpoint]


class RestoreResponse(Applied):
    """`tenant` holds what the checkpoint held, less what was forgotten since. `key` is shown this once."""

    tenant: str
    from_tenant: str
    checkpoint_id: str
    facts: int
    version: int
    state_hash: str
    in_place: bool
    key: str | None = None
    hint: str | None = None
    replayed: bool = False
    usage: Usage

    @classmethod
    def made(cls, reply: RestoreReply, source: str, key: str | None) -> RestoreResponse:
        fresh = not reply.in_place and key is None
        hint = f"the key was shown once; make another with POST /v1/tenants/{reply.tenant}/key" if fresh else None
        return cls(
            tenant=reply.tenant,
            from_tenant=source,
            checkpoint_id=reply.checkpoint_id,
            facts=reply.facts,
            version=reply.version,
            state_hash=reply.state_hash,
            in_place=reply.in_place,
            key=key,
            hint=hint,
            replayed=reply.replayed,
            usage=Usage(ms=reply.ms),
        )


class ReceiptReply(BaseModel):
    """How far an erasure is. `receipt` is the signed document, to be kept as it is: `larimar receipt verify`."""

    receipt_id: str
    tenant: str
    state: Literal["pending", "done"]
    requested_at: str
    erase_by: str
    receipt: str | None

    @classmethod
    def of(cls, status: ErasureStatus) -> ReceiptReply:
        return cls(
            receipt_id=status.receipt_id,
            tenant=status.tenant,
            state=status.state.value,
            requested_at=iso_time(status.requested_at),
            erase_by=iso_time(status.erase_by),
            receipt=status.receipt,
        )


class DoctorReply(BaseModel):
    """What is wrong with stored data: empty when nothing is."""

    healthy: bool
    findings: list[dict[str, Any]]


def checkpoint_fields(info: CheckpointInfo) -> dict[str, Any]:
    """What may be shown of a checkpoint: neither the tenant's incarnation nor the number of a key."""
    return {
        "checkpoint_id": info.checkpoint_id,
        "location": info.location,
        "version": info.version,
        "facts": info.facts,
        "bytes": info.bytes,
        "state_hash": info.state_hash,
        "manifest_sha256": info.manifest_sha256,
        "created_at": iso_time(info.created_at),
    }
