"""What every ledger engine owes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_actor.effects import FactsForgotten, StoredFact, TenantDeleted
from memory_actor.errors import BundleMismatch, Fenced, IdempotencyKeyReused, LedgerFailed, SettingsInvalid
from memory_actor.ledger import Ledger, LedgerEntry
from memory_actor.ledger_schema import audit
from memory_actor.types import MemoryConfig, Retention
from memory_actor.vault import Vault
from tests.ledger_engines import ENGINES, Engine
from tests.ledger_samples import CONFIG, ROOT_KEY, created, idempotency, make_fact, plain, written

FRESH = itertools.count(1)  # numbers for ledgers within one test


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return ENGINES[request.param](tmp_path)


@pytest.fixture
def ledger(engine: Engine) -> Iterator[Ledger]:
    with engine.open() as opened:
        yield opened


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(20260101)


def contents(ledger: Ledger) -> dict[str, tuple[object, list[tuple[object, ...]]]]:
    """Everything recovery would see: each tenant's row and complete facts."""
    return {row.name: (row, [plain(f) for f in ledger.facts(row.name)]) for row in ledger.tenants()}


# -- durability -------------------------------------------------------------------------------------------------


def test_facts_come_back_exactly(engine: Engine, draw: np.random.Generator):
    """After a restart every field of every fact is what was committed, to the bit, in order of position."""
    facts = [make_fact(seq, draw) for seq in range(1, 41)]
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, *facts[:25]), written("acme", 2, *facts[25:])], 5.0)
    with engine.open() as ledger:
        assert [plain(f) for f in ledger.facts("acme")] == [plain(f) for f in facts]
        (row,) = ledger.tenants()
    assert (row.name, row.retention, row.salt) == ("acme", Retention.TEXT, b"acme".ljust(32, b"."))
    assert (row.created_at, row.version, row.next_seq) == (1.0, 2, 41)


@pytest.mark.parametrize("fill", [0, 1, -128])
def test_constant_latents_come_back_exactly(ledger: Ledger, draw: np.random.Generator, fill: int):
    """Trimming trailing zeros loses nothing: neither for rows of zeros nor for rows without any."""
    fact = make_fact(1, draw, addresses=np.full((3, 24), 7, np.int8), latents=np.full((3, 40), fill, np.int8))
    ledger.commit([created("acme"), written("acme", 1, fact)], 5.0)
    assert [plain(f) for f in ledger.facts("acme")] == [plain(fact)]


def test_latent_retention_keeps_no_words(ledger: Ledger, draw: np.random.Generator):
    """A fact without words is stored and listed without words."""
    fact = make_fact(1, draw, prompt=None, target=None)
    ledger.commit([created("acme", Retention.LATENT), written("acme", 1, fact)], 5.0)
    (record,) = ledger.fact_records("acme")
    assert (record.prompt, record.target) == (None, None)
    assert [plain(f) for f in ledger.facts("acme")] == [plain(fact)]


