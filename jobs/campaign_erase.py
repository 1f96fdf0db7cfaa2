"""Forget facts, wait for the signed receipts, then search every byte for what they were: words, vectors, keys."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from cluster.client import Client
from jobs.campaign_outcome import Advance, Outcome
from jobs.campaign_search import ByteSearch, Hit
from jobs.own_system import SystemHandle
from memory_actor.addressing import Addressing
from memory_actor.directory import ledger_path
from memory_actor.errors import LarimarError
from memory_actor.key_folder import KeyFolder
from memory_actor.receipts import verify_receipt
from memory_actor.types import FactText
from memory_actor.vault import Vault
from workers.bundle import Bundle
from workers.fact_encoder import FactEncoder

WAIT_S = 180.0  # the erase window and what a busy machine adds
_KEPT = 4  # facts that stay, for the controls
_SLICE = 48  # bytes of a vector that are searched for
_HITS_SHOWN = 8
_SUPERSEDED_EVERY = 8
_POLL_S = 0.5


@dataclass
class Trace:
    """One fact and every form in which its bytes could lie somewhere."""

    fact_id: str
    tenant: str
    readable: dict[str, bytes]  # must be nowhere, ever: words and vectors, unsealed keys
    sealed: dict[str, bytes] = field(
        default_factory=dict
    )  # may lie on disk until the erasure: ciphertexts, wrapped keys


def erase_scan(count: int, seed: int, advance: Advance, *, system: SystemHandle) -> Outcome:
    """`count` facts of a hot, a cold and a deleted tenant, written, checkpointed, forgotten, searched for."""
    outcome = Outcome("erase_scan", seed, count)
    draw = random.Random(seed)  # noqa: S311 - a seeded campaign
    suffix = f"{draw.getrandbits(40):010x}"
    hot, cold, ended = (f"scan-{name}-{suffix}" for name in ("hot", "cold", "ended"))
    with Client(system.url, system.admin_key) as client, tempfile.TemporaryDirectory(prefix="larimar-scan-") as folder:
        for tenant in (hot, cold, ended):
            client.create_tenant(tenant)
        traces = []
        for trace in _written(client, system, draw, (hot, cold, ended), count):
            traces.append(trace)
            advance(len(traces) > _KEPT)
        kept, doomed = traces[:_KEPT], traces[_KEPT:]
        for tenant in (hot, cold, ended):
            client.checkpoint(tenant)
        client.sleep(cold)
        _note_sealed(system, Path(folder), traces)
        _controls(outcome, system, Path(folder), traces)
        receipts = _forget(client, doomed, ended)
        for receipt_id in receipts:
            _check_receipt(outcome, client, receipt_id)
        _await_erasures(client)
        search = ByteSearch(_needles(doomed, sealed=True) | _needles(kept, sealed=False))
        hits = list(_everywhere(search, system))
        outcome.counts["hits"] = len(hits)
        outcome.figures["searched_mb"] = search.bytes_searched / 1e6
        for hit in hits[:_HITS_SHOWN]:
            outcome.violate(f"{hit.needle} is still in {hit.place} at byte {hit.offset}")
        for tenant in (hot, cold):
            outcome.check(client.verify(tenant).identical, f"{tenant} does not verify")
            client.delete_tenant(tenant)
    return outcome


# -- writing and forgetting -------------------------------------------------------------------------------------


def _written(
    client: Client, system: SystemHandle, draw: random.Random, tenants: Sequence[str], count: int
) -> Iterator[Trace]:
    """`count` facts in turn over the tenants and `_KEPT` more; half of them are asked for once."""
    bundle = Bundle.open(system.state_dir / "bundle")
    encoder, addressing = FactEncoder.from_bundle(bundle), Addressing(bundle.memory_config())
    for number in range(count + _KEPT):
        tenant = tenants[0] if number < _KEPT else tenants[number % len(tenants)]
        word, secret = (f"{draw.getrandbits(64):016x}" for _ in range(2))
        text = FactText(f"What opens vault {word}?", f"the phrase {secret}", (f"tag-{draw.getrandbits(64):016x}",))
        (fact_id,) = client.write(tenant, {"prompt": text.prompt, "target": text.target, "tags": list(text.tags)}).ids
        if number % 2:
            client.query(tenant, text.prompt, max_tokens=2)
        (encoded,) = encoder.encode_facts([[text]])
        if isinstance(encoded, LarimarError):
            raise encoded
        key = encoded.keys[0]
        addresses = addressing.addresses(_tensor(key))[0].numpy()
        # Words that no other fact shares come after those that all share, so vectors are searched for in the middle.
        latents = encoded.latents[0]
        middle = len(latents) // 6
        readable = {
            "prompt": text.prompt.encode(),
            "target": (text.target or "").encode(),
            "tag": text.tags[0].encode(),
            "key": key.tobytes()[:_SLICE],
            "key as float32": key.astype(np.float32).tobytes()[:_SLICE],
            "address": addresses.tobytes()[:_SLICE],
            "latent": latents.tobytes()[middle : middle + 2 * _SLICE],
        }
        yield Trace(fact_id, tenant, readable)


def _tensor(key: np.ndarray[tuple[int, ...], np.dtype[np.float16]]):  # type: ignore[no-untyped-def]
    import torch  # noqa: PLC0415 - the last of a heavy import

    return torch.from_numpy(key.astype(np.float32)).unsqueeze(0)


def _forget(client: Client, doomed: Sequence[Trace], ended: str) -> list[str]:
    """Supersede some, forget the others, end the last tenant whole; returns the receipts to wait for."""
    receipts = []
    for trace in [trace for trace in doomed if trace.tenant != ended][::_SUPERSEDED_EVERY]:
        prompt = trace.readable["prompt"].decode()
        client.write(trace.tenant, {"prompt": prompt, "target": "another phrase"})
    for tenant in dict.fromkeys(trace.tenant for trace in doomed):
        if tenant == ended:
            receipts.append(client.delete_tenant(tenant).receipt_id)
        else:
            ids = [trace.fact_id for trace in doomed if trace.tenant == tenant]  # superseded ones are gone already
            receipts.append(client.forget(tenant, ids).receipt_id)
    return [receipt_id for receipt_id in receipts if receipt_id is not None]


def _check_receipt(outcome: Outcome, client: Client, receipt_id: str) -> None:
    reply = client.receipt_done(receipt_id, timeout_s=WAIT_S)
    if not outcome.check(reply.receipt is not None, f"no receipt of {receipt_id} after {WAIT_S:.0f} s"):
        return
    try:
        receipt = verify_receipt(reply.receipt or "", None)
    except LarimarError as error:
        outcome.violate(f"the receipt of {receipt_id} does not verify: {error}")
        return
    outcome.counts["receipts"] += 1
    outcome.counts["keys_destroyed"] += receipt.keys_destroyed


def _await_erasures(client: Client) -> None:
    """Those of superseded facts have no receipt that anybody was told of."""
    deadline = time.monotonic() + WAIT_S
    while client.status()["memory"][0]["pending_erasures"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"erasures stay pending for {WAIT_S:.0f} s")
        time.sleep(_POLL_S)


# -- what lies on the disk --------------------------------------------------------------------------------------


def _note_sealed(system: SystemHandle, scratch: Path, traces: Iterable[Trace]) -> None:
    """Ciphertexts, wrapped keys and data keys of the facts, read from copies of the files of the running system."""
    ledger = _copied(ledger_path(system.state_dir, 0), scratch)
    vault_file = _copied(system.state_dir / "keys" / "vault-00.sqlite", scratch)
    statement = (
        "SELECT f.words, f.vectors, f.key_id, t.uid FROM fact f JOIN tenant t ON t.name = f.tenant "
        "WHERE f.tenant = ? AND f.fact_id = ?"
    )
    with closing(sqlite3.connect(ledger)) as facts, closing(sqlite3.connect(vault_file)) as keys:
        rows = {trace.fact_id: facts.execute(statement, (trace.tenant, trace.fact_id)).fetchone() for trace in traces}
        wrapped = dict(keys.execute("SELECT id, wrapped FROM data_key"))
    with Vault.open_sqlite(vault_file, KeyFolder(system.state_dir / "keys").root_keys()) as vault:
        for trace in traces:
            words, vectors, key_id, uid = rows[trace.fact_id]
            trace.readable["data key"] = vault.data_keys(uid, [key_id])[key_id]
            trace.sealed |= {
                "sealed words": bytes(words),
                "sealed vectors": bytes(vectors)[:_SLICE],
                "wrapped key": bytes(wrapped[key_id]),
            }


def _copied(database: Path, scratch: Path) -> Path:
    """A copy of a database with its write-ahead log; nobody writes meanwhile."""
    for suffix in ("", "-wal"):
        source = database.with_name(database.name + suffix)
        if source.exists():
            shutil.copyfile(source, scratch / source.name)
    return scratch / database.name


def _controls(outcome: Outcome, system: SystemHandle, scratch: Path, traces: Sequence[Trace]) -> None:
    """The search finds what is there — a planted needle of each kind, every sealed value — and no readable one."""
    planted = scratch / "planted"
    planted.mkdir()
    readable, sealed = _needles(traces, sealed=False), _needles(traces, sealed=True)
    (planted / "file").write_bytes(b"\0" * 5 + b"\xff\0".join(readable.values()))
    found = {hit.needle for hit in ByteSearch(readable).folder(planted)}
    outcome.check(found == readable.keys(), f"the search does not find planted {sorted(readable.keys() - found)[:3]}")
    hits = list(_everywhere(ByteSearch(sealed), system))
    found = {hit.needle for hit in hits}
    wanted = sealed.keys() - readable.keys()
    outcome.check(wanted <= found, f"before the forget, {sorted(wanted - found)[:3]} are not found on the disk")
    for hit in hits:
        if hit.needle in readable:
            outcome.violate(f"{hit.needle} of a live fact lies unsealed in {hit.place} at byte {hit.offset}")
    outcome.counts["controls_found"] = len(wanted & found)


def _needles(traces: Iterable[Trace], *, sealed: bool) -> dict[str, bytes]:
    """The forms to look for, named by form and fact."""
    found: dict[str, bytes] = {}
    for trace in traces:
        forms: Mapping[str, bytes] = trace.readable | (trace.sealed if sealed else {})
        found |= {f"{form} of {trace.fact_id}": needle for form, needle in forms.items()}
    return found


def _everywhere(search: ByteSearch, system: SystemHandle) -> Iterable[Hit]:
    """State folder (with our log), Ray's temp folder (with its logs), and Ray's object store."""
    yield from search.folder(system.state_dir)
    yield from search.folder(system.temp_dir)
    supervisor = psutil.Process(system.pid)
    yield from search.shared_memory([child.pid for child in supervisor.children(recursive=True)])
