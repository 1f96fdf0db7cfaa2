"""Facts as sealed table rows and back: pure, engine-independent.

A row has plain columns, which SQL selects by, and two values sealed under the fact's own data key:

    words   = msgpack of (prompt, target, tags)
    vectors = prompt_tokens (uint32) | target_tokens (uint32) | prompt digest (16 bytes) | key (D float16)
              | addresses (rows * K int8) | rows * trimmed length (uint32) | latents (int8, without trailing zeros)

All numbers are little-endian. Both are sealed for a context that holds every plain column, so that no column can be
changed and no value moved to another row unseen. Tags are indexed by digests keyed by the tenant's salt.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from memory_actor.effects import StoredFact
from memory_actor.ledger_rows import RowDamaged
from memory_actor.sealing import NONCE_BYTES, Cipher, SealBroken
from memory_actor.types import FactRecord, MemoryConfig

if TYPE_CHECKING:
    from memory_actor.vault import DataKey

PLAIN_COLUMNS: Final = 8
"""Columns of `fact` before `words`, in the order of the schema."""

_SEQ, _FACT_ID, _VERSION, _ROWS, _CREATED_AT, _SUPERSEDES, KEY_ID, _WORDS, _VECTORS = range(1, 10)
_COUNTS = struct.Struct("<II")
_DIGEST_BYTES = 16
_HEAD = _COUNTS.size + _DIGEST_BYTES
_INT8 = np.dtype(np.int8)


def pack_fact(tenant: str, fact: StoredFact, config: MemoryConfig, key: DataKey, version: int) -> tuple[Any, ...]:
    """One row of the `fact` table, sealed under `key`; `version` is the tenant's version that writes it.

    Raises ValueError when the fact's arrays do not have the shapes of `config`.
    """
    _check_shapes(tenant, fact, config)
    parts = fact.latents.shape[0]
    plain = (tenant, int(fact.seq), fact.fact_id, version, parts, float(fact.created_at), fact.supersedes, key.id)
    latents = fact.latents.tobytes()
    vectors = b"".join(
        (
            _COUNTS.pack(fact.prompt_tokens, fact.target_tokens),
            fact.prompt_digest,
            fact.key.astype("<f2", copy=False).tobytes(),
            fact.addresses.tobytes(),
            _pack_latents(latents, config.latent_size),
        )
    )
    context = msgpack.packb(plain)
    words = msgpack.packb((fact.prompt, fact.target, fact.tags))
    cipher = Cipher(key.key)
    nonces = os.urandom(2 * NONCE_BYTES)
    return (
        *plain,
        cipher.seal(words, context + b"words", nonces[:NONCE_BYTES]),
        cipher.seal(vectors, context + b"vectors", nonces[NONCE_BYTES:]),
    )


def unpack_fact(row: Sequence[Any], keys: Mapping[int, bytes], config: MemoryConfig) -> StoredFact:
    """The fact of a complete row; its arrays are read-only views. Raises RowDamaged."""
    context, cipher = _open(row, keys)
    prompt, target, tags = _unseal_words(row, context, cipher)
    vectors = _unseal(row, row[_VECTORS], context + b"vectors", cipher)
    parts, (prompt_tokens, target_tokens) = row[_ROWS], _COUNTS.unpack_from(vectors)
    addresses_at = _HEAD + 2 * config.key_size
    latents_at = addresses_at + parts * config.address_size
    return StoredFact(
        fact_id=row[_FACT_ID],
        seq=row[_SEQ],
        key=np.frombuffer(vectors, "<f2", config.key_size, _HEAD),
        addresses=np.frombuffer(vectors, _INT8, parts * config.address_size, addresses_at).reshape(parts, -1),
        latents=np.frombuffer(_unpack_latents(vectors[latents_at:], parts, config.latent_size), _INT8).reshape(
            parts, -1
        ),
        prompt_tokens=prompt_tokens,
        target_tokens=target_tokens,
        prompt_digest=vectors[_COUNTS.size : _HEAD],
        created_at=row[_CREATED_AT],
        tags=tags,
        supersedes=row[_SUPERSEDES],
        prompt=prompt,
        target=target,
        version=row[_VERSION],
    )


def unpack_record(row: Sequence[Any], keys: Mapping[int, bytes]) -> FactRecord:
    """The listing of a row that has at least the columns up to `words`. Raises RowDamaged."""
    context, cipher = _open(row, keys)
    prompt, target, tags = _unseal_words(row, context, cipher)
    return FactRecord(
        fact_id=row[_FACT_ID],
        seq=row[_SEQ],
        created_at=row[_CREATED_AT],
        rows=row[_ROWS],
        tags=tags,
        supersedes=row[_SUPERSEDES],
        prompt=prompt,
        target=target,
    )


def tag_digest(salt: bytes, tag: str) -> bytes:
    """How a tag is indexed: 16 bytes that nobody can match with a guess who does not know the tenant's salt."""
    return hashlib.blake2b(tag.encode(), key=salt, digest_size=16, person=b"larimar tag").digest()


