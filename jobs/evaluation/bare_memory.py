"""One tenant's memory exactly as the product keeps it, without the ledger, the vault and the threads around it.

What a write adds is decided by `Draft` and done by `TenantMemory.apply`, as in the engine; the rows a ledger would
keep are kept in a dictionary. For experiments on the algebra, and as the memory that never saw something.
"""

from __future__ import annotations

from collections.abc import Sequence

from memory_actor.addressing import Addressing
from memory_actor.draft import Draft
from memory_actor.effects import FactsWritten, StoredFact
from memory_actor.tenant import TenantMemory
from memory_actor.types import EncodedFacts, FactText, Float16Array, MemoryConfig, ReadMode, Recall, Retention


class BareMemory:
    """Writes under ids that the caller gives, recalls, and hashes its state. Facts of equal prompts are all kept."""

    def __init__(self, config: MemoryConfig) -> None:
        self._stored: dict[str, StoredFact] = {}
        self._tenant = TenantMemory(
            "bare",
            Retention.LATENT,
            bytes(32),
            0.0,
            addressing=Addressing(config),
            config=config,
            rows_of=lambda fact_ids: [self._stored[fact_id] for fact_id in fact_ids],
        )

    def write(self, encoded: EncodedFacts, fact_ids: Sequence[str]) -> None:
        """Write N facts under these ids, in one batch."""
        texts = [FactText(fact_id, keep_both=True) for fact_id in fact_ids]
        prepared = Draft(self._tenant).write(texts, encoded, fact_ids, now=0.0)
        if isinstance(prepared.effect, FactsWritten):  # the only effect a write has
            self._stored.update({fact.fact_id: fact for fact in prepared.effect.facts})
        self._tenant.apply(prepared)

    def recall(self, keys: Float16Array) -> Recall:
        """The snap read for one query's keys (P, D) float16, gate included."""
        return self._tenant.recall(keys, ReadMode.SNAP)

    def state_hash(self) -> str:
        """See `state_hash.py`: equal for equal facts under equal ids, whatever the order they came in."""
        return self._tenant.state_hash()


def taken(encoded: EncodedFacts, positions: Sequence[int]) -> EncodedFacts:
    """The facts at `positions`, in that order, with their rows of latents."""
    ends = encoded.rows.cumsum()
    rows = [row for i in positions for row in range(int(ends[i] - encoded.rows[i]), int(ends[i]))]
    chosen = list(positions)
    return EncodedFacts(
        keys=encoded.keys[chosen],
        latents=encoded.latents[rows],
        rows=encoded.rows[chosen],
        prompt_tokens=encoded.prompt_tokens[chosen],
        target_tokens=encoded.target_tokens[chosen],
    )
