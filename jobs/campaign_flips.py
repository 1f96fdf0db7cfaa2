"""One flipped bit in a copy of a store's files: what is read afterwards is what was written, or damage is reported."""

from __future__ import annotations

import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from jobs.campaign_load import TIMEOUT_S, Answer, Request, create_tenants
from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_store import LOCAL, PlannedFact, Store, key_of, once, open_store, scratch, torch_threads
from memory_actor.directory import ledger_path
from memory_actor.errors import LarimarError
from memory_actor.types import ReadMode, Selector, as_plain

_TENANTS: Final = ("ant", "bee")
_FACTS: Final = 10
_LIMIT: Final = 100

Pieces = dict[str, Any]


class Detected(str):
    """What a read was refused with."""

    __slots__ = ()


@torch_threads(1)
def bit_flips(count: int, seed: int, advance: Advance) -> Outcome:
    """`count` flips, spread evenly over ledger, vault, checkpoints' files and their manifests."""
    outcome = Outcome("bit_flips", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    with scratch(durable=False) as folder:
        state_dir = folder / "state"
        stores = [_written(outcome, folder / f"intact-{pending}", state_dir, pending=pending) for pending in (0, 1)]
        for number in range(count):
            intact, truth, kinds = draw.choice(stores)
            kind = draw.choice(sorted(kinds))
            victim = draw.choice(kinds[kind])
            bit = draw.randrange(8 * (intact / victim).stat().st_size)
            shutil.copytree(intact, state_dir)
            flip(state_dir / victim, bit)
            _judge(outcome, f"flip {number}: bit {bit} of {victim}", truth, state_dir, kind)
            shutil.rmtree(state_dir)
            advance(1)
    outcome.counts["silently_wrong"] += 0
    return outcome


def flip(path: Path, bit: int) -> None:
    """Invert one bit of a file."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << (bit % 8))]))


def _judge(outcome: Outcome, label: str, truth: Pieces, state_dir: Path, kind: str) -> None:
    try:
        found = read_everything(state_dir)
    except Exception:  # noqa: BLE001 - damage that surfaces as anything else than a refusal is a finding
        outcome.counts["silently_wrong"] += 1
        outcome.violate(f"{label}: {traceback.format_exc(limit=-2)}")
        return
    wrong = {n: v for n, v in found.items() if not isinstance(v, Detected) and v != truth[n]}
    detected = [value for value in found.values() if isinstance(value, Detected)]
    if wrong:
        outcome.counts["silently_wrong"] += 1
        outcome.violate(
            f"{label}: nothing was reported of {_difference(wrong, truth)} ({len(detected)} refusals elsewhere)"
        )
    elif detected:
        outcome.counts["detected"] += 1
        outcome.counts[f"detected_in_{kind}"] += 1
    else:
        outcome.counts["same_content"] += 1


def _difference(wrong: Pieces, truth: Pieces) -> str:
    """The pieces that differ, and the first of them from where they part."""
    name = next(iter(wrong))
    got, expected = repr(wrong[name]), repr(truth[name])
    at = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), 0)
    return f"{sorted(wrong)}: {name} is {got[at : at + 60]!r}, was {expected[at : at + 60]!r}"


# -- the store --------------------------------------------------------------------------------------------------


def _written(
    outcome: Outcome, intact: Path, state_dir: Path, *, pending: int
) -> tuple[Path, Pieces, dict[str, list[Path]]]:
    """A store, what a reading of an unharmed copy of it says, and its files by kind."""
    _write_store(intact, pending)
    shutil.copytree(intact, state_dir)
    truth = read_everything(state_dir)
    shutil.rmtree(state_dir)
    refused = {name: value for name, value in truth.items() if isinstance(value, Detected)}
    outcome.check(not refused, f"an unharmed store is refused: {refused}")
    return intact, truth, _files(intact)


def _write_store(state_dir: Path, pending: int) -> None:
    """Two tenants with facts superseded and erased, and `pending` forgotten but not erased; facts after a checkpoint.

    With something to erase, a damaged checkpoint is deleted; without, it has to be refused when it is read.
    """
    store = open_store(state_dir, erase_window_s=3600.0)
    create_tenants(store, _TENANTS)
    number = 0
    written: dict[str, list[str]] = {}
    for tenant in _TENANTS:
        ids = written[tenant] = []
        for prompt in (*range(_FACTS), 0, 1):
            request = Request(number, tenant, (PlannedFact(prompt, 1000 + number, rows=1 + prompt % 2),))
            ids += Answer.of(number, request.submit(store).result(TIMEOUT_S)).fact_ids
            number += 1
            if number % 12 == 8:
                store.engine.checkpoint(tenant, LOCAL)
        Request(900 + number, tenant, fact_ids=(ids[2],)).submit(store).result(TIMEOUT_S)
    store.engine.erase_now()
    for tenant, ids in written.items():  # forgotten, and still in the tenant's checkpoint
        Request(800 + number, tenant, fact_ids=tuple(ids[4 : 4 + pending])).submit(store).result(TIMEOUT_S)
        number += 1
    store.engine.close()


def _files(state_dir: Path) -> dict[str, list[Path]]:
    """Files by kind, relative to the state folder."""
    relative = sorted(path.relative_to(state_dir) for path in state_dir.rglob("*") if path.is_file())
    manifests = [path for path in relative if path.name.endswith(".manifest.json")]
    return {
        "ledger": [ledger_path(state_dir, 0).relative_to(state_dir)],
        "vault": [path for path in relative if path.match("keys/vault-*.sqlite")],
        "root_key": [path for path in relative if path.match("keys/root.key")],
        "checkpoint": [path for path in relative if path.parts[0] == "checkpoints" and path not in manifests],
        "manifest": manifests,
    }


# -- reading ----------------------------------------------------------------------------------------------------


def read_everything(state_dir: Path) -> Pieces:
    """Every piece that can be read of a store, by name; a refused piece is `Detected` with its code."""
    try:
        store = open_store(state_dir, erase_window_s=3600.0)
    except LarimarError as refusal:
        return {"open": Detected(refusal.code)}
    try:
        erased = {"erased": _piece(lambda: store.engine.erase_now() and None)}  # so that nothing changes meanwhile
        return {name: _piece(read) for name, read in _reads(store).items()} | erased | {"open": "open"}
    finally:
        store.engine.close()


def _piece(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except LarimarError as refusal:
        return Detected(refusal.code)


def _reads(store: Store) -> dict[str, Callable[[], Any]]:
    engine, ledger = store.engine, store.ledger
    reads: dict[str, Callable[[], Any]] = {
        "audit": lambda: ledger.audit_chain_ok() or Detected("audit"),
        "tenants": lambda: [summary.name for summary in engine.summaries()],
        "erasures": lambda: (
            Detected("registrations")  # what `larimar doctor` reports
            if ledger.damaged_registrations()
            else sorted((row.receipt_id, row.state_hash_after) for row in ledger.erasures(pending_only=False))
        ),
    }
    for index, tenant in enumerate(_TENANTS):
        reads |= _tenant_reads(store, tenant)
        for number in range(12 * index, 12 * index + 12):
            given = once(f"k{number}", "write")
            reads[f"reply {number}"] = lambda tenant=tenant, given=given: ledger.idempotent_reply(tenant, given)  # type: ignore[misc]
    return reads


def _checkpoints(store: Store, tenant: str) -> list[tuple[object, ...]]:
    """What stays the same when an erasure rewrites a checkpoint."""
    return [(one.location, one.version, one.facts, one.state_hash) for one in store.engine.checkpoints(tenant)]


def _tenant_reads(store: Store, tenant: str) -> dict[str, Callable[[], Any]]:
    engine = store.engine

    def verified() -> Any:
        done = engine.verify(tenant)
        return (done.state_hash, done.version) if done.identical else Detected("verify")

    def recalled(prompt: int) -> Any:
        recall = engine.recall(tenant, key_of(prompt)[None], ReadMode.SNAP, 0)
        return recall.fact_id, None if recall.readout is None else recall.readout.round(3).tolist()

    def restored() -> Any:
        newest = engine.checkpoints(tenant)[-1:]
        if not newest:
            return Detected("no checkpoint")  # its registration is damaged
        (info,) = newest
        grant = engine.grant(tenant, info.checkpoint_id)
        reply = engine.restore(f"{tenant}-again", grant, None, False, once(f"again-{tenant}")).result(TIMEOUT_S)
        return reply.facts, reply.state_hash

    return {
        f"{tenant} summary": lambda: as_plain(engine.summary(tenant)) | {"residency": "", "shards": 0},
        f"{tenant} facts": lambda: as_plain(engine.facts(tenant, 0, _LIMIT)),
        f"{tenant} tagged": lambda: as_plain(engine.select(tenant, Selector(tags=("tag1",)), _LIMIT)),
        f"{tenant} recalls": lambda: [recalled(prompt) for prompt in range(_FACTS)],
        f"{tenant} verified": verified,
        f"{tenant} checkpoints": lambda: (
            # An erasure deletes a damaged checkpoint that it cannot take a fact out of; the status says so.
            Detected("registrations or status")
            if store.ledger.damaged_registrations() or engine.status().warnings
            else _checkpoints(store, tenant)
        ),
        f"{tenant} restored": restored,
    }
