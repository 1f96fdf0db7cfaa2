"""One tenant's memory: its shards, its scope index, its exact total. No ledger, no clock, no randomness, no Ray.

`draft.Draft` decides what a request changes (it may refuse); `TenantMemory.apply` changes it (it may not).
Live writes, replay and restore all go through `apply`. One writer thread; readers on any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from memory_actor.addressing import Addressing
from memory_actor.checkpoint import Snapshot
from memory_actor.checkpoint_packing import pack
from memory_actor.effects import FactsForgotten, FactsWritten, StoredFact
from memory_actor.episodic_memory import SufficientStatistics, read
from memory_actor.errors import StaleMemory
from memory_actor.scope_index import Neighbour, ScopeIndex
from memory_actor.shard import Shard, place
from memory_actor.state_hash import state_hash
from memory_actor.types import Float16Array, MemoryConfig, ReadMode, Recall, Retention, TenantSummary

#: Shards with room that a new fact is tried on. Bounded, so that the cost of a write is too.
CANDIDATE_SHARDS = 4

_FACTS_AT_ONCE = 256  # facts of one step of a load: bounds the matrices that placing them makes
_FACT_BYTES = 700  # Python objects of one live fact, measured

_Salt: TypeAlias = bytes  # inside the class below, `bytes` is its size

#: Stored facts by id, for what memory does not keep: the latents of facts to subtract, the rows of a frozen shard.
RowsOf = Callable[[Sequence[str]], Sequence[StoredFact]]


@dataclass(slots=True)
class LiveFact:
    """What memory keeps of a live fact beside its key and addresses."""

    shard: Shard
    prompt_digest: bytes
    prompt_tokens: int
    target_tokens: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """An effect that was checked against the memory, with the rows of the facts it removes.

    `superseded` also names facts of the same request that a later one replaced before they were ever stored.
    """

    effect: FactsWritten | FactsForgotten
    removed: tuple[StoredFact, ...]
    superseded: tuple[str, ...] = ()


class TenantMemory:
    """The memory of one tenant. `lock` guards it against readers; only the writer thread changes it."""

    def __init__(
        self,
        name: str,
        retention: Retention,
        salt: _Salt,
        created_at: float,
        *,
        addressing: Addressing,
        config: MemoryConfig,
        rows_of: RowsOf,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.retention, self.salt, self.created_at = name, retention, salt, created_at
        self.config, self.addressing, self.rows_of = config, addressing, rows_of
        self.lock = threading.RLock()
        #: Mutations so far; every acknowledged change makes it larger by one.
        self.version = 0
        self.next_seq = 1
        self.facts: dict[str, LiveFact] = {}
        #: Live facts by the digest of their prompt, to find what a write supersedes.
        self.by_prompt: dict[bytes, list[str]] = {}
        self._device = torch.device(device)
        self._index = ScopeIndex(config.key_size, device)
        self._shards: list[Shard] = []
        self._open: list[Shard] = []  # those with room
        #: Sums of all frozen shards together. Warm shards hold their own.
        self._frozen = SufficientStatistics.zeros(config.address_size, config.latent_size)

    # -- what it is ---------------------------------------------------------------------------------------------

    def total(self) -> SufficientStatistics:
        """The sums over all shards, as a copy."""
        with self.lock:
            total = self._frozen.copy()
            for shard in self._shards:
                if shard.statistics is not None:
                    total.merge_(shard.statistics)
            return total

    @property
    def total_rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.rows for shard in self._shards)

    @property
    def bytes(self) -> int:
        """About what the memory takes, in bytes: what leaves with it when the tenant goes cold."""
        with self.lock:
            frozen = self._frozen.cov.nbytes + self._frozen.cross.nbytes if self._frozen.rows else 0
            shards = sum(shard.bytes for shard in self._shards)
            return frozen + shards + self._index.bytes + _FACT_BYTES * len(self.facts)

    def snapshot(self, uid: str, rows_of: RowsOf | None = None) -> Snapshot | None:
        """The contents at one version, taken beside the writer; None when a fact in it was forgotten meanwhile.

        The sums are copied under the lock; the rows are asked for afterwards (from `rows_of`, by default the ledger),
        since the rows of a live fact never change. Ask again after None.
        """
        with self.lock:
            version, total, fact_ids = self.version, self.total(), sorted(self.facts)
        facts = sorted((rows_of or self.rows_of)(fact_ids), key=lambda fact: fact.fact_id)
        if [fact.fact_id for fact in facts] != fact_ids:
            return None
        return Snapshot(
            tenant=self.name,
            uid=uid,
            retention=self.retention,
            salt=self.salt,
            created_at=self.created_at,
            version=version,
            state_hash=state_hash(self.config, total, fact_ids),
            sums=total,
            facts=tuple(facts),
        )

    def state_hash(self) -> str:
        """SHA-256 of the whole memory; equal for equal contents (see `state_hash.py`)."""
        with self.lock:
            total, fact_ids = self.total(), list(self.facts)
        return state_hash(self.config, total, fact_ids)

    def summary(self, *, with_hash: bool) -> TenantSummary:
        with self.lock:
            return TenantSummary(
                name=self.name,
                retention=self.retention,
                created_at=self.created_at,
                facts=len(self.facts),
                version=self.version,
                shards=len(self._shards),
                state_hash=self.state_hash() if with_hash else None,
            )

    # -- changing it --------------------------------------------------------------------------------------------

    def apply(self, prepared: Prepared) -> None:
        """Change the memory as prepared. Never refuses: what could fail was checked before the commit."""
        effect = prepared.effect
        with self.lock:
            self._remove(prepared.removed)
            if isinstance(effect, FactsWritten):
                self._add(effect.facts)
            self.version = effect.version

    def replay(self, facts: Sequence[StoredFact]) -> None:
        """Take in facts read back from the ledger, in any order and any batching."""
        with self.lock:
            self._add(facts)

    def end(self) -> None:
        """Let go of everything: the tenant was deleted. A reader that still holds it finds an empty memory."""
        with self.lock:
            self.facts, self.by_prompt = {}, {}
            self._index = ScopeIndex(self.config.key_size, self._device)
            self._shards, self._open = [], []
            self._frozen = SufficientStatistics.zeros(self.config.address_size, self.config.latent_size)

    def load(self, snapshot: Snapshot, seqs: Mapping[str, int] | None = None) -> None:
        """Take in a whole snapshot: what `replay` of its facts does, without a product over them where possible.

        `seqs` are the facts' positions in the ledger where it knows them, in the same order as the snapshot's. Raises
        ValueError unless the memory is empty.
        """
        facts = sorted(snapshot.facts, key=lambda fact: fact.seq)
        if seqs is not None:
            facts = [replace(fact, seq=seqs[fact.fact_id]) for fact in facts]
        with self.lock:
            if self.facts or self._shards:
                raise ValueError(f"tenant {self.name!r} is not empty")
            total = snapshot.sums.copy()
            whole, rest = pack(facts, self.config)
            for start in range(0, len(rest), _FACTS_AT_ONCE):
                part = rest[start : start + _FACTS_AT_ONCE]
                total.forget_(_stack(f.addresses for f in part), _stack(f.latents for f in part))
            for members in whole:
                self._take(self._new_shard(total if len(whole) == 1 else None), members)
            if len(whole) > 1:
                self._frozen = total
            for start in range(0, len(rest), _FACTS_AT_ONCE):
                self._add_rows(rest[start : start + _FACTS_AT_ONCE])
            self._note(facts)
            self.version = snapshot.version

    def _new_shard(self, statistics: SufficientStatistics | None) -> Shard:
        """An empty shard with room, and the sums it will have: None makes it a frozen one."""
        shard = Shard(self.config, self._device)
        shard.statistics = statistics
        self._shards.append(shard)
        self._open.append(shard)
        return shard

    def _add(self, facts: Sequence[StoredFact]) -> None:
        if facts:
            self._add_rows(facts)
            self._note(facts)

    def _add_rows(self, facts: Sequence[StoredFact]) -> None:
        for shard, members in self._placed(facts):
            addresses = _stack(fact.addresses for fact in members)
            self._statistics_of(shard).write_(addresses, _stack(fact.latents for fact in members))
            self._take(shard, members)
            if shard.room == 0:
                self._freeze(shard)

    def _take(self, shard: Shard, members: Sequence[StoredFact]) -> None:
        """Put facts into a shard whose sums hold them, and into the scope index."""
        fact_ids = [fact.fact_id for fact in members]
        shard.add_many(
            fact_ids, _stack(fact.addresses for fact in members), [fact.addresses.shape[0] for fact in members]
        )
        keys = np.stack([fact.key for fact in members]).astype(np.float32)
        for fact in members:
            self.facts[fact.fact_id] = LiveFact(shard, fact.prompt_digest, fact.prompt_tokens, fact.target_tokens)
        self._index.add_many(fact_ids, torch.from_numpy(keys), [fact.seq for fact in members])
        if shard.room == 0:
            self._open.remove(shard)

    def _note(self, facts: Sequence[StoredFact]) -> None:
        for fact in facts:  # oldest first, whichever shard each has gone to
            self.by_prompt.setdefault(fact.prompt_digest, []).append(fact.fact_id)
        self.next_seq = max(self.next_seq, max((fact.seq for fact in facts), default=0) + 1)

    def _remove(self, facts: Sequence[StoredFact]) -> None:
        by_shard: dict[int, list[StoredFact]] = {}
        for fact in facts:
            by_shard.setdefault(id(self.facts[fact.fact_id].shard), []).append(fact)
        for members in by_shard.values():
            shard = self.facts[members[0].fact_id].shard
            addresses = _stack(fact.addresses for fact in members)
            self._statistics_of(shard).forget_(addresses, _stack(fact.latents for fact in members))
            for fact in members:
                shard.remove(fact.fact_id)
                self._index.remove(fact.fact_id)
                digest = self.facts.pop(fact.fact_id).prompt_digest
                self.by_prompt[digest].remove(fact.fact_id)
                if not self.by_prompt[digest]:
                    del self.by_prompt[digest]
            self._after_removal(shard)

    def _after_removal(self, shard: Shard) -> None:
        if shard.rows == 0:
            self._shards.remove(shard)
            if shard in self._open:
                self._open.remove(shard)
        elif shard not in self._open:
            # At the front: the newest shard, most likely warm, stays first in line for new facts.
            self._open.insert(0, shard)

    def _statistics_of(self, shard: Shard) -> SufficientStatistics:
        return self._frozen if shard.statistics is None else shard.statistics

    def _freeze(self, shard: Shard) -> None:
        if shard.statistics is not None:
            self._frozen.merge_(shard.freeze())

    def _placed(self, facts: Sequence[StoredFact]) -> list[tuple[Shard, list[StoredFact]]]:
        """The shard of each fact, new shards opened as needed. Placement never shows in the state hash."""
        placed: list[tuple[Shard, list[StoredFact]]] = []
        waiting = list(facts)
        candidates = self._open[-CANDIDATE_SHARDS:][::-1]
        while waiting:
            rows = [fact.addresses.shape[0] for fact in waiting]
            choices = place(candidates, _stack(fact.addresses for fact in waiting), rows, self.config.collinearity_max)
            for index, shard in enumerate(candidates):
                members = [fact for fact, choice in zip(waiting, choices, strict=True) if choice == index]
                if members:
                    placed.append((shard, members))
            waiting = [fact for fact, choice in zip(waiting, choices, strict=True) if choice is None]
            candidates = [self._open_shard()] if waiting else []
        return placed

    def _open_shard(self) -> Shard:
        if len(self._open) >= CANDIDATE_SHARDS:
            # Many near-copies of one fact open many shards; only the newest few may keep sums of their own.
            self._freeze(self._open[-CANDIDATE_SHARDS])
        return self._new_shard(SufficientStatistics.zeros(self.config.address_size, self.config.latent_size))

    # -- reading it ---------------------------------------------------------------------------------------------

    def recall(self, keys: Float16Array, mode: ReadMode, min_version: int = 0) -> Recall:
        """The readout of the fact nearest to any of a query's keys (P, D), if that is in scope.

        Snap reads use the stored address of the matched fact, exact up to capacity; soft reads, the paper's, use phi
        of the key that came nearest. Decided once, from the query alone.
        Raises: StaleMemory below `min_version`; ValueError for keys of another shape.
        """
        started = time.perf_counter()
        if self.version < min_version:
            raise StaleMemory(self.name, self.version, min_version)
        query = torch.from_numpy(keys.astype(np.float32))
        neighbour, version = self._nearest(query)
        scope_ms = (time.perf_counter() - started) * 1e3
        if neighbour is None or neighbour.score < self.config.scope_threshold:
            score = 0.0 if neighbour is None else neighbour.score
            return Recall(tenant=self.name, version=version, in_scope=False, score=score, scope_ms=scope_ms)
        found = self._read(neighbour.fact_id, query[neighbour.key], mode)
        if found is None:  # forgotten since it matched: ask again
            return self.recall(keys, mode, min_version)
        readout, fact = found
        return Recall(
            tenant=self.name,
            version=version,
            in_scope=True,
            score=neighbour.score,
            fact_id=neighbour.fact_id,
            readout=readout.numpy(),
            prompt_tokens=fact.prompt_tokens,
            target_tokens=fact.target_tokens,
            scope_ms=scope_ms,
            read_ms=(time.perf_counter() - started) * 1e3 - scope_ms,
        )

    def near(self, keys: Float16Array, limit: int) -> list[Neighbour]:
        """Up to `limit` facts that a query is in scope of by any of its keys (P, D), best first."""
        with self.lock:
            return self._index.within(torch.from_numpy(keys.astype(np.float32)), self.config.scope_threshold, limit)

    def _nearest(self, query: Tensor) -> tuple[Neighbour | None, int]:
        """Nearest fact and the version it was seen at. The search runs beside the writer, its result is checked."""
        # Noted under the lock, so between two changes: in the midst of one, a superseded fact may be gone already and
        # the one that supersedes it not there yet.
        with self.lock:
            index, removals, version = self._index, self._index.removals, self.version
        found = index.search(query)
        with self.lock:
            if self._index is not index or index.removals != removals:
                index, version = self._index, self.version
                found = index.search(query)
            return (None if found is None else index.newest(found)), version

    def _read(self, fact_id: str, key: Tensor, mode: ReadMode) -> tuple[Tensor, LiveFact] | None:
        """Readout (P, C) on the host, or None when the fact is gone. Waits for one solve at most."""
        while True:
            with self.lock:
                fact = self.facts.get(fact_id)
                if fact is None:
                    return None
                shard, changes, memory = fact.shard, fact.shard.changes, fact.shard.memory
                addresses = shard.addresses_of(fact_id)
                warm = None if memory is not None or shard.statistics is None else shard.statistics.copy()
                members = shard.fact_ids
            if memory is None:
                statistics = warm or self._sums_of(members)
                if statistics is None:  # a forget is committed but not applied yet, a matter of moments: look again
                    continue
                memory = shard.solve_from(statistics)
                with self.lock:
                    shard.keep_memory(memory, changes)
            if mode is ReadMode.SOFT:
                first = self.addressing.addresses(key.unsqueeze(0))[0]
                addresses = self.addressing.parts(first, addresses.shape[0])
            return read(memory, addresses, self.config.latent_scale).cpu(), fact

    def _sums_of(self, fact_ids: Sequence[str]) -> SufficientStatistics | None:
        """Sums of a frozen shard, from the ledger; None when a fact was forgotten meanwhile."""
        stored = self.rows_of(fact_ids)
        if len(stored) != len(fact_ids):
            return None
        return sums(self.config, stored)


def sums(config: MemoryConfig, facts: Sequence[StoredFact]) -> SufficientStatistics:
    """The sufficient statistics of these facts alone: what a memory that never saw anything else would hold."""
    statistics = SufficientStatistics.zeros(config.address_size, config.latent_size)
    if facts:
        statistics.write_(_stack(fact.addresses for fact in facts), _stack(fact.latents for fact in facts))
    return statistics


def _stack(arrays: Iterable[np.ndarray[tuple[int, ...], np.dtype[np.int8]]]) -> Tensor:
    """(P_i, X) int8 arrays on top of each other, as one tensor (R, X); a copy, since stored arrays are read-only."""
    return torch.from_numpy(np.concatenate(list(arrays)))
