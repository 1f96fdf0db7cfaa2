"""One hash for one content: live, replayed, woken, restored, merged from parts, on other threads, on PostgreSQL."""

from __future__ import annotations

import random
from pathlib import Path

from jobs.campaign_load import TIMEOUT_S, Answer, create_tenants, draw_request
from jobs.campaign_model import TenantModel
from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_store import CONFIG, LOCAL, Store, fresh_schema, once, opened, scratch, torch_threads
from memory_actor.effects import StoredFact
from memory_actor.episodic_memory import SufficientStatistics
from memory_actor.state_hash import state_hash as hash_of
from memory_actor.tenant import sums

_TENANT = "ant"
_REQUESTS = 40
_PARTS = 3
_PAGE = 1000


@torch_threads(1)
def state_hash(count: int, seed: int, advance: Advance, *, ledger_url: str | None = None) -> Outcome:
    """`count` random histories, each told in every way there is. PostgreSQL takes part when `ledger_url` is given."""
    outcome = Outcome("state_hash", seed, count)
    for number in range(count):
        label = f"history {number}"
        with scratch(durable=False) as folder:
            model, hashes = _tell(outcome, label, folder / "sqlite", seed + number, None)
            if ledger_url is not None:
                url = fresh_schema(ledger_url)
                other, stored = _tell(outcome, label, folder / "postgres", seed + number, url)
                outcome.check(other == model, f"{label}: the two engines were told different histories")
                hashes |= {f"postgres {way}": value for way, value in stored.items()}
        wrong = sorted(way for way, value in hashes.items() if value != model)
        outcome.check(not wrong, f"{label}: {wrong} differ from the integer model")
        outcome.counts["hashes"] += len(hashes)
        outcome.counts["different"] += len(wrong)
        advance(1)
    return outcome


def _tell(outcome: Outcome, label: str, state_dir: Path, seed: int, url: str | None) -> tuple[str, dict[str, str]]:
    """One history on one engine: the hash of the integer model, and the hash that each way arrives at."""
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    ids = (f"f_{number:026d}" for number in range(10**6))  # the same on every engine, so that hashes compare
    hashes: dict[str, str] = {}
    with opened(state_dir, url=url, new_fact_id=lambda: next(ids)) as store:
        create_tenants(store, (_TENANT,))
        model = TenantModel()
        for number in range(_REQUESTS):
            request = draw_request(draw, number, {_TENANT: list(model.live)})
            answer = Answer.of(number, request.submit(store).result(TIMEOUT_S))
            model.write(request.facts, answer.fact_ids) if request.facts else model.forget(request.fact_ids)
            if number == _REQUESTS // 2:
                store.engine.checkpoint(_TENANT, LOCAL)
        hashes["live"] = store.engine.summary(_TENANT).state_hash or ""
        verified = store.engine.verify(_TENANT)
        outcome.check(verified.identical, f"{label}: does not verify")
        hashes["rebuilt"] = verified.rebuilt_hash
        store.engine.sleep(_TENANT)
        hashes["woken from checkpoint"] = store.engine.summary(_TENANT).state_hash or ""
        hashes |= _from_facts(store)
    with opened(state_dir, url=url) as store:
        hashes["replayed"] = store.engine.summary(_TENANT).state_hash or ""
        info = store.engine.checkpoint(_TENANT, LOCAL)
        hashes["checkpoint"] = info.state_hash
        grant = store.engine.grant(_TENANT, info.checkpoint_id)
        hashes["restored"] = (
            store.engine.restore("again", grant, None, False, once("again")).result(TIMEOUT_S).state_hash
        )
        hashes["restored, live"] = store.engine.summary("again").state_hash or ""
    return model.hash(), hashes


def _from_facts(store: Store) -> dict[str, str]:
    """Hashes of sums made from the stored facts: in parts that are merged, backwards, and on other threads."""
    facts = store.ledger.facts(_TENANT, limit=_PAGE)
    found: dict[str, str] = {}
    merged = SufficientStatistics.zeros(CONFIG.address_size, CONFIG.latent_size)
    for part in range(_PARTS):
        merged.merge_(sums(CONFIG, facts[part::_PARTS]))
    found["merged from parts"] = hash_of(CONFIG, merged, (fact.fact_id for fact in facts))
    for threads in (1, 2, 4):
        with torch_threads(threads):
            found[f"{threads} threads"] = _hash(facts)
    found["backwards"] = _hash(facts[::-1])
    return found


def _hash(facts: list[StoredFact]) -> str:
    return hash_of(CONFIG, sums(CONFIG, facts), (fact.fact_id for fact in facts))
