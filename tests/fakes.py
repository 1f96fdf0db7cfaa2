"""Fakes at the gateway's ports, for unit tests only: a memory of dicts, an encoder of hashes, a decoder of echoes."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from cluster.http_app import create_app
from cluster.patience import Patience
from cluster.ports import CallLost
from cluster.router import Router
from cluster.routes import Routes
from cluster.settings import Settings
from memory_actor.errors import (
    CheckpointUnreadable,
    DeadlineExceeded,
    Forbidden,
    IdempotencyKeyReused,
    NotFound,
    StaleMemory,
    TenantExists,
    TextTooLong,
    Unauthenticated,
)
from memory_actor.types import (
    CheckpointGrant,
    CheckpointInfo,
    EncodedFacts,
    EngineStatus,
    ErasureState,
    ErasureStatus,
    FactPage,
    FactRecord,
    FactText,
    Float16Array,
    ForgetReceipt,
    Idempotency,
    ReadMode,
    Recall,
    Residency,
    RestoreReply,
    Retention,
    Selector,
    TenantSummary,
    Verification,
    WriteReply,
)
from workers.ports import Generation, GenerationChunk, GenerationRequest, Readback, SecondStage

KEY_SIZE, LATENT_SIZE = 16, 8
NOW = 1_700_000_000.0
FILE_KEY = b"the key of a checkpoint's files."


def key_of(text: str) -> Float16Array:
    """A unit vector (D,) that depends on the first word only, so that tests can rephrase."""
    seed = int.from_bytes(hashlib.sha256(text.split(maxsplit=1)[0].lower().encode()).digest()[:4], "little")
    vector = np.random.default_rng(seed).standard_normal(KEY_SIZE)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


class FakeEncoder:
    """Keys of first words; two for a query of two sentences. Texts of more than `words_max` words are refused.

    Its verifier takes a query with "elsewhere" in it for a near miss.
    """

    def __init__(self) -> None:
        self.words_max = 100
        self.calls = 0
        self.fail: list[Exception] = []
        self.fail_match: list[Exception] = []
        self.readbacks: list[Readback] = []

    async def encode_facts(self, facts: Sequence[FactText]) -> EncodedFacts:
        self._refuse([fact.prompt for fact in facts])
        n = len(facts)
        ones = np.ones(n, np.int32)
        keys = np.stack([key_of(fact.prompt) for fact in facts])
        return EncodedFacts(keys, np.ones((n, LATENT_SIZE), np.int8), ones, ones, ones)

    async def encode_queries(self, texts: Sequence[str]) -> list[Float16Array]:
        self._refuse(texts)
        return [np.stack([key_of(part) for part in (text, *text.split(". ")[1:2])]) for text in texts]

    async def match(self, readback: Readback) -> float:
        self.readbacks.append(readback)
        return (await self.match_prompts(readback.query, ["what was read"]))[0]

    async def match_prompts(self, query: str, prompts: Sequence[str]) -> list[float]:
        if self.fail_match:
            raise self.fail_match.pop(0)
        return [0.1 if "elsewhere" in query else 0.9] * len(prompts)

    def _refuse(self, texts: Sequence[str]) -> None:
        self.calls += 1
        if self.fail:
            raise self.fail.pop(0)
        for text in texts:
            if len(text.split()) > self.words_max:
                raise TextTooLong("the prompt", len(text.split()), self.words_max)

    async def status(self) -> dict[str, Any]:
        if self.fail:
            raise self.fail.pop(0)
        return {"pid": os.getpid(), "model": "fake"}


class FakeDecoder:
    """Echoes the prompt word by word; says "recalled" first when a readout conditions it."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.fail: list[Exception] = []
        self.fail_after_chunks: int | None = None
        self.closed_streams = 0

    async def generate(self, request: GenerationRequest) -> Generation:
        chunks = [chunk async for chunk in self.stream(request)]
        return Generation.of(chunks)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        if self.fail:
            raise self.fail.pop(0)
        self.requests.append(request)
        words = (["recalled"] if request.readout is not None else []) + request.prompt.split()
        try:
            for index, word in enumerate(words):
                if index == self.fail_after_chunks:
                    raise CallLost("the decoder", "ActorDiedError")
                last = index == len(words) - 1
                ms = {"queue": 0.1, "prefill": 1.0, "decode": 2.0} if last else {}
                yield GenerationChunk(word + " ", (index,), "stop" if last else None, ms)
        finally:
            self.closed_streams += 1

    async def status(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "model": "fake"}