def test_a_group_is_all_or_nothing(engine: Engine, draw: np.random.Generator):
    """When the last entry of a group cannot be stored, none of the group is, its replies included."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw))], 5.0)
        before = contents(ledger)
        good = written("acme", 2, make_fact(2, draw), key="k")
        with pytest.raises(LedgerFailed, match="0 of the 1 facts"):
            ledger.commit([good, LedgerEntry(FactsForgotten("acme", 3, ("unknown",)), None, b"")], 6.0)
    with engine.open() as ledger:
        assert contents(ledger) == before
        assert ledger.idempotent_reply("acme", idempotency("k")) is None
        assert ledger.audit_chain_ok()


def test_a_failed_ledger_takes_no_more_commits(engine: Engine, draw: np.random.Generator):
    """After one failed commit the ledger only refuses, until it is opened again: a failed flush is not retried."""
    with engine.open() as ledger:
        ledger.commit([created("acme")], 5.0)
        with pytest.raises(LedgerFailed):
            ledger.commit([created("acme")], 6.0)
        with pytest.raises(LedgerFailed):
            ledger.commit([written("acme", 1, make_fact(1, draw))], 7.0)
        with pytest.raises(LedgerFailed):
            ledger.prune_idempotency(0)
    with engine.open() as ledger:
        ledger.commit([written("acme", 1, make_fact(1, draw))], 8.0)
        assert len(ledger.facts("acme")) == 1


@pytest.mark.parametrize(
    "seq_of_second",
    [pytest.param(1, id="same position"), pytest.param(2, id="used and forgotten position")],
)
def test_positions_are_never_used_twice(engine: Engine, draw: np.random.Generator, seq_of_second: int):
    """A position that was taken, even by a fact that is forgotten since, is refused."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw), make_fact(2, draw))], 5.0)
        ledger.commit([LedgerEntry(FactsForgotten("acme", 2, ("fact-000002",)), None, b"")], 6.0)
    with engine.open() as ledger:
        assert ledger.tenants()[0].next_seq == 3
        with pytest.raises(LedgerFailed, match="comes after position 2"):
            ledger.commit([written("acme", 3, make_fact(seq_of_second, draw, fact_id="new"))], 7.0)


def test_facts_of_another_shape_are_refused(ledger: Ledger, draw: np.random.Generator):
    """Vectors that do not have the bundle's sizes never reach a table."""
    wrong = make_fact(1, draw, key=np.zeros(17, np.float16))
    with pytest.raises(LedgerFailed, match="shapes"):
        ledger.commit([created("acme"), written("acme", 1, wrong)], 5.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from("wwwsfxcr"), st.integers(0, 2), st.integers(0, 2**32)), max_size=30))
def test_any_history_matches_a_plain_dict(engine: Engine, steps: list[tuple[str, int, int]]):
    """Writes, supersedes, forgets, tenant ends and restarts in any order leave what a dict of lists would hold."""
    name = f"memory-{next(FRESH)}"
    ledger = engine.open(name=name)
    model: dict[str, list[StoredFact]] = {}
    positions: dict[str, int] = {}
    version = 0
    for kind, which, seed in steps:
        tenant, draw, version = f"tenant-{which}", np.random.default_rng(seed), version + 1
        if kind == "r":
            ledger.close()
            ledger = engine.open(name=name)
        elif kind == "c" or tenant not in model:
            if tenant not in model:
                ledger.commit([created(tenant)], 1.0)
                model[tenant], positions[tenant] = [], 0
        elif kind == "x":
            ledger.commit([LedgerEntry(TenantDeleted(tenant), None, b"")], 1.0)
            del model[tenant]
        elif kind == "f":
            ended = {f.fact_id for f in model[tenant] if draw.random() < 0.5}
            ledger.commit([LedgerEntry(FactsForgotten(tenant, version, tuple(ended)), None, b"")], 1.0)
            model[tenant] = [f for f in model[tenant] if f.fact_id not in ended]
        else:
            facts = [make_fact(positions[tenant] + i, draw) for i in (1, 2)]
            positions[tenant] += 2
            ended = {model[tenant][0].fact_id} if kind == "s" and model[tenant] else set()
            ledger.commit([written(tenant, version, *facts, forgotten=tuple(ended))], 1.0)
            model[tenant] = [f for f in model[tenant] if f.fact_id not in ended] + facts
    stored = {row.name: [plain(f) for f in ledger.facts(row.name)] for row in ledger.tenants()}
    assert stored == {tenant: [plain(f) for f in facts] for tenant, facts in model.items()}
    assert ledger.audit_chain_ok()
    ledger.close()


# -- one writer -------------------------------------------------------------------------------------------------


def test_each_incarnation_has_the_next_epoch(engine: Engine):
    """Epochs grow by one with every opening."""
    epochs = []
    for _ in range(3):
        with engine.open() as ledger:
            epochs.append(ledger.epoch)
    assert epochs == [1, 2, 3]


