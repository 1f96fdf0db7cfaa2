"""Random histories against plain models: a tenant with its drafts, and an engine over a real ledger with restarts.

The model is a dict of live facts and integer sums made by numpy from their stored rows. After every step:
sums are equal to the bit; the hash is that of a fresh tenant that only ever wrote the survivors; every live fact is in
scope of its own key and decoded exactly; forgotten ones are not recalled; the version grew by one per change.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memory_actor.draft import Draft
from memory_actor.effects import StoredFact
from memory_actor.engine import EngineSettings, MemoryEngine
from memory_actor.episodic_memory import merge
from memory_actor.receipts import verify_receipt
from memory_actor.tenant import TenantMemory, sums
from memory_actor.types import (
    CheckpointGrant,
    CheckpointInfo,
    EncodedFacts,
    ErasureState,
    FactText,
    Float16Array,
    Idempotency,
    Int8Array,
    ReadMode,
    Recall,
    Residency,
    Retention,
)
from tests.engine_fixtures import empty_state
from tests.memory_fixtures import SMALL, Bench, addressing_of, encoded_facts, integer_sums, once, unit_keys

PROMPTS = 14
TIMEOUT_S = 30


@cache
def pool() -> Float16Array:
    """One key per prompt: random ones, two near-copies that may share a shard, two that may not."""
    keys = unit_keys(99, PROMPTS).astype(np.float32)
    keys[1] = keys[0] + 0.2 * keys[5]  # addresses overlap by less than collinearity_max
    keys[3] = keys[2] + 0.03 * keys[6]  # by more
    return (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float16)


@dataclass(frozen=True)
class Wanted:
    """One fact of a request as hypothesis draws it."""

    prompt: int
    rows: int
    latent_seed: int
    keep_both: bool


@dataclass(frozen=True)
class Kept:
    """One live fact of the model. `born` is the version that wrote it."""

    prompt: int
    key: bytes
    latents: Int8Array
    wanted: Wanted
    born: int


wanted_facts = st.lists(
    st.builds(
        Wanted,
        prompt=st.integers(0, PROMPTS - 1),
        rows=st.sampled_from([1, 1, 1, 2, 3]),
        latent_seed=st.integers(0, 50),
        keep_both=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=6,
)


def latents_of(wanted: Wanted) -> Int8Array:
    signs = np.random.default_rng(wanted.latent_seed).integers(0, 2, (wanted.rows, SMALL.latent_size))
    return (2 * signs - 1).astype(np.int8)


def request(batch: Sequence[Wanted]) -> tuple[list[FactText], EncodedFacts]:
    texts = [FactText(f"prompt {one.prompt}", "target", keep_both=one.keep_both) for one in batch]
    latents = np.concatenate([latents_of(one) for one in batch])
    return texts, encoded_facts(pool()[[one.prompt for one in batch]], latents, [one.rows for one in batch])


class Model:
    """Live facts by id, in the order they were written; what any memory with this history must amount to."""

    def __init__(self) -> None:
        self.live: dict[str, Kept] = {}
        self.gone: dict[str, int] = {}  # forgotten ids and their prompts
        self.version = 0

    def write(self, batch: Sequence[Wanted], fact_ids: Sequence[str]) -> list[str]:
        """Returns the ids that are superseded, in order."""
        superseded: list[str] = []
        for wanted, fact_id in zip(batch, fact_ids, strict=True):
            if not wanted.keep_both:
                same = [one for one, kept in self.live.items() if kept.prompt == wanted.prompt]
                superseded += same
                self._end(same)
            key = pool()[wanted.prompt].tobytes()
            self.live[fact_id] = Kept(wanted.prompt, key, latents_of(wanted), wanted, self.version + 1)
        self.version += 1
        return superseded

    def forget(self, fact_ids: Iterable[str]) -> list[str]:
        found = [fact_id for fact_id in dict.fromkeys(fact_ids) if fact_id in self.live]
        self._end(found)
        self.version += bool(found)
        return found

    def copy(self) -> Model:
        made = Model()
        made.live, made.gone, made.version = dict(self.live), dict(self.gone), self.version
        return made

    def less(self, gone: Iterable[str]) -> Model:
        """Without what was forgotten or superseded after this one was copied."""
        made = self.copy()
        made.live = {fact_id: kept for fact_id, kept in self.live.items() if fact_id not in set(gone)}
        return made

    def up_to(self, version: int) -> Model:
        """What a new tenant holds that is restored to this version: it has no past of its own."""
        made = Model()
        made.live = {fact_id: kept for fact_id, kept in self.live.items() if kept.born <= version}
        made.version = version
        return made

    def become(self, held: Model) -> None:
        """Restored in place: whatever the checkpoint does not hold is gone for good."""
        self._end([fact_id for fact_id in self.live if fact_id not in held.live])
        self.live = dict(held.live)
        self.version += 1

    def _end(self, fact_ids: Sequence[str]) -> None:
        for fact_id in fact_ids:
            self.gone[fact_id] = self.live.pop(fact_id).prompt

    def never_more(self) -> str:
        """The hash of a fresh tenant that wrote the survivors in one request, none superseding another."""
        bench = Bench.new()
        if self.live:
            texts, encoded = request(
                [Wanted(k.prompt, k.wanted.rows, k.wanted.latent_seed, True) for k in self.live.values()]
            )
            bench.write(texts, encoded, list(self.live))
        return bench.hash

    def check_recall(self, recall_of) -> None:
        """`recall_of(key)` finds each live fact, or a kept copy of it, whole; and no fact that is gone."""
        by_key: dict[bytes, list[str]] = {}
        for fact_id, kept in self.live.items():
            by_key.setdefault(kept.key, []).append(fact_id)
        for key, fact_ids in by_key.items():
            recall: Recall = recall_of(np.frombuffer(key, np.float16))
            assert recall.in_scope
            assert recall.fact_id in fact_ids
            assert recall.version == self.version
            assert recall.readout is not None
            latents = self.live[recall.fact_id].latents
            assert recall.readout.shape == latents.shape
            assert np.abs(recall.readout - latents).max() < 0.5
        for prompt in set(self.gone.values()):
            assert recall_of(pool()[prompt]).fact_id not in self.gone


def pick(fact_ids: Sequence[str], choice: Sequence[int]) -> list[str]:
    return [fact_ids[i % len(fact_ids)] for i in choice] if fact_ids else []


class TenantMachine(RuleBasedStateMachine):
    """TenantMemory and Draft, with one or several requests per commit and replays in other batches."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.bench = Model(), Bench.new()
        self.numbers = itertools.count()

    def _ids(self, count: int) -> list[str]:
        return [f"f_{next(self.numbers):05d}" for _ in range(count)]

    def _draft_write(self, draft: Draft, batch: Sequence[Wanted]):
        texts, encoded = request(batch)
        fact_ids = self._ids(len(batch))
        prepared = draft.write(texts, encoded, fact_ids, 0.0)
        assert list(prepared.superseded) == self.model.write(batch, fact_ids)
        assert prepared.effect.version == self.model.version
        return prepared

    def _draft_forget(self, draft: Draft, fact_ids: Sequence[str]):
        prepared = draft.forget(fact_ids)
        assert list(prepared.effect.fact_ids) == self.model.forget(fact_ids)
        assert prepared.effect.version == self.model.version
        return prepared

    @rule(batch=wanted_facts)
    def write(self, batch) -> None:
        self.bench.commit(self._draft_write(Draft(self.bench.tenant), batch))

    @rule(choice=st.lists(st.integers(0, 100), max_size=8))
    def forget(self, choice) -> None:
        fact_ids = [*pick(list(self.model.live), choice), *pick(list(self.model.gone), choice[:1]), "unknown"]
        self.bench.commit(self._draft_forget(Draft(self.bench.tenant), fact_ids))

    @rule(requests=st.lists(st.one_of(wanted_facts, st.lists(st.integers(0, 100), min_size=1)), min_size=2, max_size=4))
    def several_requests_in_one_commit(self, requests) -> None:
        """Each is drafted on those before it; the draft foresees the hash; then all are applied in order."""
        draft = Draft(self.bench.tenant)
        prepared = [
            self._draft_write(draft, one)
            if isinstance(one[0], Wanted)
            else self._draft_forget(draft, pick(list(self.model.live), one))
            for one in requests
        ]
        foreseen, facts = draft.state_hash(), draft.facts
        self.bench.commit(*prepared)
        assert (self.bench.hash, len(self.bench.tenant.facts)) == (foreseen, facts)

    @rule(cuts=st.lists(st.integers(0, 60), max_size=4))
    def replay(self, cuts) -> None:
        """Go on with a tenant rebuilt from the stored rows alone, in the order of the ledger and any batching."""
        old = self.bench.tenant
        fresh = Bench.new()
        fresh.stored.update(self.bench.stored)
        facts = sorted(self.bench.stored.values(), key=lambda fact: fact.seq)
        for start, end in itertools.pairwise([0, *sorted(cuts), len(facts)]):
            fresh.tenant.replay(facts[start:end])
        fresh.tenant.version, fresh.tenant.next_seq = old.version, old.next_seq
        self.bench = fresh

    @precondition(lambda self: self.bench.stored)
    @rule(parts=st.integers(2, 4))
    def merge_of_parts_is_the_whole(self, parts) -> None:
        facts = list(self.bench.stored.values())
        merged = sums(SMALL, facts[0::parts])
        for start in range(1, parts):
            merged = merge(sums(SMALL, facts[start::parts]), merged)
        total = self.bench.tenant.total()
        assert torch.equal(merged.cov, total.cov)
        assert torch.equal(merged.cross, total.cross)

    @invariant()
    def sums_are_the_integers_of_the_live_rows(self) -> None:
        cov, cross = integer_sums(self.bench.stored.values())
        total = self.bench.tenant.total()
        assert np.array_equal(total.cov.numpy(), cov)
        assert np.array_equal(total.cross.numpy(), cross)
        assert sorted(self.bench.stored) == sorted(self.model.live) == sorted(self.bench.tenant.facts)

    @invariant()
    def the_hash_is_that_of_never_having_written_the_rest(self) -> None:
        assert self.bench.hash == self.model.never_more()

    @invariant()
    def live_facts_are_recalled_and_others_are_not(self) -> None:
        self.model.check_recall(lambda key: self.bench.tenant.recall(key[None], ReadMode.SNAP))

    @invariant()
    def shards_are_within_their_bounds(self) -> None:
        check_shards(self.bench.tenant)
        assert self.bench.tenant.version == self.model.version


