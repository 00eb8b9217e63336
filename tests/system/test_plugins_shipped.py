"""The plugins in ``plugins/``: complete distributions whose own tests pass, and whose README is true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import ROOT, installed_by_hand

import pipeline_kit

PLUGINS = sorted((ROOT / "plugins").glob("pipeline-kit-*"))
NAMES = [plugin.name for plugin in PLUGINS]


def project(plugin: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def skip_without_dependencies(plugin: Path) -> None:
    """Skip where a library that the plugin is for is not installed; .ci/run installs them all."""
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in project(plugin)["dependencies"]]
    missing = [name for name in names if not is_installed(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; to run it: pip install -c constraints.txt -e plugins/{plugin.name}")


def is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def test_they_are_found() -> None:
    names = ("calibrated", "clean", "onnxruntime", "openvino")
    assert {f"pipeline-kit-{name}" for name in names} <= set(NAMES)


@pytest.mark.parametrize("plugin", PLUGINS, ids=NAMES)
def test_it_is_a_complete_distribution(plugin: Path) -> None:
    facts = project(plugin)
    [(name, value)] = facts["entry-points"]["pipeline_kit.plugins"].items()
    package = plugin / "src" / f"pk_{name}"
    assert facts["name"] == plugin.name == f"pipeline-kit-{name}"
    assert value == f"pk_{name}:register"
    assert facts["license"] == "Apache-2.0"
    assert (plugin / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    major, minor, *_ = pipeline_kit.__version__.split(".")
    assert f"pipeline-kit>={major}.{minor},<{major}.{int(minor) + 1}" in facts["dependencies"]
    for file in ("__init__.py", "stage.py", "py.typed", "conf/__init__.py"):
        assert (package / file).is_file(), file
    assert list(package.glob("conf/*/*.yaml"))


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plugin", PLUGINS, ids=NAMES)
def test_its_own_tests_pass(plugin: Path, tmp_path: Path) -> None:
    skip_without_dependencies(plugin)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(plugin)]
    env = installed_by_hand(plugin, tmp_path / "site")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


def test_registering_is_light_and_listed(tmp_path: Path) -> None:
    """``ls`` shows the stages and their presets and who they are from, without torch."""
    code = (
        "import sys; from pipeline_kit.cli.app import main; code = main(['ls']);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    sites = [installed_by_hand(plugin, tmp_path / plugin.name) for plugin in PLUGINS]
    env = {**sites[0], "PYTHONPATH": os.pathsep.join(site["PYTHONPATH"] for site in sites)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    for plugin in PLUGINS:
        facts = project(plugin)
        [name] = facts["entry-points"]["pipeline_kit.plugins"]
        assert re.search(rf"\b{name} +{facts['name']} {facts['version']} ", done.stdout)
        for preset in (plugin / "src" / f"pk_{name}" / "conf").glob("*/*.yaml"):
            assert re.search(rf"\b{preset.stem} +{facts['name']}", done.stdout)


@pytest.mark.parametrize("plugin", PLUGINS, ids=NAMES)
def test_its_wheel_holds_all_of_it(plugin: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    copy = shutil.copytree(plugin, tmp_path / "copy", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    build = [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('..')"]
    subprocess.run(build, cwd=copy, check=True, capture_output=True, timeout=200)
    [wheel] = tmp_path.glob("*.whl")
    source = plugin / "src"
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in source.rglob("*") if path.is_file() and path.suffix in (".py", ".yaml", ".typed", ""))
    assert inside == {path.relative_to(source).as_posix() for path in files if ".egg-info" not in str(path)}


COMMANDS = """
import runpy, shlex, sys
from pipeline_kit.cli.app import main

for line in sys.argv[1:]:
    program, *sys.argv = shlex.split(line)
    if program == "pipeline-kit":
        assert main(sys.argv) == 0, line
    else:
        assert sys.argv[0] == "-m"
        try:
            runpy.run_module(sys.argv.pop(1), run_name="__main__")
        except SystemExit as end:
            assert not end.code, line
"""


@pytest.mark.storm
@pytest.mark.parametrize("plugin", PLUGINS, ids=NAMES)
def test_the_readme_is_true(plugin: Path, tmp_path: Path) -> None:
    """Files it shows are written, commands it shows are run, all in one process."""
    skip_without_dependencies(plugin)
    lines: list[str] = []
    page = (plugin / "README.md").read_text(encoding="utf-8")
    for info, body in re.findall(r"^```(.+?)\n(.*?)^```$", page, re.S | re.M):
        if "title=" in info:
            (tmp_path / info.partition("title=")[2]).write_text(body, encoding="utf-8")
        elif info == "bash":
            lines += body.splitlines()
    assert len(lines) >= 4
    command = [sys.executable, "-c", COMMANDS, *lines]
    env = installed_by_hand(plugin, tmp_path / "site")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