@dataclass
class FakeTenant:
    retention: Retention
    facts: dict[str, FactRecord] = field(default_factory=dict)
    keys: dict[str, Float16Array] = field(default_factory=dict)
    born: dict[str, int] = field(default_factory=dict)  # fact id: the version that wrote it
    version: int = 0
    next_seq: int = 1
    residency: Residency = Residency.HOT
    broken: Exception | None = None  # what checkpoints of it end in


@dataclass
class FakeStore:
    """Where checkpoints lie, reachable from every memory actor: `files` by checkpoint id, gone when erased."""

    infos: list[CheckpointInfo] = field(default_factory=list)
    files: dict[str, FakeTenant] = field(default_factory=dict)
    grants_used: list[CheckpointGrant | None] = field(default_factory=list)


@dataclass(frozen=True)
class FakeFinding:
    """As wide as a finding of the real doctor need be for the edge."""

    tenant: str | None
    what: str


class FakeMemory:
    """A memory actor over dicts, with the ledger's idempotency. `before` and `after` inject faults into changes."""

    def __init__(self, store: FakeStore | None = None) -> None:
        self.store = store or FakeStore()
        self.erasures: dict[str, ErasureStatus] = {}
        self.findings: list[Any] = []
        self.tenants_by_name: dict[str, FakeTenant] = {}
        self.replies: dict[tuple[str, str], tuple[Idempotency, Any]] = {}
        self.before: list[Exception] = []  # raised, one per call, before anything is done
        self.after: list[Exception] = []  # raised, one per change, after it is applied: the reply is lost
        self.changes_applied = 0
        self.hold: asyncio.Event | None = None  # a change waits for it before it is applied
        self.entered = asyncio.Event()

    def state(self) -> str:
        """A digest of everything the fake holds."""
        plain = {
            name: (str(of.retention), of.version, sorted(of.facts), str(of.residency))
            for name, of in sorted(self.tenants_by_name.items())
        }
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def _fault(self) -> None:
        if self.before:
            raise self.before.pop(0)

    def _tenant(self, name: str) -> FakeTenant:
        if name not in self.tenants_by_name:
            raise NotFound("tenant", name)
        return self.tenants_by_name[name]

    async def _once(
        self, scope: str, given: Idempotency | None, apply: Callable[[], Any], timeout_s: float | None = None
    ) -> Any:
        self._fault()
        self.entered.set()
        if self.hold is not None:
            await self.hold.wait()
        if given is not None and (scope, given.key) in self.replies:
            first, reply = self.replies[scope, given.key]
            if first != given:
                raise IdempotencyKeyReused(first.endpoint)
            return replace(reply, replayed=True)
        if timeout_s is not None and timeout_s < 0:
            raise DeadlineExceeded("the request", timeout_s)
        reply = apply()
        self.changes_applied += 1
        if given is not None:
            self.replies[scope, given.key] = (given, reply)
        if self.after:
            raise self.after.pop(0)
        return reply

    def _summary(self, name: str, state_hash: str | None = None) -> TenantSummary:
        of = self._tenant(name)
        return TenantSummary(name, of.retention, NOW, len(of.facts), of.version, 1, state_hash, residency=of.residency)

    def _hash(self, name: str) -> str:
        return hashlib.sha256(json.dumps(sorted(self._tenant(name).facts)).encode()).hexdigest()

    async def create_tenant(self, name: str, retention: Retention, idempotency: Idempotency) -> TenantSummary:
        def apply() -> TenantSummary:
            if name in self.tenants_by_name:
                raise TenantExists(name)
            self.tenants_by_name[name] = FakeTenant(retention)
            return self._summary(name)

        return await self._once("", idempotency, apply)  # type: ignore[no-any-return]

    async def delete_tenant(self, name: str, idempotency: Idempotency) -> TenantSummary:
        def apply() -> TenantSummary:
            summary = replace(self._summary(name), receipt_id=self._erasure_begins(name).receipt_id)
            del self.tenants_by_name[name]
            return summary

        return await self._once("", idempotency, apply)  # type: ignore[no-any-return]

    async def tenants(self) -> list[TenantSummary]:
        self._fault()
        return [self._summary(name) for name in self.tenants_by_name]

    async def tenant(self, name: str) -> TenantSummary:
        self._fault()
        return self._summary(name, self._hash(name) if name in self.tenants_by_name else None)

    async def write(
        self,
        tenant: str,
        facts: Sequence[FactText],
        encoded: EncodedFacts,
        idempotency: Idempotency,
        timeout_s: float | None = None,
    ) -> WriteReply:
        def apply() -> WriteReply:
            of = self._tenant(tenant)
            assert len(encoded) == len(facts) > 0
            ids: list[str] = []
            superseded: list[str] = []
            for fact, key in zip(facts, encoded.keys, strict=True):
                same = [] if fact.keep_both else [i for i, old in of.facts.items() if old.prompt == fact.prompt]
                for fact_id in same:
                    del of.facts[fact_id]
                superseded += same
                fact_id = "f_" + hashlib.sha256(f"{tenant} {of.next_seq}".encode()).hexdigest()[:26]
                of.facts[fact_id] = FactRecord(
                    fact_id, of.next_seq, NOW, 1, fact.tags, same[-1] if same else None, fact.prompt, fact.target
                )
                if of.retention is Retention.LATENT:
                    of.facts[fact_id] = replace(of.facts[fact_id], prompt=None, target=None)
                of.keys[fact_id] = key
                of.born[fact_id] = of.version + 1
                of.next_seq += 1
                ids.append(fact_id)
            of.version += 1
            return WriteReply(tenant, tuple(ids), tuple(superseded), of.version)

        return await self._once(tenant, idempotency, apply, timeout_s)  # type: ignore[no-any-return]

    async def forget(
        self,
        tenant: str,
        fact_ids: Sequence[str],
        dry_run: bool,
        idempotency: Idempotency | None,
        timeout_s: float | None = None,
    ) -> ForgetReceipt:
        def apply() -> ForgetReceipt:
            of = self._tenant(tenant)
            before = self._hash(tenant)
            kept = copy.deepcopy(of)
            found = [fact_id for fact_id in fact_ids if of.facts.pop(fact_id, None)]
            of.version += bool(found)
            missing = tuple(fact_id for fact_id in fact_ids if fact_id not in found)
            receipt = ForgetReceipt(
                tenant, tuple(found), missing, before, self._hash(tenant), of.version, len(of.facts), dry_run
            )
            if dry_run:
                self.tenants_by_name[tenant] = kept
                return receipt
            if not found:
                return receipt
            status = self._erasure_begins(tenant)
            return replace(receipt, receipt_id=status.receipt_id, erase_by=status.erase_by)

        return await self._once(tenant, idempotency, apply, timeout_s)  # type: ignore[no-any-return]

    def _erasure_begins(self, tenant: str) -> ErasureStatus:
        receipt_id = "r_" + hashlib.sha256(f"{tenant} {len(self.erasures)}".encode()).hexdigest()[:26]
        self.erasures[receipt_id] = ErasureStatus(receipt_id, tenant, ErasureState.PENDING, NOW, NOW + 60)
        return self.erasures[receipt_id]

    def finish_erasures(self) -> None:
        """What the eraser's thread does."""
        for receipt_id, status in self.erasures.items():
            self.erasures[receipt_id] = replace(status, state=ErasureState.DONE, receipt='{"receipt": "signed"}')

    async def erasure(self, receipt_id: str) -> ErasureStatus:
        self._fault()
        if receipt_id not in self.erasures:
            raise NotFound("receipt", receipt_id)
        return self.erasures[receipt_id]

    async def sleep(self, name: str) -> TenantSummary:
        self._fault()
        self._tenant(name).residency = Residency.COLD
        return self._summary(name)

    async def wake(self, name: str) -> TenantSummary:
        self._fault()
        self._tenant(name).residency = Residency.HOT
        return self._summary(name)

    async def checkpoint(self, tenant: str, location: str) -> CheckpointInfo:
        self._fault()
        of = self._tenant(tenant)
        if of.broken is not None:
            raise of.broken
        number = len(self.store.infos)
        checkpoint_id = "c_" + hashlib.sha256(str(number).encode()).hexdigest()[:26]
        info = CheckpointInfo(
            checkpoint_id,
            tenant,
            "0" * 32,
            location,
            of.version,
            len(of.facts),
            1000,
            self._hash(tenant),
            4711,
            "f" * 64,
            NOW + number,
        )
        self.store.infos.append(info)
        self.store.files[checkpoint_id] = copy.deepcopy(of)
        return info

    async def checkpoints(self, tenant: str) -> list[CheckpointInfo]:
        self._fault()
        self._tenant(tenant)
        return [info for info in self.store.infos if info.tenant == tenant]

    async def grant(self, tenant: str, checkpoint_id: str) -> CheckpointGrant:
        self._fault()
        for info in await self.checkpoints(tenant):
            if info.checkpoint_id == checkpoint_id:
                if checkpoint_id not in self.store.files:
                    raise CheckpointUnreadable(checkpoint_id)
                return CheckpointGrant(info, FILE_KEY)
        raise NotFound("checkpoint", checkpoint_id)

    async def restore(
        self, name: str, grant: CheckpointGrant | None, version: int | None, in_place: bool, idempotency: Idempotency
    ) -> RestoreReply:
        def apply() -> RestoreReply:
            if grant is None:
                raise NotFound("checkpoint", "without a grant")
            assert grant.file_key == FILE_KEY
            if not in_place and name in self.tenants_by_name:
                raise TenantExists(name)
            made = copy.deepcopy(self.store.files[grant.info.checkpoint_id])
            if version is not None:
                made.facts = {key: fact for key, fact in made.facts.items() if made.born[key] <= version}
            made.version = self._tenant(name).version + 1 if in_place else 1
            self.tenants_by_name[name] = made
            return RestoreReply(
                name, grant.info.checkpoint_id, len(made.facts), made.version, self._hash(name), in_place
            )

        self.store.grants_used.append(grant)
        return await self._once(name if in_place else "", idempotency, apply)  # type: ignore[no-any-return]

    async def doctor(self, tenant: str | None) -> list[Any]:
        self._fault()
        if tenant is not None:
            self._tenant(tenant)
        return [finding for finding in self.findings if tenant in (None, finding.tenant)]

    async def select(self, tenant: str, selector: Selector, limit: int) -> list[FactRecord]:
        self._fault()
        of = self._tenant(tenant)
        if selector.keys is not None:
            near = [(i, float((selector.keys @ key).max())) for i, key in of.keys.items() if i in of.facts]
            return [replace(of.facts[i], score=score) for i, score in near if score > 0.9][:limit]
        if selector.tags is not None:
            return [fact for fact in of.facts.values() if set(selector.tags) <= set(fact.tags)][:limit]
        assert selector.before is not None
        return [fact for fact in of.facts.values() if fact.created_at < selector.before][:limit]

    async def recall(self, tenant: str, keys: Float16Array, mode: ReadMode, min_version: int) -> Recall:
        self._fault()
        of = self._tenant(tenant)
        if of.version < min_version:
            raise StaleMemory(tenant, of.version, min_version)
        scored = [(float((keys @ of.keys[fact_id]).max()), fact_id) for fact_id in of.facts]
        score, fact_id = max(scored, default=(0.0, ""))
        if score < 0.9:
            return Recall(tenant, of.version, False, score, scope_ms=0.2)
        readout = np.ones((1, LATENT_SIZE), np.float32)
        return Recall(tenant, of.version, True, score, fact_id, readout, 3, 1, 0.2, 0.3)

    async def verify(self, tenant: str) -> Verification:
        self._fault()
        state_hash = self._hash(tenant)
        of = self._tenant(tenant)
        return Verification(tenant, True, state_hash, state_hash, len(of.facts), of.version, 1.0)

    async def facts(self, tenant: str, after: int, limit: int) -> FactPage:
        self._fault()
        later = [fact for fact in self._tenant(tenant).facts.values() if fact.seq > after]
        return FactPage(tuple(later[:limit]), later[limit - 1].seq if len(later) > limit else None)

    async def fact(self, tenant: str, fact_id: str) -> FactRecord:
        self._fault()
        if fact_id not in self._tenant(tenant).facts:
            raise NotFound("fact", fact_id)
        return self._tenant(tenant).facts[fact_id]

    async def status(self) -> EngineStatus:
        self._fault()
        return EngineStatus(0, os.getpid(), 1, len(self.tenants_by_name), 0, 0, 0.0, 1.0, "fake", "cpu")


