"""Settings: one file, every key shown, unknown keys refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cluster.settings import (
    SERVE_APPLICATION_KEYS,
    SERVE_HTTP_KEYS,
    SERVE_KEYS,
    Settings,
    load_settings,
    settings_from,
)
from memory_actor.errors import SettingsInvalid

CONFIG = Path(__file__).parents[2] / "ray_config.yaml"


@pytest.fixture
def config(tmp_path):
    """A function that writes the shipped file with one replacement and returns its path."""

    def write(old: str, new: str) -> Path:
        text = CONFIG.read_text(encoding="utf-8")
        assert old in text
        path = tmp_path / "ray_config.yaml"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return write


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    leaves = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            leaves += _leaves(field.annotation, f"{prefix}{name}.")
        else:
            leaves.append(prefix + name)
    return leaves


def test_shipped_file_holds_the_defaults():
    """ray_config.yaml changes nothing: loading it gives the defaults of the model."""
    assert load_settings(CONFIG, {}) == Settings()


def test_shipped_file_shows_every_setting_with_a_comment():
    """Each setting stands in ray_config.yaml, on a line of its own, with a comment that names its default."""
    args = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["applications"][0]["args"]
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    for leaf in _leaves(Settings):
        node = args
        for part in leaf.split("."):
            assert part in node, leaf
            node = node[part]
        name = leaf.rsplit(".", 1)[-1]
        shown = [line for line in lines if re.match(rf"\s+{name}: [^#\s]", line)]
        assert shown, leaf
        assert all(re.search(r"# .*default ", line) for line in shown), (leaf, shown)


def test_shipped_file_is_a_serve_config():
    """Ray Serve's own schema accepts ray_config.yaml, and our lists of its keys are complete."""
    schema = pytest.importorskip("ray.serve.schema")
    schema.ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    assert set(SERVE_KEYS) == set(schema.ServeDeploySchema.model_fields)
    assert set(SERVE_APPLICATION_KEYS) == set(schema.ServeApplicationSchema.model_fields)
    assert set(SERVE_HTTP_KEYS) == set(schema.HTTPOptionsSchema.model_fields)


@pytest.mark.parametrize(
    ("old", "new", "path", "nearest"),
    [
        ("proxy_location:", "proxy_lokation:", "proxy_lokation", "proxy_location"),
        ("  host: &host 127.0.0.1", "  hosst: 1\n  host: &host 127.0.0.1", "http_options.hosst", "host"),
        ("route_prefix:", "route_prefx:", "applications[0].route_prefx", "route_prefix"),
        ("state_dir:", "statedir:", "statedir", "state_dir"),
        ("group_facts_max:", "group_fact_max:", "ledger.group_fact_max", "group_facts_max"),
        ("      limits:", "      limit:", "limit", "limits"),
    ],
)
def test_unknown_key_is_refused_at_every_level(config, old, new, path, nearest):
    """An unknown key is refused with its path and the nearest valid key, in Serve's part of the file too."""
    with pytest.raises(SettingsInvalid, match=re.escape(f"unknown key '{path}'; did you mean '{nearest}'?")) as caught:
        load_settings(config(old, new), {})
    assert "ray_config.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("torch_threads: 1 ", "torch_threads: 0 ", "memory.torch_threads: Input should be greater than or equal to 1"),
        ("device: auto", "device: gpu", "memory.device: Input should be 'auto', 'cpu' or 'cuda'"),
        ("cluster.app:build_app\n", "cluster.app:other\n", "must be 'cluster.app:build_app'"),
        ("host: *host", "host: 127.0.0.2", "both must name the same address"),
        ("applications:\n", "applications: [1, 2]\nx:\n", "unknown key 'x'"),
        ("proxy_location: HeadOnly", "proxy_location: [", "is not valid YAML"),
    ],
)
def test_bad_value_is_refused_with_its_path(config, old, new, says):
    """A value of the wrong type or range names its key and what is allowed."""
    with pytest.raises(SettingsInvalid, match=re.escape(says)):
        load_settings(config(old, new), {})


def test_missing_file_is_refused(tmp_path):
    """A config file that is not there is named."""
    with pytest.raises(SettingsInvalid, match=r"nowhere\.yaml: No such file"):
        load_settings(tmp_path / "nowhere.yaml", {})


