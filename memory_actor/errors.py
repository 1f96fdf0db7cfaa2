"""Expected failures, one class each. The gateway turns them into problem+json; the message is for a person at 3 a.m.

Fields are passed to `Exception.__init__` unformatted and formatted in `__str__`, so that errors survive pickling
through Ray with their type and values.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LarimarError(Exception):
    """Base of all expected failures. `outcome` says whether the refused request changed anything."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    outcome: ClassVar[str] = "not_applied"
    fields: ClassVar[tuple[str, ...]] = ("detail",)
    template: ClassVar[str] = "{detail}"

    def __init__(self, *values: Any) -> None:
        if len(values) != len(self.fields):
            raise TypeError(f"{type(self).__name__} takes {self.fields}, got {len(values)} values")
        super().__init__(*values)

    def __str__(self) -> str:
        return self.template.format(**dict(zip(self.fields, self.args, strict=True)))


# -- the request ------------------------------------------------------------------------------------------------


class Unauthenticated(LarimarError):
    code, title, http_status = "unauthenticated", "Not authenticated", 401
    fields = ()
    template = "send a valid key as 'Authorization: Bearer lm_…'; unknown, revoked and malformed keys look alike here"


class Forbidden(LarimarError):
    code, title, http_status = "forbidden", "Not allowed with this key", 403
    fields = ("action",)
    template = "this key may not {action}; use the admin key printed by 'larimar up'"


class NotFound(LarimarError):
    code, title, http_status = "not_found", "Not found", 404
    fields = ("what", "name")
    template = "{what} {name!r} does not exist"


class MalformedBody(LarimarError):
    code, title, http_status = "malformed_body", "Body cannot be parsed", 400
    fields = ("content_type", "reason")
    template = "the body is not valid {content_type}: {reason}"


class InvalidField(LarimarError):
    """One or more fields are wrong; `problems` is a list of {'loc': [...], 'msg': str, 'got': str}."""

    code, title, http_status = "invalid_field", "Invalid field", 422
    fields = ("summary", "problems")
    template = "{summary}"


class UnknownField(InvalidField):
    code, title = "unknown_field", "Unknown field"


class TextTooLong(LarimarError):
    code, title, http_status = "text_too_long", "Text too long", 422
    fields = ("what", "tokens", "tokens_max")
    template = (
        "{what} has {tokens} tokens; the limit is {tokens_max}. Split it into several facts; nothing is cut silently"
    )


class InvalidId(LarimarError):
    code, title, http_status = "invalid_id", "Invalid identifier", 422
    fields = ("what", "value", "pattern")
    template = "{what} {value!r} does not match {pattern}"


class BodyTooLarge(LarimarError):
    code, title, http_status = "body_too_large", "Body too large", 413
    fields = ("bytes_max",)
    template = "the body is larger than {bytes_max} bytes; send fewer facts per request"


class UnsupportedMediaType(LarimarError):
    code, title, http_status = "unsupported_media_type", "Unsupported content type", 415
    fields = ("got", "accepted")
    template = "content type {got!r} is not supported; send one of {accepted}"


class IdempotencyKeyRequired(LarimarError):
    code, title, http_status = "idempotency_key_required", "Idempotency-Key missing", 400
    fields = ()
    template = "requests that change something need an Idempotency-Key header: a random text, the same on each retry"


class IdempotencyKeyInvalid(LarimarError):
    code, title, http_status = "idempotency_key_invalid", "Idempotency-Key invalid", 400
    fields = ("length", "length_max")
    template = "the Idempotency-Key has {length} characters; 1 to {length_max} printable ASCII characters are allowed"


class IdempotencyKeyReused(LarimarError):
    code, title, http_status = "idempotency_key_reused", "Idempotency-Key reused", 422
    fields = ("endpoint",)
    template = "this Idempotency-Key was used for {endpoint} with another body; use a fresh key for a new request"


# -- the memory -------------------------------------------------------------------------------------------------


class TenantExists(LarimarError):
    code, title, http_status = "tenant_exists", "Tenant exists", 409
    fields = ("tenant",)
    template = "tenant {tenant!r} exists already; choose another name or delete it first"


class EncodingMismatch(LarimarError):
    code, title, http_status = "encoding_mismatch", "Encoding does not fit the memory", 422
    fields = ("what", "expected", "got")
    template = "{what}: expected {expected}, got {got}; encoder and memory must come from the same bundle"


