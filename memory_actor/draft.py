"""What a request would change, decided against the memory and everything drafted before it in the same commit.

A draft may refuse; it never changes the memory. Ids and times arrive as arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from memory_actor.effects import Erasure, FactsForgotten, FactsWritten, StoredFact
from memory_actor.episodic_memory import EXACT_INTEGER_MAX
from memory_actor.errors import EncodingMismatch, MemoryCapacityExceeded, NonFiniteEncoding
from memory_actor.state_hash import state_hash
from memory_actor.tenant import Prepared, TenantMemory, sums
from memory_actor.types import EncodedFacts, FactText, Int8Array, MemoryConfig, Retention, TenantSummary

_INT8_MAGNITUDE_MAX = 128
_UNIT_NORM_TOLERANCE = 1e-2  # float16 keys of 384 dimensions are unit to 1e-3


class Draft:
    """Changes prepared on one tenant but not yet committed. Used by the writer thread only."""

    def __init__(self, tenant: TenantMemory, exact_integer_max: int = EXACT_INTEGER_MAX) -> None:
        self._tenant = tenant
        self._exact_integer_max = exact_integer_max
        self._version = tenant.version
        self._next_seq = tenant.next_seq
        self._added: dict[str, StoredFact] = {}
        self._removed: dict[str, StoredFact] = {}  # of those the memory holds
        self._prompts: dict[bytes, list[str]] = {}  # live drafted facts by prompt digest
        self._hidden: set[str] = set()  # facts of the memory that no prompt finds any more
        #: Ids that any request so far has ended, superseded ones included: no restore may bring them back.
        self.ended: set[str] = set()

    @property
    def tenant(self) -> TenantMemory:
        """The memory this is drafted on, which `Prepared` has to be applied to."""
        return self._tenant

    @property
    def version(self) -> int:
        """The tenant's version as if everything drafted so far were applied."""
        return self._version

    @property
    def next_seq(self) -> int:
        """The position the next fact will take."""
        return self._next_seq

    @property
    def facts(self) -> int:
        """Live facts as if everything drafted so far were applied."""
        return len(self._tenant.facts) + len(self._added) - len(self._removed)

    def summary(self) -> TenantSummary:
        """The tenant as if everything drafted so far were applied, without a hash."""
        return replace(self._tenant.summary(with_hash=False), facts=self.facts, version=self._version)

    def state_hash(self) -> str:
        """The state hash as if everything drafted so far were applied."""
        config = self._tenant.config
        total = self._tenant.total()
        total.merge_(sums(config, list(self._added.values())))
        total.merge_(sums(config, list(self._removed.values())), alpha=-1)
        return state_hash(config, total, self.live_ids())

    def live_ids(self) -> set[str]:
        """Ids of the live facts as if everything drafted so far were applied."""
        return (self._tenant.facts.keys() | self._added.keys()) - self._removed.keys()

    def write(
        self,
        texts: Sequence[FactText],
        encoded: EncodedFacts,
        fact_ids: Sequence[str],
        now: float,
        erasure: Erasure | None = None,
    ) -> Prepared:
        """Prepare a write of N facts. `effect.forgotten` are the facts it supersedes; `erasure` is for their bytes.

        A fact supersedes every live fact with the same prompt, one earlier in the same request included, unless it
        says `keep_both`. Raises EncodingMismatch, NonFiniteEncoding, MemoryCapacityExceeded; then nothing changed.
        """
        check_encoding(self._tenant.config, encoded, len(texts))
        self._check_exact_range(int(encoded.rows.sum()))
        # What can fail comes before the first change, so that a refusal leaves the draft as it was.
        new = list(self._stored(texts, encoded, fact_ids, now))
        stored = self._rows_of(
            fact_id
            for text, fact in zip(texts, new, strict=True)
            for fact_id in (() if text.keep_both else self._live_with(fact.prompt_digest))
        )
        facts: dict[str, StoredFact] = {}
        superseded: list[str] = []
        for text, fact in zip(texts, new, strict=True):
            same = [] if text.keep_both else self._live_with(fact.prompt_digest)
            for fact_id in same:
                self._drop_prompt(fact.prompt_digest, fact_id)
                facts.pop(fact_id, None)
            superseded.extend(same)
            facts[fact.fact_id] = replace(fact, supersedes=same[-1]) if same else fact
            self._prompts.setdefault(fact.prompt_digest, []).append(fact.fact_id)
        # One superseded within this request was never live anywhere: only its id is reported.
        ended = [fact_id for fact_id in superseded if self._is_live(fact_id)]
        removed = self._remove(ended, stored)
        self._added.update(facts)
        self._next_seq += len(texts)
        self._version += 1
        effect = FactsWritten(
            self._tenant.name, self._version, tuple(facts.values()), tuple(ended), erasure if ended else None
        )
        return Prepared(effect, removed, tuple(superseded))

    def forget(self, fact_ids: Sequence[str]) -> Prepared:
        """Prepare to forget those of `fact_ids` that are live. Unknown ids are no error: forgetting is idempotent."""
        found = [fact_id for fact_id in dict.fromkeys(fact_ids) if self._is_live(fact_id)]
        removed = self._remove(found, self._rows_of(found))
        for fact in removed:
            self._drop_prompt(fact.prompt_digest, fact.fact_id)
        self._version += 1 if found else 0
        return Prepared(FactsForgotten(self._tenant.name, self._version, tuple(found)), removed)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _is_live(self, fact_id: str) -> bool:
        return fact_id in self._added or (fact_id in self._tenant.facts and fact_id not in self._removed)

    def _live_with(self, prompt_digest: bytes) -> list[str]:
        """Ids of live facts with this prompt, oldest first."""
        stored = [i for i in self._tenant.by_prompt.get(prompt_digest, ()) if i not in self._hidden]
        return stored + self._prompts.get(prompt_digest, [])

    def _drop_prompt(self, prompt_digest: bytes, fact_id: str) -> None:
        """A fact no longer answers to its prompt, from here on in this draft."""
        drafted = self._prompts.get(prompt_digest, [])
        if fact_id in drafted:
            drafted.remove(fact_id)
        else:
            self._hidden.add(fact_id)

    def _rows_of(self, fact_ids: Iterable[str]) -> dict[str, StoredFact]:
        """These live facts with their rows. May raise what the ledger raises."""
        wanted = list(dict.fromkeys(fact_ids))
        stored = self._tenant.rows_of([fact_id for fact_id in wanted if fact_id not in self._added])
        rows = {fact.fact_id: fact for fact in stored}
        return {fact_id: self._added.get(fact_id) or rows[fact_id] for fact_id in wanted}

    def _remove(self, fact_ids: Sequence[str], rows: Mapping[str, StoredFact]) -> tuple[StoredFact, ...]:
        """The rows of live facts, and the draft without them."""
        for fact_id in fact_ids:
            if self._added.pop(fact_id, None) is None:
                self._removed[fact_id] = rows[fact_id]
        self.ended.update(fact_ids)
        return tuple(rows[fact_id] for fact_id in fact_ids)

    def _check_exact_range(self, new_rows: int) -> None:
        config = self._tenant.config
        largest = config.address_scale * _INT8_MAGNITUDE_MAX  # of one product in the sums
        # Drafted removals are not taken off: the sums pass through the larger value.
        rows = self._tenant.total_rows + sum(f.addresses.shape[0] for f in self._added.values()) + new_rows
        limit = self._exact_integer_max // largest
        if rows > limit:
            raise MemoryCapacityExceeded(self._tenant.name, "rows in exact sums", rows, limit)

    def _stored(
        self, texts: Sequence[FactText], encoded: EncodedFacts, fact_ids: Sequence[str], now: float
    ) -> Iterable[StoredFact]:
        """The N facts as they will be kept, ids and sequence numbers given in order."""
        tenant = self._tenant
        keep_text = tenant.retention is Retention.TEXT
        addresses = tenant.addressing.addresses(torch.from_numpy(encoded.keys.astype(np.float32)))
        ends = np.cumsum(encoded.rows)
        for i, (text, fact_id) in enumerate(zip(texts, fact_ids, strict=True)):
            count = int(encoded.rows[i])
            parts: Int8Array = tenant.addressing.parts(addresses[i], count).cpu().numpy()
            yield StoredFact(
                fact_id=fact_id,
                seq=self._next_seq + i,
                key=encoded.keys[i],
                addresses=parts,
                latents=encoded.latents[int(ends[i]) - count : int(ends[i])],
                prompt_tokens=int(encoded.prompt_tokens[i]),
                target_tokens=int(encoded.target_tokens[i]),
                prompt_digest=prompt_digest(text.prompt, tenant.salt),
                created_at=now,
                version=self._version + 1,
                tags=text.tags,
                prompt=text.prompt if keep_text else None,
                target=text.target if keep_text else None,
            )