class FakeDirectory:
    """Two memory actors; tenants are spread by the parity of their first letter."""

    def __init__(self) -> None:
        store = FakeStore()
        self.actors = [FakeMemory(store), FakeMemory(store)]

    def owner_of(self, tenant: str) -> FakeMemory:
        return self.actors[ord(tenant[0]) % 2]

    def everyone(self) -> Sequence[FakeMemory]:
        return self.actors

    def state(self) -> tuple[str, ...]:
        return tuple(actor.state() for actor in self.actors)


@dataclass(frozen=True)
class FakePrincipal:
    tenant: str | None

    def require_admin(self, action: str) -> None:
        if self.tenant is not None:
            raise Forbidden(action)

    def require_tenant(self, name: str) -> None:
        if self.tenant not in {None, name}:
            raise NotFound("tenant", name)


class FakeKeys:
    """Keys in a dict: `admin` is the admin's."""

    def __init__(self) -> None:
        self.keys: dict[str, str | None] = {"admin": None}
        self.issued = 0

    def authenticate(self, authorization: str | None, now: float) -> FakePrincipal:
        scheme, _, key = (authorization or "").partition(" ")
        if scheme != "Bearer" or key not in self.keys:
            raise Unauthenticated
        return FakePrincipal(self.keys[key])

    def issue(self, tenant: str, now: float) -> str:
        self.revoke_tenant(tenant, now)
        self.issued += 1
        key = f"key-{tenant}-{self.issued}"
        self.keys[key] = tenant
        return key

    def revoke_tenant(self, tenant: str, now: float) -> None:
        self.keys = {key: owner for key, owner in self.keys.items() if owner != tenant}