class NonFiniteEncoding(LarimarError):
    code, title, http_status = "non_finite_number", "Number is not finite", 422
    fields = ("what",)
    template = "{what} contains NaN or infinity"


class MemoryCapacityExceeded(LarimarError):
    code, title, http_status = "memory_capacity_exceeded", "Memory is full", 409
    fields = ("tenant", "what", "value", "limit")
    template = "tenant {tenant!r}: {what} would be {value}, the limit is {limit}; forget facts or split the tenant"


class StaleMemory(LarimarError):
    code, title, http_status, retryable = "stale_memory", "Memory is behind min_version", 409, True
    fields = ("tenant", "version", "min_version")
    template = "tenant {tenant!r} is at version {version}, the query asked for {min_version}; retry"


class VerifyConflict(LarimarError):
    code, title, http_status, retryable = "verify_conflict", "Memory kept changing", 409, True
    fields = ("tenant", "attempts")
    template = "tenant {tenant!r} changed during each of {attempts} verifications; retry when writes pause"


class TenantQuarantined(LarimarError):
    """Stored data of one tenant is damaged; it is refused whole until it is restored. Others are served."""

    code, title, http_status = "tenant_quarantined", "Tenant is quarantined", 503
    fields = ("tenant", "reason")
    template = (
        "tenant {tenant!r} is quarantined: {reason}. Nothing was changed and other tenants are served; "
        "'larimar doctor {tenant}' shows what is safe and how to restore it"
    )


class CheckpointDamaged(LarimarError):
    code, title, http_status = "checkpoint_damaged", "Checkpoint is damaged", 422
    fields = ("checkpoint", "reason")
    template = "checkpoint {checkpoint}: {reason}. Nothing was changed; restore another checkpoint"


class CheckpointUnreadable(LarimarError):
    """Its key was destroyed: it held something that was forgotten, or its tenant was erased."""

    code, title, http_status = "checkpoint_erased", "Checkpoint was erased", 410
    fields = ("checkpoint",)
    template = (
        "checkpoint {checkpoint} cannot be read any more: its key was destroyed when a fact in it was forgotten or its "
        "tenant was deleted. Restore a newer checkpoint"
    )


class CheckpointMismatch(LarimarError):
    code, title, http_status = "checkpoint_mismatch", "Checkpoint does not fit", 409
    fields = ("checkpoint", "what", "stored", "expected")
    template = "checkpoint {checkpoint}: {what} is {stored}, expected {expected}. Nothing was changed"


class InvalidLocation(LarimarError):
    code, title, http_status = "invalid_location", "Unknown checkpoint location", 422
    fields = ("name", "allowed")
    template = "checkpoint location {name!r} is not configured; configured are {allowed} (checkpoints.locations)"


class ReceiptInvalid(LarimarError):
    code, title, http_status = "receipt_invalid", "Receipt is not genuine", 422
    fields = ("reason",)
    template = "this is not a genuine receipt: {reason}"


class LocationUnavailable(LarimarError):
    code, title, http_status, retryable = "location_unavailable", "Checkpoint storage failed", 503, True
    fields = ("name", "reason")
    template = "checkpoint location {name!r}: {reason}. Nothing was changed in the memory; retry when it is back"


# -- the processes ----------------------------------------------------------------------------------------------


class DeadlineExceeded(LarimarError):
    code, title, http_status, retryable = "deadline_exceeded", "Deadline exceeded", 504, True
    fields = ("what", "seconds")
    template = "{what} did not start within {seconds} s and was refused before anything was stored; retry"


class Overloaded(LarimarError):
    code, title, http_status, retryable = "overloaded", "Too many requests in progress", 503, True
    fields = ("what", "queued", "queued_max")
    template = "{what} has {queued} requests waiting, the limit is {queued_max}; retry later"


class OutcomeUnknown(LarimarError):
    code, title, http_status, retryable, outcome = "outcome_unknown", "Outcome unknown", 503, True, "unknown"
    fields = ("what",)
    template = "{what} stopped answering; the request may have been applied. Retry with the same Idempotency-Key"


class Unavailable(LarimarError):
    code, title, http_status, retryable = "unavailable", "Temporarily unavailable", 503, True
    fields = ("what", "reason")
    template = "{what} is not available: {reason}; retry"


