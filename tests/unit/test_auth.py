"""API keys: what is issued, what is stored, and that everything wrong looks the same."""

from __future__ import annotations

import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.auth import KeyStore, Principal
from memory_actor.errors import Forbidden, LarimarError, NotFound, StateFolderUnusable, Unauthenticated

NOW = 1_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "control.sqlite"


@pytest.fixture
def keys(path: Path) -> Iterator[KeyStore]:
    store = KeyStore(path, cache_s=5)
    yield store
    store.close()


def bearer(key: str) -> str:
    return f"Bearer {key}"


def refused(keys: KeyStore, header: str | None, now: float = NOW) -> str:
    """The complete refusal of a header, as a caller would see it."""
    with pytest.raises(Unauthenticated) as caught:
        keys.authenticate(header, now)
    return f"{caught.value.code} {caught.value.http_status} {caught.value}"


# -- issuing ----------------------------------------------------------------------------------------------------


def test_admin_key_is_made_once(keys: KeyStore, path: Path):
    """The first start makes an admin key and later starts do not; the key works after a restart."""
    first = keys.ensure_admin(NOW)
    assert first is not None
    assert keys.ensure_admin(NOW) is None
    again = KeyStore(path)
    assert again.ensure_admin(NOW) is None
    assert again.authenticate(bearer(first), NOW).kind == "admin"
    again.close()


def test_keys_have_the_promised_form(keys: KeyStore):
    """Kind, 8 characters of kid, 256 bits of secret, and no two alike."""
    issued = [keys.reset_admin(NOW), *(keys.issue(f"tenant-{i}", NOW) for i in range(50))]
    form = re.compile(r"lm_(admin|tenant)_[a-z2-7]{8}_[a-z2-7]{52}")
    assert all(form.fullmatch(key) for key in issued)
    assert len({key.rsplit("_", 1)[1] for key in issued}) == len(issued)
    assert issued[0].startswith("lm_admin_")
    assert issued[1].startswith("lm_tenant_")


def test_resetting_the_admin_ends_the_earlier_key(keys: KeyStore):
    """After a reset only the new admin key works."""
    first = keys.ensure_admin(NOW)
    second = keys.reset_admin(NOW)
    assert keys.authenticate(bearer(second), NOW) == Principal("admin", None, second.split("_")[2])
    refused(keys, bearer(first or ""))


def test_a_tenant_has_one_key(keys: KeyStore):
    """Issuing a tenant's second key ends its first and nobody else's."""
    other = keys.issue("globex", NOW)
    first, second = keys.issue("acme", NOW), keys.issue("acme", NOW)
    refused(keys, bearer(first))
    assert keys.authenticate(bearer(second), NOW).tenant == "acme"
    assert keys.authenticate(bearer(other), NOW).tenant == "globex"


def test_revoked_tenants_are_refused(keys: KeyStore):
    """A revoked key stops working; revoking again finds nothing."""
    key = keys.issue("acme", NOW)
    assert keys.revoke_tenant("acme", NOW) == 1
    assert keys.revoke_tenant("acme", NOW) == 0
    refused(keys, bearer(key))


def test_secrets_are_not_stored(keys: KeyStore, path: Path):
    """Neither the database nor its log contains a secret."""
    issued = [keys.reset_admin(NOW), keys.issue("acme", NOW)]
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"acme" in stored  # the right files were looked at
    for key in issued:
        assert key.rsplit("_", 1)[1].encode() not in stored


# -- refusing ---------------------------------------------------------------------------------------------------


def test_everything_wrong_looks_alike(keys: KeyStore):
    """Missing, malformed, unknown, wrong and revoked keys get one and the same answer."""
    key, revoked = keys.issue("acme", NOW), keys.issue("globex", NOW)
    keys.revoke_tenant("globex", NOW)
    head, secret = key.rsplit("_", 1)
    headers = [
        None,
        "",
        "Bearer",
        "Bearer ",
        key,
        f"Basic {key}",
        bearer(key + "a"),
        bearer(key[:-1]),
        bearer(key.upper()),
        bearer(f"{head}_{secret[::-1]}"),
        bearer(key.replace("lm_tenant", "lm_admin")),
        bearer(f"lm_tenant_aaaaaaaa_{secret}"),
        bearer(key.replace("lm_tenant", "lm_root")),
        bearer(key + "\x00"),
        bearer("ł" * 72),
        bearer(revoked),
        "Bearer " + "lm_" * 100_000,
    ]
    assert len({refused(keys, header) for header in headers}) == 1
    assert keys.authenticate(bearer(key), NOW).tenant == "acme"


def test_any_changed_character_is_refused(keys: KeyStore):
    """A key with one character changed, anywhere, is refused."""
    key = keys.issue("acme", NOW)
    draw = random.Random(7)
    for position in range(len(key)):
        other = draw.choice([c for c in "abcdefghijklmnopqrstuvwxyz234567_" if c != key[position]])
        refused(keys, bearer(key[:position] + other + key[position + 1 :]))