def test_a_fenced_ledger_stores_nothing_more(engine: Engine, draw: np.random.Generator):
    """Once another incarnation has a newer epoch, commits are refused and change nothing."""
    with engine.open() as ledger:
        ledger.commit([created("acme")], 5.0)
        before = contents(ledger)
        engine.usurp(ledger)
        for _ in range(2):
            with pytest.raises(Fenced) as caught:
                ledger.commit([written("acme", 1, make_fact(1, draw))], 6.0)
            assert caught.value.args == (1, 2)
        assert contents(ledger) == before
    with engine.open() as ledger:
        assert ledger.epoch == 3
        assert contents(ledger) == before


# -- ending -----------------------------------------------------------------------------------------------------


def test_supersede_ends_and_begins_in_one_commit(ledger: Ledger, draw: np.random.Generator):
    """The superseded fact is gone, the new one there, also when both came in the same group."""
    old, new, newest = (make_fact(seq, draw) for seq in (1, 2, 3))
    ledger.commit([created("acme"), written("acme", 1, old), written("acme", 2, new, forgotten=(old.fact_id,))], 5.0)
    assert [plain(f) for f in ledger.facts("acme")] == [plain(new)]
    ledger.commit([written("acme", 3, newest, forgotten=(new.fact_id,))], 6.0)
    assert [plain(f) for f in ledger.facts("acme")] == [plain(newest)]
    assert ledger.record("acme", old.fact_id) is None


def test_an_ended_tenant_leaves_no_rows(engine: Engine, draw: np.random.Generator):
    """Facts, tags and replies end with their tenant; other tenants keep theirs; the name may begin again, empty."""
    with engine.open() as ledger:
        facts = {name: make_fact(1, draw, tags=("t",)) for name in ("acme", "globex")}
        for name, fact in facts.items():
            ledger.commit([created(name), written(name, 1, fact, key="k")], 5.0)
        end = LedgerEntry(TenantDeleted("acme"), idempotency("end", endpoint="DELETE"), b"ended")
        ledger.commit([written("acme", 2, make_fact(2, draw), key="same group"), end], 6.0)
        assert [row.name for row in ledger.tenants()] == ["globex"]
        assert ledger.facts("acme") == ledger.select_ids("acme", tags=["t"]) == []
        assert ledger.idempotent_reply("acme", idempotency("k")) is None
        assert ledger.idempotent_reply("acme", idempotency("same group")) is None
        assert ledger.idempotent_reply("", idempotency("end", endpoint="DELETE")) == b"ended"
        assert ledger.idempotent_reply("globex", idempotency("k")) == b"reply to k"
        ledger.commit([created("acme"), written("acme", 1, facts["acme"], key="k")], 7.0)
        assert len(ledger.facts("acme")) == len(ledger.facts("globex")) == 1


# -- idempotency ------------------------------------------------------------------------------------------------


def test_a_repeated_key_gets_the_first_reply(engine: Engine, draw: np.random.Generator):
    """The stored reply comes back, also after a restart; the key means nothing in another tenant."""
    with engine.open() as ledger:
        assert ledger.idempotent_reply("acme", idempotency("k")) is None
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw), key="k")], 5.0)
        assert ledger.idempotent_reply("acme", idempotency("k")) == b"reply to k"
    with engine.open() as ledger:
        assert ledger.idempotent_reply("acme", idempotency("k")) == b"reply to k"
        assert ledger.idempotent_reply("globex", idempotency("k")) is None
        assert ledger.idempotent_reply("", idempotency("k")) is None


@pytest.mark.parametrize("other", [idempotency("k", body=b"other"), idempotency("k", endpoint="POST /forget")])
def test_a_key_belongs_to_one_request(ledger: Ledger, draw: np.random.Generator, other: object):
    """The same key with another body or for another endpoint is refused, naming the first endpoint."""
    ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw), key="k")], 5.0)
    with pytest.raises(IdempotencyKeyReused, match="POST /facts"):
        ledger.idempotent_reply("acme", other)


