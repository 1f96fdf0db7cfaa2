"""The schemas of checkpoint format 1 and the text metadata beside them. Pure; imports Arrow.

Dimension legend: D key size, K addresses, C latent size.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from memory_actor.types import MemoryConfig

IDENTITY: Final = (
    "fingerprint",
    "key_size",
    "address_size",
    "latent_size",
    "feature_map",
    "feature_map_seed",
    "feature_map_scale",
    "address_scale",
    "latent_scale",
)
"""What must be equal for stored numbers to mean the same."""

COMMON_TEXT: Final = ("facts", "rows", "state_hash")
"""Entries that both files carry, beside `format` and those of IDENTITY."""

TENANT_TEXT: Final = frozenset({"tenant", "uid", "retention", "salt", "created_at", "version"})
PLAIN_COLUMNS: Final = (
    "fact_id",
    "rank",
    "created_at",
    "version",
    "prompt_tokens",
    "target_tokens",
    "prompt_digest",
    "tags",
    "prompt",
    "target",
)


def identity(config: MemoryConfig) -> dict[str, str]:
    return {name: str(getattr(config, name)) for name in IDENTITY}


def sums_schema(config: MemoryConfig, cov: Any, cross: Any, text: dict[str, str] | None = None) -> Any:
    """`cov` and `cross` are NumPy dtypes: int32 or int64, the smaller one that holds the values."""
    k, c = config.address_size, config.latent_size
    return pa.schema(
        [
            _required("cov", _vector(pa.from_numpy_dtype(cov), k * (k + 1) // 2)),  # upper triangle by rows
            _required("cross", _vector(pa.from_numpy_dtype(cross), k * c)),  # (K, C) by rows
        ],
        metadata=text,
    )


def facts_schema(config: MemoryConfig, text: dict[str, str] | None = None) -> Any:
    parts = {
        name: pa.list_(_required("item", _vector(pa.int8(), size)))
        for name, size in (("addresses", config.address_size), ("latents", config.latent_size))
    }
    return pa.schema(
        [
            _required("fact_id", pa.string()),
            _required("rank", pa.int64()),  # 1 to N in the order they were written
            _required("created_at", pa.float64()),
            _required("version", pa.int64()),
            _required("prompt_tokens", pa.int32()),
            _required("target_tokens", pa.int32()),
            _required("prompt_digest", pa.binary(16)),
            _required("tags", pa.list_(_required("item", pa.string()))),
            pa.field("prompt", pa.string()),
            pa.field("target", pa.string()),
            _required("key", _vector(pa.float16(), config.key_size)),
            _required("addresses", parts["addresses"]),
            _required("latents", parts["latents"]),
        ],
        metadata=text,
    )


def _required(name: str, kind: Any) -> Any:
    return pa.field(name, kind, nullable=False)


def _vector(kind: Any, size: int) -> Any:
    return pa.list_(_required("item", kind), size)
