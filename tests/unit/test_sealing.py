"""Sealing: what opens, what does not, and that no key can be seen."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as Primitive
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from memory_actor.sealing import KEY_BYTES, NONCE_BYTES, OVERHEAD_BYTES, Cipher, SealBroken, new_key, seal, unseal

KEY = bytes(range(32))


@pytest.mark.parametrize("plain", [b"", b"x", bytes(70_000)])
def test_what_was_sealed_opens(plain: bytes):
    """The plain text comes back, and the sealed value is longer by nonce and tag alone."""
    sealed = seal(KEY, plain, b"place")
    assert unseal(KEY, sealed, b"place") == plain
    assert len(sealed) == len(plain) + OVERHEAD_BYTES


def test_another_implementation_opens_it():
    """The layout is nonce, ciphertext, tag of AES-256-GCM with the context as additional data, as documented."""
    sealed = seal(KEY, b"a secret", b"place")
    mode = modes.GCM(sealed[:NONCE_BYTES], tag=sealed[-16:])
    decryptor = Primitive(algorithms.AES(KEY), mode).decryptor()
    decryptor.authenticate_additional_data(b"place")
    assert decryptor.update(sealed[NONCE_BYTES:-16]) + decryptor.finalize() == b"a secret"


def test_every_flipped_bit_is_noticed():
    """No bit of nonce, ciphertext or tag can change without SealBroken."""
    sealed = seal(KEY, b"twenty bytes of text", b"place")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            unseal(KEY, bytes(changed), b"place")


def test_every_cut_is_noticed():
    """A value cut short anywhere, or with something behind it, does not open."""
    sealed = seal(KEY, b"twenty bytes of text", b"place")
    for other in [*(sealed[:end] for end in range(len(sealed))), sealed + b"\0"]:
        with pytest.raises(SealBroken):
            unseal(KEY, other, b"place")


def test_it_opens_with_its_key_and_in_its_place_only():
    """Another key or another context is refused."""
    sealed = seal(KEY, b"text", b"place")
    for key, context in ((new_key(), b"place"), (KEY, b"other place"), (KEY, b"")):
        with pytest.raises(SealBroken):
            unseal(key, sealed, context)


def test_the_same_text_never_looks_the_same():
    """Nonces and keys are fresh each time."""
    sealed = {seal(KEY, b"text", b"") for _ in range(1000)}
    assert len({one[:NONCE_BYTES] for one in sealed}) == len(sealed) == 1000
    assert len({new_key() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_only_256_bit_keys_are_taken(size: int):
    """AES would take shorter ones without a word."""
    with pytest.raises(ValueError, match=f"{KEY_BYTES} bytes"):
        seal(random.Random(size).randbytes(size), b"text", b"")


def test_no_key_is_shown():
    """Neither the repr of a cipher nor the errors quote a key, plain text or context."""
    shown = repr(Cipher(KEY))
    with pytest.raises(SealBroken) as broken:
        unseal(new_key(), seal(KEY, b"a secret", b"hidden place"), b"hidden place")
    shown += str(broken.value) + repr(broken.value)
    assert not [one for one in (KEY.hex(), repr(KEY)[2:20], "secret", "hidden") if one in shown]