def test_replies_without_effect_are_kept(ledger: Ledger):
    """A request that changed nothing still has its reply, under the tenant it was sent to."""
    ledger.commit([created("acme"), LedgerEntry(None, idempotency("k"), b"nothing", scope="acme")], 5.0)
    assert ledger.idempotent_reply("acme", idempotency("k")) == b"nothing"
    assert ledger.idempotent_reply("", idempotency("k")) is None


def test_old_replies_are_pruned(ledger: Ledger, draw: np.random.Generator):
    """Pruning drops what is older than the limit and counts it; facts stay."""
    ledger.commit([created("acme")], 0.0)
    for seq in (1, 2, 3):
        ledger.commit([written("acme", seq, make_fact(seq, draw), key=f"k{seq}")], float(seq))
    assert ledger.prune_idempotency(3.0) == 2
    found = [ledger.idempotent_reply("acme", idempotency(f"k{seq}")) for seq in (1, 2, 3)]
    assert found == [None, None, b"reply to k3"]
    assert len(ledger.facts("acme")) == 3


# -- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 50, 2048])
def test_pages_make_the_whole(ledger: Ledger, draw: np.random.Generator, limit: int):
    """Pages of any size, one after the other, are the facts in order; listings agree with the facts."""
    facts = [make_fact(seq * 3, draw) for seq in range(1, 51)]
    ledger.commit([created("acme"), written("acme", 1, *facts)], 5.0)
    pages, after = [], 0
    while page := ledger.facts("acme", after_seq=after, limit=limit):
        assert len(page) <= limit
        after = page[-1].seq
        pages += page
    assert [plain(f) for f in pages] == [plain(f) for f in facts]
    listed = ledger.fact_records("acme", after_seq=30, limit=limit)
    assert [r.seq for r in listed] == [f.seq for f in facts if f.seq > 30][:limit]
    shown = [(r.fact_id, r.created_at, r.rows, r.tags, r.supersedes, r.prompt, r.target) for r in listed]
    by_seq = {f.seq: f for f in facts}
    expected = [by_seq[r.seq] for r in listed]
    assert shown == [
        (f.fact_id, f.created_at, len(f.latents), f.tags, f.supersedes, f.prompt, f.target) for f in expected
    ]


def test_facts_by_id_are_those_that_exist(ledger: Ledger, draw: np.random.Generator):
    """Asked for 1,200 ids in any order, with repetitions and unknown ones, the ledger returns each known one once."""
    facts = [make_fact(seq, draw) for seq in range(1, 601)]
    ledger.commit([created("acme"), created("globex"), written("acme", 1, *facts)], 5.0)
    asked = [f"fact-{seq:06d}" for seq in draw.integers(300, 1500, 1200).tolist()]
    expected = [f for f in facts if f.fact_id in set(asked)]
    assert [plain(f) for f in ledger.facts_by_id("acme", asked)] == [plain(f) for f in expected]
    assert ledger.facts_by_id("acme", []) == ledger.facts_by_id("globex", asked) == []
    assert ledger.record("acme", "fact-000001") is not None
    assert ledger.record("globex", "fact-000001") is None


def test_selection_matches_a_plain_filter(ledger: Ledger, draw: np.random.Generator):
    """By tags (all of them), by time, by both: what a list comprehension over the facts would select."""
    facts = [make_fact(seq, draw) for seq in range(1, 81)]
    ledger.commit([created("acme"), created("globex"), written("acme", 1, *facts)], 5.0)
    middle = facts[40].created_at
    for tags in (None, (), ("tag-1",), ("tag-1", "tag-2"), ("tag-1", "tag-1"), ("tag-0", "tag-1", "tag-2"), ("none",)):
        for before in (None, middle, 0.0):
            for limit in (1000, 5):
                expected = [
                    f.fact_id
                    for f in facts
                    if set(tags or ()) <= set(f.tags) and (before is None or f.created_at < before)
                ]
                found = ledger.select_ids("acme", tags=tags, before=before, limit=limit)
                assert [r.fact_id for r in found] == expected[:limit]
    assert ledger.select_ids("globex") == []


