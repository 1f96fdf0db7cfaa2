"""Request and response bodies of the HTTP API. Requests are strict: no coercion, no unknown fields.

Length limits come from the settings and travel in pydantic's validation context (`Bounds`), so that the models stay
static and OpenAPI can be made from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cluster.settings import LimitSettings
from memory_actor.types import FactRecord, FactText, Recall, TenantSummary

TENANT_PATTERN = r"[a-z0-9][a-z0-9_-]{0,62}"
FACT_ID_PATTERN = r"f_[0-9a-z]{26}"
CHECKPOINT_ID_PATTERN = r"c_[0-9a-z]{26}"
RECEIPT_ID_PATTERN = r"r_[0-9a-z]{26}"
TAG_CHARS_MAX = 64
INTEGER_MAX = 2**63 - 1

Bounds = LimitSettings  # what requests are validated with: `Model.model_validate(body, context=bounds)`


def bounds_of(info: ValidationInfo) -> Bounds:
    return cast(Bounds, info.context)


def bounded(limit: Callable[[Bounds], int], unit: str) -> Callable[[Any, ValidationInfo], Any]:
    """A validator that holds the length of a value against a limit of the settings, naming both numbers."""

    def check(value: Any, info: ValidationInfo) -> Any:
        size_max = limit(bounds_of(info))
        if len(value) > size_max:
            raise PydanticCustomError(
                "too_long",
                "has {size} {unit}; the limit is {limit}",
                {"size": len(value), "unit": unit, "limit": size_max},
            )
        return value

    return check


def not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("blank", "must not be empty or only whitespace")
    return value


def unrepeated(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise PydanticCustomError("repeated", "must not name the same item twice")
    return value


Text = Annotated[str, AfterValidator(not_blank), AfterValidator(bounded(lambda b: b.text_chars_max, "characters"))]
Tag = Annotated[str, Field(max_length=TAG_CHARS_MAX), AfterValidator(not_blank)]
Tags = Annotated[list[Tag], AfterValidator(bounded(lambda b: b.tags_per_fact_max, "tags")), AfterValidator(unrepeated)]


class Request(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TenantRequest(Request):
    """A new tenant. `latent` retention stores no text anywhere."""

    name: str
    retention: Literal["text", "latent"] = "text"


class FactRequest(Request):
    """One fact: `prompt` with an optional `target`, or one sentence as `text`."""

    prompt: Text | None = None
    target: Text | None = None
    text: Text | None = None
    tags: Tags = Field(default_factory=list)
    keep_both: bool = Field(default=False, description="do not supersede a stored fact with the same prompt")

    @model_validator(mode="after")
    def _one_shape(self) -> FactRequest:
        if (self.prompt is None) == (self.text is None):
            raise PydanticCustomError("shape", "give either 'prompt' (with an optional 'target') or 'text'")
        if self.text is not None and self.target is not None:
            raise PydanticCustomError("shape", "'target' goes with 'prompt'; a 'text' has none")
        return self

    def fact(self) -> FactText:
        prompt = self.prompt if self.prompt is not None else self.text
        return FactText(cast(str, prompt), self.target, tuple(self.tags), self.keep_both)


class WriteRequest(Request):
    """Facts to write: all or none. A single fact's fields may stand in the body itself."""

    facts: Annotated[
        list[FactRequest], Field(min_length=1), AfterValidator(bounded(lambda b: b.facts_per_request_max, "facts"))
    ]


class QueryRequest(Request):
    """A question (`answer`) or a cloze prompt (`complete`)."""

    prompt: Text
    mode: Literal["answer", "complete"] = "answer"
    max_tokens: int = Field(default=48, ge=1)
    memory: Literal["on", "off"] = "on"
    read: Literal["snap", "soft"] = "snap"
    min_version: int = Field(default=0, ge=0, le=INTEGER_MAX, description="refuse to read an older state of the tenant")
    temperature: float = Field(default=0.0, ge=0, le=2, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=INTEGER_MAX)
    stream: bool = False

    @field_validator("max_tokens")
    @classmethod
    def _within(cls, value: int, info: ValidationInfo) -> int:
        limit = bounds_of(info).answer_tokens_max
        if value > limit:
            raise PydanticCustomError("too_many", "is {value}; the limit is {limit}", {"value": value, "limit": limit})
        return value