# -- inside -----------------------------------------------------------------------------------------------------


def _check_shapes(tenant: str, fact: StoredFact, config: MemoryConfig) -> None:
    parts = fact.latents.shape[0]
    shapes = (fact.key.shape, fact.addresses.shape, fact.latents.shape)
    expected = ((config.key_size,), (parts, config.address_size), (parts, config.latent_size))
    if shapes != expected or parts < 1:
        raise ValueError(f"fact {fact.seq} of tenant {tenant!r} has shapes {shapes}, expected {expected}")
    if fact.addresses.dtype != _INT8 or fact.latents.dtype != _INT8:
        raise ValueError(f"addresses and latents must be int8, got {fact.addresses.dtype} and {fact.latents.dtype}")
    if len(fact.prompt_digest) != _DIGEST_BYTES:
        raise ValueError(f"a prompt digest has {_DIGEST_BYTES} bytes, not {len(fact.prompt_digest)}")


def _open(row: Sequence[Any], keys: Mapping[int, bytes]) -> tuple[bytes, Cipher]:
    """The context and the cipher of a row's sealed values."""
    key = keys.get(row[KEY_ID])
    if key is None:
        raise RowDamaged(f"fact {row[_SEQ]} has no data key in the vault")
    try:
        return msgpack.packb(tuple(row[:PLAIN_COLUMNS])), Cipher(key)
    except (TypeError, ValueError, OverflowError) as error:
        raise RowDamaged(f"fact {row[_SEQ]} holds a value that no fact was written with") from error


def _unseal(row: Sequence[Any], sealed: bytes, context: bytes, cipher: Cipher) -> bytes:
    try:
        return cipher.unseal(sealed, context)
    except (SealBroken, TypeError) as error:  # TypeError: not even bytes
        raise RowDamaged(f"fact {row[_SEQ]} does not open with its data key") from error


def _unseal_words(row: Sequence[Any], context: bytes, cipher: Cipher) -> tuple[str | None, str | None, tuple[str, ...]]:
    prompt, target, tags = msgpack.unpackb(_unseal(row, row[_WORDS], context + b"words", cipher))
    return prompt, target, tuple(tags)


def _pack_latents(dense: bytes, size: int) -> bytes:
    """Rows of `size` bytes as their trimmed lengths (uint32, little-endian), then the rows less trailing zeros."""
    if len(dense) == size:
        row = dense.rstrip(b"\0")
        return len(row).to_bytes(4, "little") + row
    rows = [dense[start : start + size].rstrip(b"\0") for start in range(0, len(dense), size)]
    lengths = np.array([len(row) for row in rows], "<u4")
    return lengths.tobytes() + b"".join(rows)


def _unpack_latents(packed: bytes, parts: int, size: int) -> bytes:
    """The inverse of `_pack_latents`: parts * size bytes."""
    if parts == 1:
        return packed[4:].ljust(size, b"\0")
    dense = []
    start = 4 * parts
    for length in np.frombuffer(packed, "<u4", count=parts).tolist():
        dense.append(packed[start : start + length].ljust(size, b"\0"))
        start += length
    return b"".join(dense)
