"""Receipts of erasures: what was destroyed, signed so that anyone can check it later without asking us.

The document is canonical JSON (keys sorted, no whitespace, UTF-8, no fractions): {"public_key": hex, "receipt": {…},
"signature": hex}. The Ed25519 signature is over the canonical JSON of `receipt` alone. Facts are named by SHA-256 of
their ids, so that a receipt shows nothing to those who do not know an id, and proves it to those who do.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from memory_actor.errors import ReceiptInvalid

FORMAT: Final = "larimar-erase-receipt-1"
KINDS: Final = ("forget", "supersede", "restore", "tenant")
_TEXTS = (
    "format",
    "receipt_id",
    "tenant",
    "kind",
    "state_hash_before",
    "state_hash_after",
    "requested_at",
    "completed_at",
)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z\Z")


@dataclass(frozen=True)
class EraseReceipt:
    """One erasure that is complete. Sequences are kept as tuples, `fact_hashes` in ascending order."""

    receipt_id: str
    tenant: str
    kind: str  # one of KINDS
    fact_hashes: Sequence[str]  # `fact_hash` of each fact
    facts: int
    state_hash_before: str
    state_hash_after: str
    requested_at: str  # `rfc3339`
    completed_at: str
    keys_destroyed: int
    checkpoints_rewritten: Sequence[Mapping[str, str]]  # {"old": …, "new": …}, SHA-256 of the manifests
    files_deleted: Sequence[str]  # SHA-256 of the content
    ledger_truncated: bool
    remaining: Sequence[str]  # what is out of our reach, in plain sentences
    format: str = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError for a field that a receipt of this format cannot have."""
        for name in ("fact_hashes", "checkpoints_rewritten", "files_deleted", "remaining"):
            value = getattr(self, name)
            in_order = sorted(value, key=str) if name == "fact_hashes" else value
            object.__setattr__(self, name, tuple(in_order))  # what is no list has no items of the right kind
        problem = next(itertools.chain(_problems(self), _problems_of_lists(self)), None)
        if problem is not None:
            raise ValueError(f"no receipt of format {FORMAT}: {problem}")


def fact_hash(fact_id: str) -> str:
    """How a receipt names a fact: SHA-256 of its id (UTF-8), in hex."""
    return hashlib.sha256(fact_id.encode()).hexdigest()


def rfc3339(seconds: float) -> str:
    """A time in seconds since the epoch as UTC text, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


class ReceiptSigner:
    """Signs receipts with one Ed25519 key. Its repr shows no key."""

    def __init__(self, private_key: bytes) -> None:
        """Args: private_key: 32 bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)

    @property
    def public_key(self) -> bytes:
        """32 bytes, for whoever checks receipts."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, receipt: EraseReceipt) -> str:
        """The signed document."""
        plain = _fields(receipt)
        signature = self._key.sign(canonical(plain))
        document = {"receipt": plain, "signature": signature.hex(), "public_key": self.public_key.hex()}
        return canonical(document).decode()


def verify_receipt(document: str, public_key: bytes | None) -> EraseReceipt:
    """The receipt in a signed document, once its signature is checked.

    Args: public_key: of the server that is believed to have signed it (32 bytes). None checks only that nothing was
    changed since the key that the document names signed it, which a forger could have made himself.
    Raises: ReceiptInvalid.
    """
    parsed = _parse(document)
    if not isinstance(parsed, dict) or parsed.keys() != {"receipt", "signature", "public_key"}:
        raise ReceiptInvalid("it is not {receipt, signature, public_key}")
    named, signature = (_hex(parsed, name, size) for name, size in (("public_key", 32), ("signature", 64)))
    if public_key is not None and named != public_key:
        raise ReceiptInvalid(f"it was signed with another key, {named.hex()}")
    plain = parsed["receipt"]
    try:
        Ed25519PublicKey.from_public_bytes(named).verify(signature, canonical(plain))
    except (InvalidSignature, ValueError):  # ValueError: text that is not UTF-8
        raise ReceiptInvalid("the signature does not match: the receipt or its signature was changed") from None
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ReceiptInvalid(f"its format is not {FORMAT}")
    try:
        receipt = EraseReceipt(**plain)
    except (TypeError, ValueError) as error:
        raise ReceiptInvalid(str(error)) from error
    if _fields(receipt) != plain:
        raise ReceiptInvalid("its lists are not as this format writes them")
    return receipt


def canonical(value: Any) -> bytes:
    """JSON in the one form that is signed. Raises ValueError for text that is not UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


# -- strict reading ---------------------------------------------------------------------------------------------


def _parse(document: str) -> Any:
    try:
        return json.loads(document, object_pairs_hook=_once, parse_float=_refuse, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ReceiptInvalid(f"it is not a receipt in JSON ({reason})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:20]} is not a whole number")


def _hex(parsed: Mapping[str, Any], name: str, size: int) -> bytes:
    text = parsed[name]
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * size}}}", text):
        raise ReceiptInvalid(f"{name} is not {size} bytes in lower-case hex")
    return bytes.fromhex(text)


def _fields(receipt: EraseReceipt) -> dict[str, Any]:
    return {field.name: _plain(getattr(receipt, field.name)) for field in dataclasses.fields(receipt)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _problems(receipt: EraseReceipt) -> Iterator[str]:
    """What is wrong with the fields, one text after the other."""
    for name in _TEXTS:
        if not isinstance(getattr(receipt, name), str):
            yield f"{name} is not a text"
    for name in ("facts", "keys_destroyed"):
        value = getattr(receipt, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            yield f"{name} is not a count"
    if receipt.kind not in KINDS:
        yield f"kind is none of {', '.join(KINDS)}"
    for name in ("ledger_truncated",):
        if not isinstance(getattr(receipt, name), bool):
            yield f"{name} is neither true nor false"
    for name in ("requested_at", "completed_at"):
        if not _RFC3339.match(str(getattr(receipt, name))):
            yield f"{name} is not a time in UTC"


def _problems_of_lists(receipt: EraseReceipt) -> Iterator[str]:
    if not all(isinstance(one, str) for one in receipt.remaining):
        yield "a remaining item is not a text"
    if not all(isinstance(one, Mapping) and one.keys() == {"old", "new"} for one in receipt.checkpoints_rewritten):
        yield "a rewritten checkpoint is not {old, new}"
        return
    rewritten = (one for pair in receipt.checkpoints_rewritten for one in pair.values())
    for one in (*receipt.fact_hashes, *receipt.files_deleted, *rewritten):
        if not isinstance(one, str) or not _SHA256.match(one):
            yield "a hash is not SHA-256 in lower-case hex"
