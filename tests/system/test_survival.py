"""What was acknowledged survives: kill -9 of the memory actor, and a restart of everything."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import uuid

from cluster.client import Client


def _memory_pid(admin: Client) -> int:
    return int(admin.status()["memory"][0]["pid"])


def test_kill_between_two_writes_loses_nothing(system):
    """kill -9 of the memory actor between two writes: both are there, the hash verifies, the epoch grew."""
    name = f"kill-{uuid.uuid4().hex[:10]}"
    with Client(system.url, system.admin_key) as admin:
        admin.create_tenant(name)
        first = admin.write(name, {"prompt": "What colour is the barn of the Aldens?", "target": "mustard yellow"})
        before = admin.status()["memory"][0]

        os.kill(before["pid"], signal.SIGKILL)
        second = admin.write(name, {"prompt": "Which boat did Ilse sell?", "target": "the Cormorant"})

        after = admin.status()["memory"][0]
        assert after["pid"] != before["pid"]
        assert after["epoch"] > before["epoch"]
        assert [fact.id for fact in admin.facts(name)] == [*first.ids, *second.ids]
        assert admin.verify(name).identical
        assert "mustard" in admin.query(name, "What colour is the barn of the Aldens?", max_tokens=12).text
        admin.delete_tenant(name)


def test_kills_under_load_lose_and_repeat_nothing(system):
    """Writers go on while the actor is killed three times: every acknowledged fact is there exactly once."""
    name = f"load-{uuid.uuid4().hex[:10]}"

    def write_some(worker: int) -> list[str]:
        acknowledged = []
        with Client(system.url, system.admin_key) as client:
            for number in range(12):
                fact = {"prompt": f"What is box {number} of worker {worker} for?", "target": f"item {number}"}
                acknowledged += client.write(name, fact).ids
        return acknowledged

    with Client(system.url, system.admin_key) as admin:
        admin.create_tenant(name)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            writing = [pool.submit(write_some, worker) for worker in range(3)]
            for kill in range(3):
                while sum(1 for _ in admin.facts(name)) < 4 + 8 * kill:  # each call waits for a real answer
                    pass
                os.kill(_memory_pid(admin), signal.SIGKILL)
            acknowledged = [fact_id for done in writing for fact_id in done.result()]

        stored = [fact.id for fact in admin.facts(name)]
        assert sorted(stored) == sorted(acknowledged)
        assert len(set(stored)) == 36
        assert admin.verify(name).identical
        admin.delete_tenant(name)


def test_restart_keeps_everything(system):
    """After `larimar down` and `larimar up` the hash, the versions, the keys and the answers are what they were."""
    name = f"keep-{uuid.uuid4().hex[:10]}"
    with Client(system.url, system.admin_key) as admin:
        key = admin.create_tenant(name).key
        ids = admin.write(name, {"prompt": "Where is the ladder?", "target": "behind the greenhouse"}).ids
        before = admin.tenant(name)

    system.restart()

    with Client(system.url, key) as client:
        after = client.tenant(name)
        assert (after.state_hash, after.version, after.facts) == (before.state_hash, before.version, before.facts)
        assert [fact.id for fact in client.facts(name)] == ids
        assert "greenhouse" in client.query(name, "Where is the ladder?", max_tokens=12).text
        assert client.verify(name).identical
    with Client(system.url, system.admin_key) as admin:
        admin.delete_tenant(name)
