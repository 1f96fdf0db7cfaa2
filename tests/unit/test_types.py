"""The plain types: shapes are checked on entry, everything pickles and becomes plain JSON."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from memory_actor.types import (
    FactPage,
    FactRecord,
    MemoryConfig,
    ReadMode,
    Recall,
    Retention,
    TenantSummary,
    as_plain,
)
from tests.memory_fixtures import SMALL, encoded_facts, sign_latents, unit_keys


def test_encoded_facts_know_their_shapes():
    """N facts in R rows; every disagreement between the arrays is refused by name."""
    good = encoded_facts(unit_keys(1, 3), sign_latents(1, 5), [1, 3, 1])
    assert len(good) == 3
    for change, message in (
        ({"keys": good.keys[0]}, "must be matrices"),
        ({"latents": good.latents[0]}, "must be matrices"),
        ({"rows": good.rows[:2]}, r"rows must have shape \(3,\)"),
        ({"prompt_tokens": good.rows[:2]}, "prompt_tokens must have shape"),
        ({"target_tokens": good.rows[:2]}, "target_tokens must have shape"),
        ({"latents": good.latents[:4]}, "rows sum to 5 but latents have 4"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **change)


def test_types_cross_process_borders():
    """Pickling keeps values and array types; instances cannot be changed in place."""
    given = encoded_facts(unit_keys(2, 2))
    copied = pickle.loads(pickle.dumps(given))  # noqa: S301
    assert np.array_equal(copied.keys, given.keys)
    assert copied.keys.dtype == np.float16
    recall = Recall("acme", 3, True, 0.9, "f_1", np.ones((1, 4), np.float32))
    assert pickle.loads(pickle.dumps(recall)).fact_id == "f_1"  # noqa: S301
    with pytest.raises(FrozenInstanceError):
        recall.version = 4  # type: ignore[misc]


def test_plain_values_are_json():
    """Dataclasses in tuples in dataclasses, enums and None come out as JSON holds them."""
    record = FactRecord("f_1", 1, 2.0, 1, ("a", "b"), None, "p", None)
    page = as_plain(FactPage((record,), None))
    assert json.loads(json.dumps(page)) == page
    assert page["facts"][0]["tags"] == ["a", "b"]
    summary = as_plain(TenantSummary("acme", Retention.LATENT, 0.0, 1, 2, 3))
    assert type(summary["retention"]) is str
    assert as_plain({"mode": ReadMode.SNAP, "n": (1, 2.5, None)}) == {"mode": "snap", "n": [1, 2.5, None]}


def test_a_shard_holds_as_many_rows_as_there_are_addresses():
    assert MemoryConfig(fingerprint="00").shard_rows_max == 512
    assert SMALL.shard_rows_max == 8  # the tests' own
