"""What the router's `retract` relies on: the engine looks up an idempotency key before it looks at the deadline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.router import _NOTHING
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.errors import DeadlineExceeded
from memory_actor.types import EncodedFacts, FactText, Idempotency, MemoryConfig, Retention


def test_a_write_past_its_deadline_is_answered_or_refused_but_never_applied(tmp_path: Path) -> None:
    """An unknown key is refused and leaves the state alone; a known one gets the first reply."""
    config = MemoryConfig(fingerprint="5a11", key_size=8, address_size=32, latent_size=16)
    engine = MemoryEngine.open(0, tmp_path / "a.sqlite", config, EngineSettings(), on_poison=lambda _: None)
    once = Idempotency("k", b"d" * 32, "retract")
    one = np.ones(1, np.int32)
    encoded = EncodedFacts(np.eye(1, 8, dtype=np.float16), np.ones((1, 16), np.int8), one, one, one)
    try:
        engine.create_tenant("acme", Retention.TEXT, Idempotency("c", b"c" * 32, "create_tenant")).result()
        before = engine.summary("acme")
        with pytest.raises(DeadlineExceeded):
            engine.write("acme", [], _NOTHING, once, -1.0).result()
        assert engine.summary("acme") == before
        wrote = engine.write("acme", [FactText("a", "b")], encoded, once, 60.0).result()
        again = engine.write("acme", [], _NOTHING, once, -1.0).result()
        assert (again.fact_ids, again.version, again.replayed) == (wrote.fact_ids, wrote.version, True)
    finally:
        engine.close()
