"""AES-256-GCM for everything at rest: what was sealed under a key opens only with that key and in its own place.

A sealed value is `nonce (12 bytes, random) | ciphertext (as long as the plain text) | tag (16 bytes)`. `context` says
where the value belongs; it is authenticated and not stored. Random nonces are safe for 2^32 values under one key: data
keys seal a handful, a tenant key seals one wrapped key per fact.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = NONCE_BYTES + 16
"""How much longer a sealed value is than its plain text."""


class SealBroken(Exception):
    """A sealed value does not open: it was changed, belongs elsewhere, or was sealed under another key."""


class Cipher:
    """One key, ready for use: worth keeping when it seals or opens more than one value. Its repr shows no key."""

    __slots__ = ("_aes",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._aes = AESGCM(key)

    def seal(self, plain: bytes, context: bytes, nonce: bytes | None = None) -> bytes:
        """`plain`, sealed. `nonce`: fresh random bytes when the caller has drawn many at once, never used before."""
        if nonce is None:
            nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, plain, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """The plain text. Raises SealBroken."""
        if len(sealed) < OVERHEAD_BYTES:
            raise SealBroken("a sealed value is shorter than its nonce and tag")
        try:
            return self._aes.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
        except InvalidTag:
            raise SealBroken("a sealed value was changed, or belongs to another key or place") from None


def new_key() -> bytes:
    """KEY_BYTES random bytes."""
    return os.urandom(KEY_BYTES)


def seal(key: bytes, plain: bytes, context: bytes) -> bytes:
    """`plain`, sealed under `key` for the place `context`; OVERHEAD_BYTES longer."""
    return Cipher(key).seal(plain, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """What `seal` was given. Raises SealBroken when anything of the three differs."""
    return Cipher(key).unseal(sealed, context)