def check_shards(tenant: TenantMemory) -> None:
    """No shard is over-full or empty, the warm ones are few, open ones are those with room, each prompt is indexed."""
    assert all(0 < shard.rows <= SMALL.shard_rows_max for shard in tenant._shards)
    assert sum(shard.statistics is not None for shard in tenant._shards) <= 4
    assert sorted(map(id, tenant._open)) == sorted(id(shard) for shard in tenant._shards if shard.room)
    assert sum(len(fact_ids) for fact_ids in tenant.by_prompt.values()) == len(tenant.facts) == len(tenant._index)


def open_engine(folder: Path, numbers: Iterable[int]) -> MemoryEngine:
    counted = iter(numbers)

    def poisoned(error: BaseException) -> None:
        raise AssertionError("the engine was poisoned") from error

    # No pass of the eraser comes by itself: only `erase_now` and a restart with something pending make one.
    settings = EngineSettings(erase_window_s=1e6)
    return MemoryEngine.open(
        0, folder, SMALL, settings, on_poison=poisoned, new_fact_id=lambda: f"f_{next(counted):05d}"
    )


@dataclass
class Taken:
    """A checkpoint as the model knows it: the facts it held when it was taken, with the versions that wrote them."""

    info: CheckpointInfo
    model: Model


TENANTS = st.sampled_from(["acme", "acme", "acme", "globex"])