def test_the_scheme_is_case_insensitive(keys: KeyStore):
    """RFC 9110: authentication schemes compare without case."""
    assert keys.authenticate(f"bearer {keys.issue('acme', NOW)}", NOW).tenant == "acme"


def test_another_process_revokes_within_the_cache_time(keys: KeyStore, path: Path):
    """A key revoked elsewhere works here for less than `cache_s` more, and a key issued elsewhere works at once."""
    elsewhere = KeyStore(path)
    key = elsewhere.issue("acme", NOW)
    assert keys.authenticate(bearer(key), NOW).tenant == "acme"
    elsewhere.revoke_tenant("acme", NOW)
    assert keys.authenticate(bearer(key), NOW + 4.9).tenant == "acme"
    refused(keys, bearer(key), NOW + 5)
    elsewhere.close()


def test_rows_changed_by_hand_grant_nothing(keys: KeyStore, path: Path):
    """A tenant's key does not become another tenant's, or the admin's, by editing its row."""
    key = keys.issue("acme", NOW)
    for change in ("tenant = 'globex'", "tenant = NULL", "kind = 'admin', tenant = NULL"):
        driver = sqlite3.connect(path)
        driver.execute(f"UPDATE api_key SET {change}")  # noqa: S608 - constants above
        driver.commit()
        driver.close()
        fresh = KeyStore(path)
        refused(fresh, bearer(key))
        refused(fresh, bearer(key.replace("lm_tenant", "lm_admin")))
        fresh.close()


# -- what a principal may ---------------------------------------------------------------------------------------


def test_only_the_admin_administers():
    """A tenant's key is refused with 403, naming the action."""
    Principal("admin", None, "k").require_admin("create tenants")
    with pytest.raises(Forbidden, match="may not create tenants"):
        Principal("tenant", "acme", "k").require_admin("create tenants")


def test_foreign_tenants_look_missing():
    """A tenant's key reaches its tenant; any other name is answered as if it did not exist."""
    Principal("admin", None, "k").require_tenant("globex")
    acme = Principal("tenant", "acme", "k")
    acme.require_tenant("acme")
    with pytest.raises(NotFound) as caught:
        acme.require_tenant("globex")
    assert str(caught.value) == str(NotFound("tenant", "globex"))


# -- the file ---------------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_the_file(keys: KeyStore, path: Path):
    """The database and everything beside it is 0600, in a folder of 0700."""
    keys.ensure_admin(NOW)
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"SQLite format 3\0" + bytes(4080)])
def test_a_damaged_file_is_refused_and_kept(path: Path, content: bytes):
    """A file that is not a database is named and left as it is."""
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StateFolderUnusable, match=r"control\.sqlite"):
        KeyStore(path)
    assert path.read_bytes() == content


def test_a_foreign_database_is_refused_and_kept(path: Path):
    """Somebody else's SQLite database is not written to."""
    path.parent.mkdir()
    driver = sqlite3.connect(path)
    driver.execute("CREATE TABLE api_key (kid)")
    driver.commit()
    driver.close()
    before = path.read_bytes()
    with pytest.raises(StateFolderUnusable, match="not a larimar control database"):
        KeyStore(path)
    assert path.read_bytes() == before


def test_a_later_format_is_refused(keys: KeyStore, path: Path):
    """A database of a newer release is not guessed at."""
    keys.close()
    driver = sqlite3.connect(path)
    driver.execute("PRAGMA user_version = 2")
    driver.close()
    with pytest.raises(StateFolderUnusable, match="newer larimar"):
        KeyStore(path)


def test_flipped_bits_never_open_a_door(keys: KeyStore, path: Path):
    """With one bit of the file flipped, opening fails or keys keep exactly their meaning; no wrong key gets in."""
    admin, acme = keys.reset_admin(NOW), keys.issue("acme", NOW)
    ended = keys.issue("globex", NOW)
    keys.revoke_tenant("globex", NOW)
    keys.close()
    content = path.read_bytes()
    draw = random.Random(3)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            store = KeyStore(path)
        except StateFolderUnusable:
            continue
        for key, kind, tenant in ((admin, "admin", None), (acme, "tenant", "acme"), (ended, None, None)):
            try:
                principal = store.authenticate(bearer(key), NOW)
            except LarimarError:
                continue  # closed is the safe side
            assert (principal.kind, principal.tenant) == (kind, tenant)
        store.close()


def test_processes_that_start_together_agree(path: Path):
    """Of several processes that open a new state folder at once, one makes the admin key."""
    program = (
        "import sys; from pathlib import Path; from cluster.auth import KeyStore; sys.stdin.read(1);"
        "print(KeyStore(Path(sys.argv[1])).ensure_admin(1.0))"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("x")
        start.stdin.flush()
    answers = [start.communicate(timeout=60)[0].strip() for start in starts]
    made = [answer for answer in answers if answer != "None"]
    assert len(made) == 1
    store = KeyStore(path)
    assert store.authenticate(bearer(made[0]), NOW).kind == "admin"
    store.close()
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}-wal", f"{path.name}-shm"}