def test_readers_see_whole_commits_only(ledger: Ledger, draw: np.random.Generator):
    """While one thread commits pairs of facts, readers see pairs, never half of one."""
    ledger.commit([created("acme")], 0.0)
    pairs = [(make_fact(2 * i + 1, draw), make_fact(2 * i + 2, draw)) for i in range(60)]
    counts: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            counts.append(len(ledger.fact_records("acme", limit=1000)))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for version, pair in enumerate(pairs, start=1):
        ledger.commit([written("acme", version, *pair)], 1.0)
    done.set()
    for reader in readers:
        reader.join(timeout=30)
    assert counts
    assert all(count % 2 == 0 for count in counts)
    assert len(ledger.facts("acme")) == 120


# -- audit and identity -----------------------------------------------------------------------------------------


def test_the_audit_chain_finds_every_change(engine: Engine, draw: np.random.Generator):
    """Any audit entry changed or removed, the last excepted, breaks the chain."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), *(written("acme", s, make_fact(s, draw)) for s in range(1, 6))], 5.0)
        assert ledger.audit_chain_ok()
        third = audit.c.position == 3
        for column, value in {"tenant": "globex", "facts_begun": 2, "at": 4.0, "kind": "unchanged"}.items():
            original = sa.select(audit.c[column]).where(third).scalar_subquery()
            with ledger._connection.begin():
                kept = ledger._connection.execute(sa.select(original)).scalar_one()
            engine.tamper(ledger, sa.update(audit).where(third).values({column: value}))
            assert not ledger.audit_chain_ok(), column
            engine.tamper(ledger, sa.update(audit).where(third).values({column: kept}))
            assert ledger.audit_chain_ok()
        engine.tamper(ledger, sa.delete(audit).where(third))
        assert not ledger.audit_chain_ok()


@pytest.mark.parametrize(
    "other",
    [
        MemoryConfig(fingerprint="0ther", key_size=16, address_size=24, latent_size=40),
        MemoryConfig(fingerprint="5eed", key_size=16, address_size=24, latent_size=48),
    ],
)
def test_another_bundle_is_refused(engine: Engine, draw: np.random.Generator, other: MemoryConfig):
    """A ledger opens under the bundle it was written with and no other; a refusal does not even take an epoch."""
    with engine.open() as ledger:
        ledger.commit([created("acme"), written("acme", 1, make_fact(1, draw))], 5.0)
    with pytest.raises(BundleMismatch, match="5eed"):
        engine.open(other)
    with engine.open() as ledger:
        assert ledger.epoch == 2
        assert len(ledger.facts("acme")) == 1


def test_a_closed_ledger_says_so(engine: Engine):
    """Closing twice is fine; using a closed ledger is a clear error."""
    ledger = engine.open()
    ledger.close()
    ledger.close()
    for use in (ledger.tenants, lambda: ledger.commit([created("acme")], 1.0)):
        with pytest.raises(LedgerFailed, match="closed"):
            use()


@pytest.mark.parametrize("url", ["mysql://db/x", "oracle+oracledb://db/x"])
def test_engines_that_do_not_exist_are_named(tmp_path: Path, url: str):
    """A URL of another database is refused as a setting, not tried."""
    with (
        Vault.open_sqlite(tmp_path / "vault.sqlite", [ROOT_KEY]) as vault,
        pytest.raises(SettingsInvalid, match=r"ledger\.url.*not supported"),
    ):
        Ledger.open(url, CONFIG, "test", 1.0, vault)


def test_a_sqlite_url_is_a_path(tmp_path: Path):
    """`sqlite:///` followed by an absolute path opens that file."""
    vault = Vault.open_sqlite(tmp_path / "vault.sqlite", [ROOT_KEY])
    with Ledger.open(f"sqlite:///{tmp_path}/memory.sqlite", CONFIG, "test", 1.0, vault) as ledger:
        assert ledger.location == str(tmp_path / "memory.sqlite")
    assert (tmp_path / "memory.sqlite").is_file()