class EngineMachine(RuleBasedStateMachine):
    """MemoryEngine over SQLite with keys and checkpoints: two tenants and copies of them; retries of earlier requests,
    deletion, sleep, checkpoints, restores, erasures, close and reopen at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="larimar-machine-"))
        shutil.copytree(empty_state(), self.folder, dirs_exist_ok=True)
        self.numbers, self.keys = itertools.count(), itertools.count()
        self.models: dict[str, Model] = {}
        self.engine = open_engine(self.folder, self.numbers)
        self.sent: list = []  # (tenant, call, reply) of requests that may be sent again
        self.taken: dict[str, list[Taken]] = {}
        self.receipts: dict[str, tuple[str, set[str]]] = {}  # id -> tenant, ids it names

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.folder)

    def _key(self, endpoint: str = "write") -> Idempotency:
        return once(f"key-{next(self.keys)}", endpoint=endpoint)

    @initialize()
    def begin(self) -> None:
        self.create("acme")

    @rule(name=st.sampled_from(["acme", "globex"]))
    def create(self, name) -> None:
        if name not in self.models:
            self.engine.create_tenant(name, Retention.TEXT, self._key()).result(TIMEOUT_S)
            self.models[name], self.taken[name] = Model(), []

    @rule(name=TENANTS, batch=wanted_facts)
    def write(self, name, batch) -> None:
        if name not in self.models:
            return
        texts, encoded = request(batch)
        key = self._key()
        reply = self.engine.write(name, texts, encoded, key).result(TIMEOUT_S)
        assert list(reply.superseded) == self.models[name].write(batch, reply.fact_ids)
        assert reply.version == self.models[name].version
        self.sent.append((name, lambda engine: engine.write(name, texts, encoded, key), reply))

    @rule(name=st.sampled_from(["acme", "acme", "globex"]), choice=st.lists(st.integers(0, 100), max_size=6))
    def forget(self, name, choice) -> None:
        if name not in self.models:
            return
        model = self.models[name]
        fact_ids = [*pick(list(model.live), choice), "unknown"]
        before, key = self.engine.summary(name).state_hash, self._key()
        receipt = self.engine.forget(name, fact_ids, key).result(TIMEOUT_S)
        assert list(receipt.forgotten) == model.forget(fact_ids)
        assert (receipt.state_hash_before, receipt.state_hash_after) == (before, model.never_more())
        assert (receipt.version, receipt.facts) == (model.version, len(model.live))
        assert (receipt.receipt_id is None) == (not receipt.forgotten) == (receipt.erase_by is None)
        if receipt.receipt_id is not None:
            self.receipts[receipt.receipt_id] = (name, set(receipt.forgotten))
        self.sent.append((name, lambda engine: engine.forget(name, fact_ids, key), receipt))

    @precondition(lambda self: len(self.models) > 1)
    @rule(which=st.integers(0, 100))
    def delete(self, which) -> None:
        """Any tenant but acme ends, with its checkpoints; restoring one of them is refused from then on."""
        names = sorted(self.models.keys() - {"acme"})
        name = names[which % len(names)]
        summary = self.engine.delete_tenant(name, self._key()).result(TIMEOUT_S)
        assert summary.receipt_id is not None
        self.receipts[summary.receipt_id] = (name, set(self.models[name].live))
        del self.models[name], self.taken[name]
        # Their replies end with the tenant; those of restores are the operator's and stay.
        self.sent = [one for one in self.sent if one[0] != name]

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 100))
    def retry(self, which) -> None:
        """A request sent again gets its first reply; the invariants see that nothing changed."""
        _, call, first = self.sent[which % len(self.sent)]
        again = call(self.engine).result(TIMEOUT_S)
        assert again.replayed
        assert (again.tenant, again.version) == (first.tenant, first.version)

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = open_engine(self.folder, self.numbers)

    @rule(name=TENANTS)
    def verify(self, name) -> None:
        if name in self.models:
            check = self.engine.verify(name)
            assert check.identical
            assert (check.facts, check.version) == (len(self.models[name].live), self.models[name].version)

    # -- cold and hot -------------------------------------------------------------------------------------------

    @rule(name=TENANTS)
    def sleep(self, name) -> None:
        if name in self.models:
            summary = self.engine.sleep(name)
            assert (summary.residency, summary.facts) == (Residency.COLD, len(self.models[name].live))

    @rule(name=TENANTS)
    def leave_memory_without_a_checkpoint(self, name) -> None:
        """As when the checkpoint location is down: the next wake finds an older checkpoint and a tail, or none."""
        if name in self.models:
            self.engine._let_go(name)
            assert self.engine.status().hot_tenants <= len(self.models)

    @rule(name=TENANTS)
    def wake(self, name) -> None:
        if name in self.models:
            assert self.engine.wake(name).residency is Residency.HOT

    # -- checkpoints --------------------------------------------------------------------------------------------

    @rule(name=TENANTS)
    def checkpoint(self, name) -> None:
        if name not in self.models:
            return
        info = self.engine.checkpoint(name, "local")
        assert (info.version, info.facts) == (self.models[name].version, len(self.models[name].live))
        assert info.state_hash == self.models[name].never_more()
        self.taken[name].append(Taken(info, self.models[name].copy()))

    def _held(self, name: str, which: int) -> tuple[CheckpointGrant, Model] | None:
        """A checkpoint of the tenant that can still be had, and what it must hold: what is gone since is gone."""
        listed = self.engine.checkpoints(name)
        if not listed:
            return None
        grant = self.engine.grant(name, listed[which % len(listed)].checkpoint_id)
        held = next((one for one in self.taken[name] if one.model.version == grant.info.version), None)
        return None if held is None else (grant, held.model.less(self.models[name].gone))

    @rule(name=TENANTS, which=st.integers(0, 100), back=st.integers(0, 3))
    def restore_as_a_new_tenant(self, name, which, back) -> None:
        """The same ids and so the same hash, less what was forgotten or superseded since; at any earlier version."""
        if name not in self.models or len(self.models) > 4 or (found := self._held(name, which)) is None:
            return
        grant, model = found
        version = max(model.version - back, 0)
        copy, key = f"copy-{next(self.keys)}", self._key("restore")
        wanted = model.up_to(version)
        reply = self.engine.restore(copy, grant, version, False, key).result(TIMEOUT_S)
        assert (reply.facts, reply.version, reply.in_place) == (len(wanted.live), version, False)
        assert reply.state_hash == wanted.never_more()
        self.models[copy], self.taken[copy] = wanted, []
        self.sent.append((copy, lambda engine: engine.restore(copy, None, version, False, key), reply))

    @rule(name=TENANTS, which=st.integers(0, 100))
    def restore_in_place(self, name, which) -> None:
        if name not in self.models or (found := self._held(name, which)) is None:
            return
        grant, held = found
        key, model = self._key("restore"), self.models[name]
        reply = self.engine.restore(name, grant, None, True, key).result(TIMEOUT_S)
        model.become(held)
        assert (reply.facts, reply.version, reply.in_place) == (len(model.live), model.version, True)
        assert reply.state_hash == model.never_more()
        self.sent.append((name, lambda engine: engine.restore(name, None, None, True, key), reply))

    # -- erasing ------------------------------------------------------------------------------------------------

    @rule()
    def erase(self) -> None:
        """Afterwards nothing is pending, every receipt holds, and no checkpoint knows a fact that is gone."""
        self.engine.erase_now()
        assert self.engine.status().pending_erasures == 0
        for receipt_id, (tenant, fact_ids) in self.receipts.items():
            status = self.engine.erasure(receipt_id)
            assert (status.state, status.tenant) == (ErasureState.DONE, tenant)
            assert status.receipt is not None
            named = verify_receipt(status.receipt, None).fact_hashes
            assert set(named) == {hashlib.sha256(one.encode()).hexdigest() for one in fact_ids}
        for name, model in self.models.items():
            for info in self.engine.checkpoints(name):
                held = self.engine._checkpointing.open(self.engine.grant(name, info.checkpoint_id))
                assert not {fact.fact_id for fact in held.facts} & model.gone.keys()

    @invariant()
    def each_tenant_is_its_model(self) -> None:
        assert [one.name for one in self.engine.summaries()] == sorted(self.models)
        for name, model in self.models.items():
            summary = self.engine.summary(name)  # of a cold one from its checkpoint
            assert summary.state_hash == model.never_more()
            assert (summary.facts, summary.version) == (len(model.live), model.version)
        # Looking deeper wakes a tenant, so only those that are awake are looked into: others stay cold for a while.
        for resident in self.engine._catalog.everyone():
            if resident.residency is Residency.HOT:
                self._is_model(resident.name, self.models[resident.name])

    def _is_model(self, name: str, model: Model) -> None:
        tenant = self.engine.tenant(name)
        stored: list[StoredFact] = self.engine._ledger.facts(name)
        assert [one.fact_id for one in stored] == list(model.live)
        cov, cross = integer_sums(stored)
        assert np.array_equal(tenant.total().cov.numpy(), cov)
        assert np.array_equal(tenant.total().cross.numpy(), cross)
        check_shards(tenant)

        def recall_of(key: Float16Array) -> Recall:
            return self.engine.recall(name, key[None], ReadMode.SNAP, model.version)

        model.check_recall(recall_of)


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

TestTenant = TenantMachine.TestCase
TestTenant.settings = settings(max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=QUIET)
TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=QUIET)


def test_the_pool_holds_near_copies():
    """What the machines rely on: addresses of one pair are just below the collinearity limit, of another above it."""
    addresses = addressing_of(SMALL).addresses(torch.from_numpy(pool().astype(np.float32))).double()
    unit = torch.nn.functional.normalize(addresses, dim=1)
    assert 0.5 < float(unit[0] @ unit[1]) < SMALL.collinearity_max < float(unit[2] @ unit[3]) < 1.0
