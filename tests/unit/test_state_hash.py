"""The state hash: a function of the contents, byte for byte as documented."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.state_hash import state_hash
from tests.memory_fixtures import SMALL

GOLDEN = "950d72b6c1076425d1532e99bdfad585ecc754dfdf0b0dfd204b41769b6c33f2"

IDS = ["f_b", "f_a", "f_c"]


def statistics() -> SufficientStatistics:
    made = SufficientStatistics.zeros(SMALL.address_size, SMALL.latent_size)
    # Not from a generator: numpy may change its streams between versions.
    w = (np.arange(3 * 32).reshape(3, 32) * 37 % 255 - 127).astype(np.int8)
    z = (np.arange(3 * 24).reshape(3, 24) * 5 % 7 % 2 * 2 - 1).astype(np.int8)
    made.write_(torch.from_numpy(w), torch.from_numpy(z))
    return made


def test_the_hash_is_golden():
    """A fixed memory has this hash for ever: receipts that people keep depend on it."""
    assert state_hash(SMALL, statistics(), IDS) == GOLDEN


def test_the_hash_is_what_the_documentation_says():
    """SHA-256 over header, counts, sorted ids, upper triangle and H, rebuilt here with struct-like numpy alone."""
    made = statistics()
    head = "larimar-state-1|5a11|32|24|fourier|3|3|f_a\nf_b\nf_c"
    upper = made.cov.numpy()[np.triu_indices(32)].astype("<i8").tobytes()
    body = head.encode() + upper + made.cross.numpy().astype("<i8").tobytes()
    assert state_hash(SMALL, made, IDS) == hashlib.sha256(body).hexdigest()


def test_the_order_of_ids_does_not_matter_and_everything_else_does():
    """Ids, counts, any one sum, sizes, map and bundle each move the hash."""
    base = state_hash(SMALL, statistics(), IDS)
    assert state_hash(SMALL, statistics(), reversed(IDS)) == base
    hashes = {base, state_hash(SMALL, statistics(), IDS[:2]), state_hash(SMALL, statistics(), ["f_x", *IDS[1:]])}
    for config in (replace(SMALL, fingerprint="5a12"), replace(SMALL, feature_map="pinv")):
        hashes.add(state_hash(config, statistics(), IDS))
    for name, index in (("cov", (0, 31)), ("cov", (5, 5)), ("cross", (31, 23))):
        made = statistics()
        getattr(made, name)[index] += 1
        hashes.add(state_hash(SMALL, made, IDS))
    made = statistics()
    made.rows += 1
    hashes.add(state_hash(SMALL, made, IDS))
    assert len(hashes) == 9


def test_negative_zero_is_zero():
    """0 - 0 may be -0.0 in floating point; it is the same sum."""
    made = statistics()
    made.cross[0, 0] = 0.0
    plus = state_hash(SMALL, made, IDS)
    made.cross[0, 0] = -0.0
    assert state_hash(SMALL, made, IDS) == plus


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_sums_that_are_not_integers_are_refused(value):
    made = statistics()
    made.cross[3, 3] = value
    with pytest.raises(ValueError, match="not integers"):
        state_hash(SMALL, made, IDS)
