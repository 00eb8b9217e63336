"""The distribution: an sdist, a wheel made from it, installed into a fresh environment, and run from there."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from distributions import build, fresh_environment, run
from fake_plugins import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline_kit import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def test_the_wheel_carries_all_yaml_and_checkpoints(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"pipeline_kit/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for path in (ROOT / "pipeline_kit" / "builtin" / "assets").glob("*/*"):
        assert f"pipeline_kit/builtin/assets/{path.parent.name}/{path.name}" in names
    for folder in ("cli", "explain", "serve"):
        for path in (ROOT / "pipeline_kit" / folder / "templates").rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"pipeline_kit/{path.relative_to(ROOT / 'pipeline_kit').as_posix()}" in names
    assert "pipeline_kit/py.typed" in names
    assert not any(name.startswith(("conf/", "tests/", "tools/", "benchmarks/")) for name in names)


@pytest.mark.storm
def test_the_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    commands = fresh_environment(tmp_path / "env", wheel)
    home = run(commands / "python", "-c", "import pipeline_kit; print(pipeline_kit.__file__)", cwd=tmp_path).strip()
    assert Path(home).is_relative_to(tmp_path / "env")
    assert run(commands / "pipeline-kit", "--version", cwd=tmp_path).startswith(f"pipeline-kit {__version__} ")
    printed = run(commands / "pipeline-kit", "run", "--text", "I love this.", "--format", "jsonl", cwd=tmp_path)
    assert json.loads(printed)["label"] == "POSITIVE"
    assert "longest" in run(commands / "pipeline-kit", "ls", "padding", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"env"}


@pytest.mark.storm
def test_an_index_takes_it(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *wheel.parent.glob("pipeline_kit-*"), cwd=tmp_path)


@pytest.mark.storm
def test_its_bill_of_materials_is_complete(wheel: Path, tmp_path: Path) -> None:
    """As CONTRIBUTING.md makes it: every requirement of the package, with the version that is installed."""
    commands = fresh_environment(tmp_path / "env", wheel)
    made = (sys.executable, "-m", "cyclonedx_py", "environment", commands / "python", "--output-file", "bom.json")
    run(*made, cwd=tmp_path)
    bom = json.loads((tmp_path / "bom.json").read_text(encoding="utf-8"))
    versions = {canonicalize_name(part["name"]): part["version"] for part in bom["components"]}
    needed = [Requirement(line) for line in requires("pipeline-kit") or () if "extra ==" not in line]
    assert len(needed) > 5
    assert versions[canonicalize_name("pipeline-kit")] == __version__
    assert all(one.specifier.contains(versions[canonicalize_name(one.name)]) for one in needed)


def test_one_version() -> None:
    """What cannot read pipeline_kit/contract/version.py follows it; test_plugins_shipped.py has the plugins."""
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d.*?)\] - (unreleased|\d{4}-\d\d-\d\d)$", changes, re.M)
    assert newest is not None
    assert newest[1] == __version__
