"""The token codec's arithmetic, without any model: codes, row lengths, and what noise does to them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.row_codec import row_lengths
from workers.token_codec import token_codes


def test_codes_are_the_bits_of_shake_256():
    """The first codes are the first bits of SHAKE-256 of the seed, most significant bit first: platform-stable."""
    stream = hashlib.shake_256(b"a seed").digest(8)
    bits = "".join(f"{byte:08b}" for byte in stream)
    expected = [[1 if bit == "1" else -1 for bit in bits[start : start + 32]] for start in (0, 32)]
    assert token_codes("a seed", 2, 32).tolist() == expected


def test_codes_are_unique_even_when_the_stream_repeats_itself():
    """With 100 codes of 8 bits the stream surely repeats words; the codes do not; a longer list extends a shorter."""
    codes = token_codes("a seed", 100, 8)
    assert len({tuple(code) for code in codes.tolist()}) == 100
    assert np.array_equal(token_codes("a seed", 40, 8), codes[:40])


def test_the_default_codes_never_change():
    """Stored latents mean nothing under other codes: their digest is pinned."""
    digest = hashlib.sha256(token_codes("larimar/token-codec/1", 49152, 32).tobytes()).hexdigest()
    assert digest == "e0ed522cf0214cf3fd9bd35190d670ecd66d7262be1058b0871e7e3d612be289"


def test_too_many_codes_are_refused():
    with pytest.raises(ValueError, match="cannot draw"):
        token_codes("a seed", 200, 8)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=8), seed=st.integers(0, 2**32 - 1))
def test_row_lengths_are_recovered_under_noise(lengths, seed):
    """Noise of 0.3 per dimension never changes how many tokens each row is read to hold."""
    rng = np.random.default_rng(seed)
    positions = rng.normal(0, 0.3, (len(lengths), 24, 32)).astype(np.float32)
    for row, length in enumerate(lengths):
        positions[row, :length] += rng.choice([-1, 1], (length, 32))
    assert row_lengths(np.square(positions).sum(-1).cumsum(1), sum(lengths)) == lengths


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_row_lengths_always_add_up_to_the_known_total(data):
    """Whatever the readout, exactly the known number of tokens is read, at least one from each row."""
    rows = data.draw(st.integers(1, 8))
    total = data.draw(st.integers(rows, rows * 24))
    energy = np.random.default_rng(total).exponential(10, (rows, 24)).astype(np.float32)
    lengths = row_lengths(energy, total)
    assert sum(lengths) == total
    assert all(1 <= length <= 24 for length in lengths)


@pytest.mark.parametrize("total", [1, 49])
def test_impossible_totals_are_refused(total):
    with pytest.raises(ValueError, match="cannot stand"):
        row_lengths(np.zeros((2, 24), np.float32), total)