def test_overrides_win_over_the_file():
    """Dotted overrides replace single values, texts are converted, and None leaves the file's value."""
    settings = load_settings(CONFIG, {"http.port": "8123", "ray.haproxy": "false", "http.host": None})
    assert (settings.http.port, settings.http.host, settings.ray.haproxy) == (8123, "127.0.0.1", False)
    assert settings.http.body_bytes_max == Settings().http.body_bytes_max


def test_nested_and_dotted_arguments_agree():
    """`serve run cluster.app:build_app http.port=1` means what the nested mapping means; a later key wins."""
    assert settings_from({"http.port": 81}, "x") == settings_from({"http": {"port": 81}}, "x")
    assert settings_from({"http": {"port": 81}, "http.port": 82}, "x").http.port == 82
    assert settings_from({"http.port": 82, "http": {"port": 81}}, "x").http.port == 81


def test_state_dir_reaches_workers_as_it_is_meant(monkeypatch, tmp_path):
    """`~` and relative paths are resolved where they are read: Ray's workers run in other folders."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_settings(None, {"state_dir": "~/here"}).state_dir == tmp_path / "here"
    assert load_settings(None, {"state_dir": "there"}).state_dir == tmp_path / "there"


def test_a_ledger_is_sqlite_or_postgresql():
    """No URL means files in the state folder; anything but PostgreSQL is refused with its path."""
    assert Settings().ledger.url is None
    url = "postgresql://larimar@db.example:5433/larimar?sslmode=require"
    assert load_settings(None, {"ledger.url": url}).ledger.url == url
    with pytest.raises(SettingsInvalid, match=r"ledger\.url: .*postgresql://"):
        load_settings(None, {"ledger.url": "mysql://db/larimar"})


@pytest.mark.parametrize(
    "overrides",
    [
        {"ledger.url": "postgresql://larimar:hunter2@db/larimar"},
        {"ledger.url": "postgresql://db/larimar?user=larimar&password=hunter2"},
        {"ledger": {"url": "mysql://larimar:hunter2@db/larimar"}},
        {"checkpoints.locations.far": "s3://ID:hunter2@bucket/prefix"},
        {"checkpoints.locations": {"far": "s3://bucket/prefix?secret_key=hunter2"}},
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(overrides):
    """Passwords belong in the environment; the refusal that says so does not show the one that was given."""
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(None, overrides)
    assert "hunter2" not in str(caught.value)
    assert "ledger.url" in str(caught.value) or "checkpoints.locations" in str(caught.value)


@pytest.mark.parametrize(
    "locations", [{"Far Away": "/mnt/x"}, {"../x": "/mnt/x"}, {"far": "relative/folder"}, {"far": "gopher://b/p"}]
)
def test_locations_have_names_and_fixed_places(locations):
    """A name that could be a path, and a folder that depends on where a process runs, are refused."""
    with pytest.raises(SettingsInvalid, match=r"checkpoints\.locations"):
        load_settings(None, {"checkpoints.locations": locations})


def test_the_local_location_is_always_there(tmp_path):
    """Cold tenants live in it: a folder in the state folder unless the settings put it elsewhere."""
    plain = load_settings(None, {"state_dir": str(tmp_path)})
    assert plain.checkpoint_locations == {"local": str(tmp_path / "checkpoints")}
    more = load_settings(None, {"state_dir": str(tmp_path), "checkpoints.locations.far": "s3://bucket/prefix"})
    assert more.checkpoint_locations == {**plain.checkpoint_locations, "far": "s3://bucket/prefix"}
    moved = load_settings(None, {"checkpoints.locations.local": "/mnt/fast"})
    assert moved.checkpoint_locations == {"local": "/mnt/fast"}


def test_keys_are_in_the_state_folder_unless_they_are_moved(monkeypatch, tmp_path):
    """`keys.folder` may name a folder that backups of the state folder do not reach."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(None, {"state_dir": "/srv/x"}).keys_folder == Path("/srv/x/keys")
    assert load_settings(None, {"keys.folder": "~/safe"}).keys_folder == tmp_path / "safe"
