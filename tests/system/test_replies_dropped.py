"""A slice of the dropped-replies campaign over HTTP: callers that hang up before the answer, and ask again."""

from __future__ import annotations

import json
import random
import select
import socket
import uuid
from urllib.parse import urlsplit

from cluster.client import Client

WRITES = 25
SENDS_MAX = 5


def send_and_hang_up(system, tenant: str, fact: dict[str, str], idempotency_key: str, *, patient: bool) -> None:
    """A whole request whose sender reads no byte of the answer: gone at once, or (`patient`) when it could be read."""
    address, key = urlsplit(system.url), system.admin_key
    body = json.dumps({"facts": [fact]}).encode()
    head = (
        f"POST /v1/tenants/{tenant}/facts HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nIdempotency-Key: {idempotency_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        if patient:
            assert select.select([connection], [], [], 30)[0]


def test_a_write_whose_answers_nobody_hears_has_one_effect(system):
    """Each write is sent one to five times under its key, all but the last unheard: every fact is there once."""
    draw = random.Random(5)
    name = f"replies-{uuid.uuid4().hex[:10]}"
    with Client(system.url, system.admin_key) as admin:
        admin.create_tenant(name)
        ids, sends, replayed = [], 0, 0
        for number in range(WRITES):
            fact = {"prompt": f"What is in drawer {number}?", "target": f"item {number}"}
            once = uuid.uuid4().hex
            for _ in range(draw.randint(0, SENDS_MAX - 1)):
                send_and_hang_up(system, name, fact, once, patient=draw.random() < 0.4)
                sends += 1
            reply = admin.write(name, fact, idempotency_key=once)
            ids += reply.ids
            replayed += reply.replayed

        stored = list(admin.facts(name))
        assert [fact.id for fact in stored] == ids
        assert [fact.prompt for fact in stored] == [f"What is in drawer {number}?" for number in range(WRITES)]
        assert admin.tenant(name).version == WRITES
        assert sends > WRITES
        assert replayed > 0  # so unheard requests did arrive and were carried out
        assert admin.verify(name).identical
        admin.delete_tenant(name)
