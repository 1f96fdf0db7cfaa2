"""Receipts: anyone can check them, nobody can change them, and there is one way to write each."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from memory_actor.errors import ReceiptInvalid
from memory_actor.receipts import EraseReceipt, ReceiptSigner, canonical, fact_hash, rfc3339, verify_receipt

SIGNER = ReceiptSigner(bytes(range(32)))


def sample(**changes: Any) -> EraseReceipt:
    values: dict[str, Any] = {
        "receipt_id": "r_01JABCDEF",
        "tenant": "acme",
        "kind": "forget",
        "fact_hashes": [fact_hash("f_2"), fact_hash("f_1")],
        "facts": 2,
        "state_hash_before": "b3:1f",
        "state_hash_after": "b3:2e",
        "requested_at": rfc3339(1_795_370_519.5),
        "completed_at": rfc3339(1_795_370_530.25),
        "keys_destroyed": 2,
        "checkpoints_rewritten": [{"old": "0" * 64, "new": "1" * 64}],
        "files_deleted": ["2" * 64, "3" * 64],
        "ledger_truncated": True,
        "remaining": ["Backups made before the erasure: müssen ablaufen.", "Copies held by clients."],
    }
    return EraseReceipt(**values | changes)


def test_a_receipt_is_read_as_it_was_signed():
    """With the signer's key or without, every field comes back; lists in order, fact hashes ascending."""
    document = SIGNER.sign(sample())
    for key in (SIGNER.public_key, None):
        assert verify_receipt(document, key) == sample()
    assert list(sample().fact_hashes) == sorted([fact_hash("f_1"), fact_hash("f_2")])


def test_the_document_is_canonical():
    """The same receipt gives the same bytes: names sorted, no whitespace, UTF-8 as it is; also after another order."""
    document = SIGNER.sign(sample())
    assert document == SIGNER.sign(dataclasses.replace(sample(), fact_hashes=[fact_hash("f_1"), fact_hash("f_2")]))
    assert document == json.dumps(json.loads(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert "müssen" in document


def test_the_layout_is_fixed():
    """Receipts are kept for years: the bytes of this one may never change."""
    digest = hashlib.sha256(SIGNER.sign(sample()).encode()).hexdigest()
    assert digest == "f3508eb29029ac4d6aa1ca665cf377434a479670d3de0549cf946037ddea11af"


def test_openssl_agrees(tmp_path: Path):
    """Another implementation verifies the signature over the canonical JSON of `receipt`, as documented."""
    openssl = shutil.which("openssl")
    assert openssl, "install openssl: this test is the proof that receipts do not depend on our code"
    document = json.loads(SIGNER.sign(sample()))
    (tmp_path / "message").write_bytes(
        json.dumps(document["receipt"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    (tmp_path / "signature").write_bytes(bytes.fromhex(document["signature"]))
    prefix = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: an Ed25519 public key follows
    encoded = base64.b64encode(prefix + bytes.fromhex(document["public_key"])).decode()
    (tmp_path / "key.pem").write_text(f"-----BEGIN PUBLIC KEY-----\n{encoded}\n-----END PUBLIC KEY-----\n")
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "message"]
    done = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_character_can_be_changed():
    """A document with any one character replaced is refused (or says the very same)."""
    document = SIGNER.sign(sample())
    draw = random.Random(20260104)
    for at in range(len(document)):
        other = document[:at] + draw.choice('0a",:{}é ') + document[at + 1 :]
        try:
            assert verify_receipt(other, SIGNER.public_key) == sample()
        except ReceiptInvalid:
            continue
        assert json.loads(other) == json.loads(document)


def test_another_signer_is_refused():
    """A receipt that somebody else signed is genuine only for those who do not say whose key they expect."""
    forged = ReceiptSigner(bytes(32)).sign(sample(facts=99))
    with pytest.raises(ReceiptInvalid, match="another key"):
        verify_receipt(forged, SIGNER.public_key)
    assert verify_receipt(forged, None).facts == 99


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "delete"},
        {"facts": -1},
        {"facts": True},
        {"facts": 2.0},
        {"facts": "2"},
        {"keys_destroyed": None},
        {"ledger_truncated": 1},
        {"requested_at": "2026-11-22 17:41:59"},
        {"completed_at": "2026-11-22T17:41:59+01:00"},
        {"requested_at": 1.5},
        {"fact_hashes": ["f_1"]},
        {"fact_hashes": ["A" * 64]},
        {"files_deleted": [None]},
        {"checkpoints_rewritten": [{"old": "0" * 64}]},
        {"checkpoints_rewritten": [["0" * 64, "1" * 64]]},
        {"checkpoints_rewritten": [{"old": "0" * 64, "new": "1"}]},
        {"remaining": [1]},
        {"tenant": None},
        {"format": None},
    ],
    ids=str,
)
def test_no_other_receipt_can_be_made(changes: dict[str, Any]):
    """Fields of another type or form are refused before anything is signed."""
    with pytest.raises(ValueError, match="no receipt of format"):
        sample(**changes)


def resigned(change: Any) -> str:
    """A document whose content we changed and signed anew, as a later release or another program might."""
    document = json.loads(SIGNER.sign(sample()))
    receipt = copy.deepcopy(document["receipt"])
    change(receipt)
    signature = SIGNER._key.sign(canonical(receipt)).hex()
    return json.dumps({**document, "receipt": receipt, "signature": signature})


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: receipt.update(format="larimar-erase-receipt-2"),
        lambda receipt: receipt.pop("format"),
        lambda receipt: receipt.pop("facts"),
        lambda receipt: receipt.update(more=1),
        lambda receipt: receipt.update(facts="2"),
        lambda receipt: receipt.update(remaining="text"),
        lambda receipt: receipt.update(remaining={"a": 1}),
        lambda receipt: receipt.update(files_deleted=5),
        lambda receipt: receipt["fact_hashes"].reverse(),
    ],
)
def test_what_this_format_does_not_know_is_refused(change: Any):
    """Even with a genuine signature: other fields, formats and orders are not silently accepted."""
    with pytest.raises(ReceiptInvalid):
        verify_receipt(resigned(change), SIGNER.public_key)


@pytest.mark.parametrize(
    "document",
    ["", "null", "[]", "{}", "5", "{", '{"receipt":{}}', "[" * 100_000, '{"a":NaN}', '{"a":1,"a":2}', "\ud800", "\x00"],
)
def test_other_texts_are_refused(document: str):
    """Whatever is not such a document raises ReceiptInvalid and nothing else."""
    with pytest.raises(ReceiptInvalid):
        verify_receipt(document, None)


def test_numbers_and_names_are_read_strictly():
    """A fraction, an infinite number, or a name that comes twice is refused before the signature is looked at."""
    document = SIGNER.sign(sample())
    for other in (
        document.replace('"facts":2', '"facts":2.0'),
        document.replace('"facts":2', '"facts":Infinity'),
        document.replace('"facts":2', '"facts":3,"facts":2'),
        document.replace('"public_key":"', '"public_key":"00'),
        document.upper(),
    ):
        assert other != document
        with pytest.raises(ReceiptInvalid):
            verify_receipt(other, SIGNER.public_key)


def test_times_are_utc():
    """To the millisecond, whatever the machine's time zone."""
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_795_370_519.5) == "2026-11-22T18:01:59.500Z"


def test_the_private_key_is_not_shown():
    """Nor is it in what is signed."""
    shown = repr(SIGNER) + SIGNER.sign(sample())
    assert bytes(range(32)).hex() not in shown
