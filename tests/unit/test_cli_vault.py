"""`larimar vault` and `larimar receipt verify`, on a state folder without a system."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.state_folder import StateFolder
from memory_actor.directory import ledger_path
from memory_actor.errors import VaultLocked
from memory_actor.key_folder import KeyFolder
from memory_actor.ledger import Ledger
from memory_actor.receipts import ReceiptSigner
from memory_actor.vault import Vault
from memory_actor.vault_lock import fingerprint
from tests.ledger_samples import CONFIG, created
from tests.postgres_server import shared_server
from tests.unit.test_receipts import sample

SIGNER = ReceiptSigner(bytes(32))


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's keys, server or state folder."""
    for name in [name for name in os.environ if name.startswith("LARIMAR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LARIMAR_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("LARIMAR_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder of two memory actors with a tenant each, `acme` and `globex`, and ten keys in each vault."""
    state = tmp_path / "state"
    StateFolder(state).prepare()
    (state / "ledger" / "actors").write_text("2\n")
    write_settings(tmp_path / "two.yaml", {"memory": {"actors": 2}})
    keys = KeyFolder(state / "keys")
    keys.ensure(may_create=True)
    for index, tenant in enumerate(("acme", "globex")):
        vault = Vault.open_sqlite(vault_file(state, index), keys.root_keys())
        with Ledger.open(ledger_path(state, index), CONFIG, "test", 1.0, vault) as ledger:
            ledger.commit([created(tenant)], 2.0)
            vault.issue([(uid_of(ledger, tenant), 10)])
    return state


def write_settings(path: Path, args: dict[str, Any]) -> None:
    """A settings file, which is a Serve config (YAML takes JSON)."""
    application = {"name": "larimar", "import_path": "cluster.app:build_app", "args": args}
    path.write_text(json.dumps({"applications": [application]}))


def vault_file(state: Path, index: int) -> Path:
    return state / "keys" / f"vault-{index:02d}.sqlite"


def uid_of(ledger: Ledger, tenant: str) -> str:
    row = ledger.tenant_row(tenant)
    assert row is not None
    return row.uid


def keys_in(state: Path, index: int) -> tuple[dict[str, int], str]:
    """What a vault holds, and the root key it is sealed under."""
    with Vault.open_sqlite(vault_file(state, index), KeyFolder(state / "keys").root_keys()) as vault:
        return vault.counts(), vault.root_fingerprint


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def said(*arguments: str) -> Any:
    done = run(*arguments, "-o", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# -- rotate -----------------------------------------------------------------------------------------------------


def test_rotating_replaces_the_root_key_everywhere(state: Path, tmp_path: Path):
    """Both vaults are sealed under the new root key, which is the only one left; nothing else changed."""
    (old,) = KeyFolder(state / "keys").root_keys()
    before = [keys_in(state, index)[0] for index in range(2)]
    done = said("vault", "rotate", "--config", str(tmp_path / "two.yaml"))
    (new,) = KeyFolder(state / "keys").root_keys()
    assert done == {"root_key": fingerprint(new), "replaced": fingerprint(old), "vaults": 2, "tenant_keys": 2}
    assert new != old
    assert [keys_in(state, index) for index in range(2)] == [(counts, fingerprint(new)) for counts in before]


def test_rotating_is_refused_while_a_system_runs(state: Path, tmp_path: Path):
    """Exit code 5 (conflict), and no key changed."""
    before = KeyFolder(state / "keys").root_keys()
    with StateFolder(state).lock():
        done = run("vault", "rotate", "--config", str(tmp_path / "two.yaml"))
    assert done.exit_code == 5
    assert "already" in done.output
    assert KeyFolder(state / "keys").root_keys() == before


def test_rotating_is_refused_while_a_process_holds_a_vault(state: Path, tmp_path: Path):
    """A memory actor that outlived its supervisor: refused before there is a second root key."""
    with Vault.open_sqlite(vault_file(state, 1), KeyFolder(state / "keys").root_keys()):
        done = run("vault", "rotate", "--config", str(tmp_path / "two.yaml"))
    assert done.exit_code != 0
    assert "in use" in done.output
    assert not KeyFolder(state / "keys").rotating


def test_rotating_waits_for_a_missing_vault(state: Path, tmp_path: Path):
    """A vault that is elsewhere would be locked for ever by letting the old root key go."""
    vault_file(state, 1).rename(tmp_path / "elsewhere")
    done = run("vault", "rotate", "--config", str(tmp_path / "two.yaml"))
    assert done.exit_code != 0
    assert "vault-01.sqlite" in done.output
    assert not KeyFolder(state / "keys").rotating


def test_rotating_asks_for_all_actors(state: Path):
    """With settings that know of one actor of two, it is refused."""
    done = run("vault", "rotate")
    assert done.exit_code != 0
    assert "2 memory actors" in done.output.replace("\n", " ")


def test_a_rotation_is_taken_up_again(state: Path, tmp_path: Path):
    """Interrupted after the first vault, it ends with the key it had begun with."""
    keys = KeyFolder(state / "keys")
    new = keys.begin_rotation()
    with Vault.open_sqlite(vault_file(state, 0), keys.root_keys()) as vault:
        vault.rotate_root(new)
    assert said("vault", "status", "--config", str(tmp_path / "two.yaml"))["rotation"] == "unfinished"
    done = said("vault", "rotate", "--config", str(tmp_path / "two.yaml"))
    assert done["root_key"] == fingerprint(new)
    assert done["tenant_keys"] == 1
    assert keys.root_keys() == [new]
    assert {keys_in(state, index)[1] for index in range(2)} == {fingerprint(new)}


def test_rotating_one_tenant(state: Path, tmp_path: Path):
    """By name or by uid; the root key stays. An unknown one is exit code 4."""
    before = KeyFolder(state / "keys").root_keys()
    settings = ("--config", str(tmp_path / "two.yaml"))
    done = said("vault", "rotate", "--tenant", "globex", *settings)
    assert done["tenant"] == "globex"
    assert done["data_keys"] == 10
    assert said("vault", "rotate", "--tenant", done["uid"], *settings)["data_keys"] == 10
    assert KeyFolder(state / "keys").root_keys() == before
    for unknown in ("nobody", "f" * 32):
        assert run("vault", "rotate", "--tenant", unknown, *settings).exit_code == 4
    assert [keys_in(state, index)[0]["keys"] for index in range(2)] == [10, 10]


def test_a_damaged_tenant_key_stops_a_rotation(state: Path, tmp_path: Path):
    """The tenant is named, the cure too, and both root keys stay so that nothing is lost."""
    with Vault.open_sqlite(vault_file(state, 0), KeyFolder(state / "keys").root_keys()) as vault:
        (uid,) = vault._connection.exec_driver_sql("SELECT uid FROM tenant_key").scalars().all()
        vault._connection.exec_driver_sql("UPDATE tenant_key SET wrapped = randomblob(60)")
        vault._connection.commit()
    done = run("vault", "rotate", "--config", str(tmp_path / "two.yaml"))
    assert done.exit_code != 0
    assert uid in done.output.replace("\n", "")
    assert keys_in(state, 1)[0]["keys"] == 10


def test_no_key_is_shown(state: Path, tmp_path: Path):
    """Neither command prints a root key or the private signing key."""
    settings = ("--config", str(tmp_path / "two.yaml"))
    secrets = [key.hex() for key in KeyFolder(state / "keys").root_keys()]
    shown = run("vault", "status", *settings).output + run("vault", "rotate", *settings).output
    secrets += [(state / "keys" / name).read_text().strip() for name in ("root.key", "signing.key")]
    assert len(set(secrets)) == 3
    assert not [secret for secret in secrets if secret[:16] in shown]


def test_rotating_on_postgresql(tmp_path: Path):
    """The vaults on the server are found, wrapped anew, and open under the new root key alone."""
    from memory_actor.ledger_postgres import open_vault_postgres
    from memory_actor.postgres import location_of

    state, url = tmp_path / "state", shared_server().fresh_url()
    StateFolder(state).prepare()
    keys = KeyFolder(state / "keys")
    keys.ensure(may_create=True)
    (old,) = keys.root_keys()
    location = location_of(url, 0)
    with Ledger.open(location, CONFIG, "test", 1.0, open_vault_postgres(location, [old])) as ledger:
        ledger.commit([created("acme")], 2.0)
        uid = uid_of(ledger, "acme")
        issued = {one.id: one.key for one in ledger.vault.issue([(uid, 5)])[0]}
    settings = tmp_path / "settings.yaml"
    write_settings(settings, {"ledger": {"url": url}})
    assert said("vault", "rotate", "--config", str(settings))["tenant_keys"] == 1
    assert said("vault", "rotate", "--tenant", "acme", "--config", str(settings))["data_keys"] == 5
    (new,) = keys.root_keys()
    with pytest.raises(VaultLocked):
        open_vault_postgres(location, [old])
    with open_vault_postgres(location, [new]) as vault:
        assert vault.data_keys(uid, list(issued)) == issued


# -- status -----------------------------------------------------------------------------------------------------


def test_status_says_what_is_sealed_under_which_key(state: Path, tmp_path: Path):
    """Fingerprints, counts and the public key, for people and programs; nothing is changed by looking."""
    before = {file.name: file.read_bytes() for file in (state / "keys").iterdir()}
    found = said("vault", "status", "--config", str(tmp_path / "two.yaml"))
    keys = KeyFolder(state / "keys")
    root = fingerprint(keys.root_keys()[0])
    assert found["root_keys"] == [root]
    assert found["receipts_key"] == keys.signer().public_key.hex()
    assert found["rotation"] == "none"
    assert [(row["root_key"], row["tenants"], row["keys"]) for row in found["vaults"]] == [(root, 1, 10)] * 2
    assert root in run("vault", "status", "--config", str(tmp_path / "two.yaml")).stdout
    assert {file.name: file.read_bytes() for file in (state / "keys").iterdir()} == before


def test_status_of_lost_keys(state: Path, tmp_path: Path):
    """Without its root key a folder still says under which one its vaults are sealed: so that it can be found."""
    root = fingerprint(KeyFolder(state / "keys").root_keys()[0])
    (state / "keys" / "root.key").unlink()
    (state / "keys" / "signing.key").unlink()
    found = said("vault", "status", "--config", str(tmp_path / "two.yaml"))
    assert (found["root_keys"], found["receipts_key"]) == ([], None)
    assert {row["root_key"] for row in found["vaults"]} == {root}


def test_status_of_nothing(tmp_path: Path):
    """A folder that does not exist has no keys, and is not made by asking."""
    assert said("vault", "status")["vaults"] == []
    assert not (tmp_path / "state").exists()


# -- receipt verify ---------------------------------------------------------------------------------------------


def test_a_genuine_receipt(tmp_path: Path):
    """From a file or standard input, with the key in hex, in a file, or none: exit code 0 and the fields."""
    document = SIGNER.sign(sample())
    file, key_file, key = tmp_path / "receipt.json", tmp_path / "key", SIGNER.public_key.hex()
    file.write_text(document + "\n", encoding="utf-8")
    key_file.write_text(key + "\n")
    for given in (("--key", key), ("--key", key.upper()), ("--key", str(key_file))):
        found = said("receipt", "verify", str(file), *given)
        assert (found["genuine"], found["signed_by_given_key"], found["facts"]) == (True, True, 2)
    assert said("receipt", "verify", str(file))["signed_by_given_key"] is False
    piped = run("receipt", "verify", "-", "-o", "json", "--key", key, stdin=document)
    assert (piped.exit_code, json.loads(piped.stdout)["tenant"]) == (0, "acme")


def test_a_forged_receipt(tmp_path: Path):
    """Changed, signed by somebody else, or no receipt at all: exit code 1 and the reason."""
    file = tmp_path / "receipt.json"
    document = SIGNER.sign(sample())
    for text, key in (
        (document.replace('"facts":2', '"facts":3'), SIGNER.public_key),
        (document, bytes(range(32))),
        ("no receipt", SIGNER.public_key),
        ("\udcff", SIGNER.public_key),
    ):
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        done = run("receipt", "verify", str(file), "--key", key.hex())
        assert done.exit_code == 1
        assert "not a genuine receipt" in done.output


def test_wrong_usage(tmp_path: Path):
    """A file that is not there, or a key that is none: exit code 2."""
    file = tmp_path / "receipt.json"
    assert run("receipt", "verify", str(file)).exit_code == 2
    file.write_text(SIGNER.sign(sample()), encoding="utf-8")
    for key in ("12", str(tmp_path / "missing"), str(file)):
        assert run("receipt", "verify", str(file), "--key", key).exit_code == 2