class LedgerFailed(LarimarError):
    """Storage refused a commit. The actor stops; replay at the next start decides what was stored."""

    code, title, http_status, retryable, outcome = "ledger_failed", "Storage failed", 503, True, "unknown"
    fields = ("path", "reason")
    template = "the ledger {path} failed: {reason}. The memory actor restarts; retry with the same Idempotency-Key"


class StorageFull(LarimarError):
    code, title, http_status, retryable = "storage_full", "Disk is almost full", 507, True
    fields = ("path", "free_mb", "reserve_mb")
    template = (
        "{path} has {free_mb} MB free, {reserve_mb} MB are kept for forgetting and recovery; nothing was stored. Free "
        "space or forget facts, then retry. Reads and forgets go on"
    )


class Fenced(LarimarError):
    code, title, http_status, retryable = "fenced", "Superseded by a newer process", 503, True
    fields = ("epoch", "newer_epoch")
    template = "this memory actor has epoch {epoch}, a newer one has {newer_epoch}; this one stops"


# -- start-up ---------------------------------------------------------------------------------------------------


class StartupError(LarimarError):
    """Base of what can keep the system from starting; raised before any state is touched."""

    code, title = "startup_failed", "Cannot start"


class StateFolderUnusable(StartupError):
    code, title = "state_folder_unusable", "State folder cannot be used"
    fields = ("path", "reason", "cure")
    template = "state folder {path}: {reason}. {cure}"


class StateFolderBusy(StateFolderUnusable):
    """Another process holds a file of it; one that is about to end lets go by itself."""


class LedgerServerUnusable(StartupError):
    """The PostgreSQL server cannot be reached, or does not keep what it confirms. `location` holds no secret."""

    code, title = "ledger_server_unusable", "Ledger server cannot be used"
    fields = ("location", "reason", "cure")
    template = "ledger {location}: {reason}. Nothing was changed. {cure}"


class LedgerCorrupt(StartupError):
    code, title = "ledger_corrupt", "Ledger is damaged or foreign"
    fields = ("path", "reason")
    template = "ledger {path}: {reason}. Nothing was changed; restore a copy or choose another state folder"


class BundleMismatch(StartupError):
    code, title = "bundle_mismatch", "State was written by another bundle"
    fields = ("path", "stored", "given")
    template = (
        "ledger {path} was written with bundle {stored}, but bundle {given} is configured; vectors of different "
        "bundles cannot be mixed. Configure the first bundle again or choose another state folder"
    )


class VaultLocked(StartupError):
    """The root key that stored data was sealed under is missing or another one."""

    code, title = "vault_locked", "Root key missing or wrong"
    fields = ("path", "reason")
    template = (
        "key vault {path}: {reason}. Nothing was changed; put the root key file back (keys/root.key, a copy from your "
        "backup of secrets). Without it stored data cannot be read by anyone"
    )


class ModelMissing(StartupError):
    code, title = "model_missing", "Model files missing"
    fields = ("what", "where", "cure")
    template = "{what} not found at {where}. {cure}"


class PortTaken(StartupError):
    code, title = "port_taken", "Port taken"
    fields = ("host", "port")
    template = "{host}:{port} is in use by another program; stop it or pass --port with a free one"


class SettingsInvalid(StartupError):
    code, title = "settings_invalid", "Settings invalid"
    fields = ("path", "problem")
    template = "{path}: {problem}"


class AlreadyRunning(StartupError):
    code, title, http_status = "already_running", "Already running", 409
    fields = ("url", "pid", "state_dir")
    template = "the system of state folder {state_dir} already runs at {url} (process {pid}); 'larimar down' stops it"


class ExposureRefused(StartupError):
    code, title = "exposure_refused", "Will not listen beyond this machine"
    fields = ("host",)
    template = (
        "http.host {host} is reachable from other machines, and Ray beside it would be too. Set RAY_AUTH_MODE=token "
        "and put a firewall or TLS proxy in front, or keep http.host at 127.0.0.1"
    )


class StartupFailed(StartupError):
    """A process did not come up; the reason is the first line of its own error."""

    fields = ("what", "reason", "log")
    template = "{what} did not start: {reason}. The whole story is in {log}"


class NotRunning(LarimarError):
    code, title, http_status = "not_running", "Not running", 503
    fields = ("state_dir",)
    template = "no system runs on state folder {state_dir}; start it with 'larimar up'"
