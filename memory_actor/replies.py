"""Replies as the ledger keeps them beside an idempotency key: msgpack of ids, versions and hashes, never content."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack

from memory_actor.types import ForgetReceipt, Residency, RestoreReply, Retention, TenantSummary, WriteReply, as_plain


def pack_write(reply: WriteReply) -> bytes:
    return _pack({"ids": reply.fact_ids, "superseded": reply.superseded, "version": reply.version, "t": reply.tenant})


def unpack_write(stored: bytes) -> WriteReply:
    body = _unpack(stored)
    return WriteReply(body["t"], tuple(body["ids"]), tuple(body["superseded"]), body["version"], replayed=True)


def pack_receipt(receipt: ForgetReceipt) -> bytes:
    return _pack(as_plain(receipt))


def unpack_receipt(stored: bytes) -> ForgetReceipt:
    body = _unpack(stored)
    forgotten, not_found = tuple(body.pop("forgotten")), tuple(body.pop("not_found"))
    return ForgetReceipt(**{**body, "forgotten": forgotten, "not_found": not_found, "replayed": True})


def pack_summary(summary: TenantSummary) -> bytes:
    return _pack(as_plain(summary))


def unpack_summary(stored: bytes) -> TenantSummary:
    body = _unpack(stored)
    # Replies of earlier releases do not say where the memory was: then it was always in memory.
    residency = Residency(body.get("residency", Residency.HOT))
    return TenantSummary(
        **{**body, "retention": Retention(body["retention"]), "residency": residency, "replayed": True}
    )


def pack_restored(reply: RestoreReply) -> bytes:
    return _pack(as_plain(replace(reply, ms={})))


def unpack_restored(stored: bytes) -> RestoreReply:
    return RestoreReply(**{**_unpack(stored), "replayed": True})


def _pack(body: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


def _unpack(stored: bytes) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(stored, strict_map_key=True)
    return body