def prompt_digest(prompt: str, salt: bytes) -> bytes:
    """16 bytes that recognise a prompt again, worthless without the tenant's salt. Outer white space is ignored."""
    return hashlib.blake2b(prompt.strip().encode(), key=salt, digest_size=16).digest()


def check_encoding(config: MemoryConfig, encoded: EncodedFacts, facts: int) -> None:
    """Raise EncodingMismatch or NonFiniteEncoding unless `encoded` holds `facts` facts of this memory's shapes."""
    if len(encoded) != facts:
        raise EncodingMismatch("number of encoded facts", facts, len(encoded))
    for what, array, dtype, columns in (
        ("keys", encoded.keys, np.float16, config.key_size),
        ("latents", encoded.latents, np.int8, config.latent_size),
    ):
        if array.dtype != dtype or array.shape[1] != columns:
            got = f"{array.dtype} of {array.shape[1]} columns"
            raise EncodingMismatch(what, f"{np.dtype(dtype)} of {columns} columns", got)
    if not np.isfinite(encoded.keys).all():
        raise NonFiniteEncoding("a key")
    if facts == 0:
        return
    norms = np.linalg.norm(encoded.keys.astype(np.float32), axis=1)
    if np.abs(norms - 1).max() > _UNIT_NORM_TOLERANCE:
        raise EncodingMismatch("length of a key", "1", f"{norms[np.abs(norms - 1).argmax()]:.4f}")
    if encoded.rows.min() < 1 or encoded.rows.max() > config.rows_per_fact_max:
        wrong = encoded.rows[(encoded.rows < 1) | (encoded.rows > config.rows_per_fact_max)]
        raise EncodingMismatch("parts of a fact", f"1 to {config.rows_per_fact_max}", int(wrong[0]))
    for what, tokens in (("prompt_tokens", encoded.prompt_tokens), ("target_tokens", encoded.target_tokens)):
        if tokens.min() < 0:
            raise EncodingMismatch(what, "0 or more", int(tokens.min()))