def _moment(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise PydanticCustomError("time", "must be an ISO-8601 time such as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None or not math.isfinite(moment.timestamp()):
        raise PydanticCustomError("time", "needs a time zone, for example 2026-01-31T12:00:00Z")
    return value


class ForgetRequest(Request):
    """Which facts. Only `ids` forget; `query`, `tags` and `before` answer with candidates and change nothing."""

    ids: Annotated[
        list[str] | None,
        Field(min_length=1),
    ] = None
    query: Text | None = None
    tags: Annotated[Tags, Field(min_length=1)] | None = None
    before: Annotated[str, AfterValidator(_moment)] | None = Field(default=None, description="ISO-8601 with time zone")
    dry_run: bool = Field(default=False, description="say what would be forgotten and change nothing")
    retract: bool = Field(default=False, description="answer 'unknown' from now on, instead of as if never written")

    @field_validator("ids")
    @classmethod
    def _ids_within(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        return value if value is None else list(bounded(lambda b: b.facts_per_request_max, "ids")(value, info))

    @model_validator(mode="after")
    def _one_selector(self) -> ForgetRequest:
        given = [name for name in ("ids", "query", "tags", "before") if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError("shape", "give exactly one of 'ids', 'query', 'tags', 'before'")
        if self.retract and (given != ["ids"] or self.dry_run):
            raise PydanticCustomError("shape", "'retract' needs 'ids' and has no 'dry_run'")
        return self

    def before_s(self) -> float | None:
        """`before` in seconds since the epoch."""
        return None if self.before is None else datetime.fromisoformat(self.before).timestamp()


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO-8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Applied(BaseModel):
    """Base of the replies to changes: the change is durable. `replayed`: it was applied by an earlier request."""

    outcome: Literal["applied"] = "applied"


class Usage(BaseModel):
    """Milliseconds by stage, and the LLM tokens that were generated."""

    ms: dict[str, float]
    llm_tokens: int = 0


class TenantReply(BaseModel):
    name: str
    retention: Literal["text", "latent"]
    created_at: str
    facts: int
    version: int
    shards: int
    residency: Literal["hot", "cold", "quarantined"] = "hot"
    state_hash: str | None = None

    @classmethod
    def of(cls, summary: TenantSummary) -> TenantReply:
        return cls(**_tenant_fields(summary))


def _tenant_fields(summary: TenantSummary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "retention": str(summary.retention),
        "created_at": iso_time(summary.created_at),
        "facts": summary.facts,
        "version": summary.version,
        "shards": summary.shards,
        "residency": str(summary.residency),
        "state_hash": summary.state_hash,
    }


class TenantCreatedReply(TenantReply, Applied):
    """`key` is shown this once; a replayed request has `key` null and a hint how to get another."""

    key: str | None
    hint: str | None = None
    replayed: bool = False

    @classmethod
    def made(cls, summary: TenantSummary, key: str | None) -> TenantCreatedReply:
        hint = None if key else f"the key was shown once; make another with POST /v1/tenants/{summary.name}/key"
        return cls(**_tenant_fields(summary), key=key, hint=hint, replayed=summary.replayed)


class TenantDeletedReply(TenantReply, Applied):
    """`receipt_id` names the erasure of everything the tenant held."""

    deleted: Literal[True] = True
    receipt_id: str | None = None
    replayed: bool = False


class TenantsReply(BaseModel):
    tenants: list[TenantReply]


class KeyReply(Applied):
    """A new key, shown this once; earlier keys of the tenant no longer work."""

    tenant: str
    key: str


class WriteResponse(Applied):
    """An acknowledged write: durable, and visible to every query that starts after it."""

    ids: list[str]
    version: int
    superseded: list[str]
    replayed: bool
    usage: Usage


class FactReply(BaseModel):
    """A stored fact. `prompt` and `target` are null under `latent` retention; `score` is set in previews by query."""

    id: str
    seq: int
    created_at: str
    rows: int
    tags: list[str]
    supersedes: str | None
    prompt: str | None
    target: str | None
    score: float | None = None

    @classmethod
    def of(cls, record: FactRecord) -> FactReply:
        return cls(
            id=record.fact_id,
            seq=record.seq,
            created_at=iso_time(record.created_at),
            rows=record.rows,
            tags=list(record.tags),
            supersedes=record.supersedes,
            prompt=record.prompt,
            target=record.target,
            score=record.score,
        )


class FactsReply(BaseModel):
    """One page in the order of writing; `next_after` continues it and is null on the last page."""

    facts: list[FactReply]
    next_after: int | None


class UsedFact(BaseModel):
    id: str
    score: float


class RecallReply(BaseModel):
    """What the memory contributed. Memory off: out of scope, no facts, `version` null.

    `score` is the best cosine of query and stored keys. `match`, from 0 to 1, is the verifier's judgement of the fact
    found by it; null when nothing came that near, or the bundle has no verifier.
    """

    in_scope: bool
    score: float
    match: float | None = None
    facts: list[UsedFact]
    version: int | None

    @classmethod
    def of(cls, recall: Recall | None) -> RecallReply:
        if recall is None:
            return cls(in_scope=False, score=0.0, facts=[], version=None)
        used = [] if recall.fact_id is None else [UsedFact(id=recall.fact_id, score=recall.score)]
        return cls(in_scope=recall.in_scope, score=recall.score, match=recall.match, facts=used, version=recall.version)


class QueryUsage(BaseModel):
    """Milliseconds by stage, and the number of generated tokens."""

    ms: dict[str, float]
    tokens: int


class QueryResponse(RecallReply):
    text: str
    finish_reason: str
    usage: QueryUsage


class ForgetResponse(BaseModel):
    """What was forgotten. Unknown and already forgotten ids are in `not_found`: forgetting is idempotent.

    `receipt_id` names the erasure of the bytes, done by `erase_by`; null when nothing was forgotten.
    """

    forgotten: list[str]
    not_found: list[str]
    state_hash_before: str
    state_hash_after: str
    version: int
    facts: int
    dry_run: bool
    replayed: bool
    outcome: Literal["applied", "not_applied"] = "applied"  # not_applied: a dry run
    receipt_id: str | None = None
    erase_by: str | None = None
    usage: Usage


class PreviewResponse(BaseModel):
    """Nothing was changed. Send the ids you mean as `ids`."""

    preview: Literal[True] = True
    candidates: list[FactReply]


class RetractResponse(Applied):
    """`retracted` facts are superseded by the facts `ids`, which answer "unknown"."""

    retracted: list[str]
    ids: list[str]
    superseded: list[str]
    version: int
    replayed: bool
    usage: Usage


class VerifyResponse(BaseModel):
    identical: bool
    state_hash: str
    rebuilt_hash: str
    facts: int
    version: int
    ms: float


class Problem(BaseModel):
    """RFC 9457. `outcome` says whether the request changed anything; `retryable` whether sending it again may help."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    retryable: bool
    outcome: Literal["not_applied", "applied", "unknown"]
    errors: list[dict[str, Any]] | None = None