@dataclass
class World:
    """The real application over fakes, with tenant `acme` (key `acme`) and tenant `globex` (key `globex`)."""

    memory: FakeDirectory
    encoder: FakeEncoder
    decoder: FakeDecoder
    keys: FakeKeys
    router: Router
    app: FastAPI

    @classmethod
    def make(
        cls, settings: Settings | None = None, timeout_s: float = 5.0, second_stage: SecondStage | None = None
    ) -> World:
        memory, encoder, decoder, keys = FakeDirectory(), FakeEncoder(), FakeDecoder(), FakeKeys()
        router = Router(
            memory,
            encoder,
            decoder,
            timeout_s=timeout_s,
            second_stage=second_stage,
            patience=Patience(wait_s=0.0, wait_max_s=0.0),
        )
        app = create_app(Routes(router, keys, settings or Settings(), now=lambda: NOW))
        for name in ("acme", "globex"):
            memory.owner_of(name).tenants_by_name[name] = FakeTenant(Retention.TEXT)
            keys.keys[name] = name
        return cls(memory, encoder, decoder, keys, router, app)

    def state(self) -> tuple[str, ...]:
        return self.memory.state()

    def client(self, key: str | None = "acme") -> TestClient:
        """A client that sends that key."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return TestClient(self.app, headers=headers)


def once(key: str = "request-1") -> dict[str, str]:
    """The header of one logical request."""
    return {"Idempotency-Key": key}
