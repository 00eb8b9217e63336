"""The plugins in ``plugins/``: complete distributions whose own tests pass, and whose README is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from distributions import build, fresh_environment, run
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
    names = ("attribution", "calibrated", "clean", "ensemble", "onnxruntime", "openvino", "sklearn", "sparse")
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
    assert facts["version"] == pipeline_kit.__version__
    major, minor, *_ = pipeline_kit.__version__.split(".")
    assert f"pipeline-kit>={major}.{minor},<{major}.{int(minor) + 1}" in facts["dependencies"]
    assert all((package / file).is_file() for file in ("__init__.py", "py.typed"))
    assert (package / "stage.py").is_file() or (package / "view.py").is_file()
    if (package / "conf").is_dir():
        assert (package / "conf" / "__init__.py").is_file()
        assert list(package.glob("conf/*/*.yaml"))


@pytest.mark.storm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("plugin", PLUGINS, ids=NAMES)
def test_its_own_tests_pass(plugin: Path, tmp_path: Path) -> None:
    skip_without_dependencies(plugin)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(plugin)]
    env = installed_by_hand(plugin, tmp_path / "site")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1190)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


def test_registering_is_light_and_listed(tmp_path: Path) -> None:
    """``ls`` shows the stages and their presets and who they are from, without torch."""
    code = (
        "import sys; from pipeline_kit.cli.app import main; code = main(['ls', '--json']);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    sites = [installed_by_hand(plugin, tmp_path / plugin.name) for plugin in PLUGINS]
    env = {**sites[0], "PYTHONPATH": os.pathsep.join(site["PYTHONPATH"] for site in sites)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    listed = json.loads(done.stdout)
    for plugin in PLUGINS:
        facts = project(plugin)
        [name] = facts["entry-points"]["pipeline_kit.plugins"]
        row = next(row for row in listed["stages"] if row["name"] == name and row["kind"] != "task")
        assert row["from"] == f"{facts['name']} {facts['version']}"
        for preset in (plugin / "src" / f"pk_{name}" / "conf").glob("*/*.yaml"):
            found = next(row for row in listed["presets"] if row["name"] == preset.stem)
            assert found["from"].startswith(facts["name"])


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module", params=PLUGINS, ids=NAMES)
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A plugin's folder, and its wheel built as for a release."""
    return request.param, build(request.param, tmp_path_factory.mktemp("dist"))


@pytest.mark.storm
def test_its_wheel_holds_all_of_it_and_an_index_takes_it(released: tuple[Path, Path], tmp_path: Path) -> None:
    plugin, wheel = released
    source = plugin / "src"
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in source.rglob("*") if path.is_file() and path.suffix in (".py", ".yaml", ".typed", ""))
    assert inside == {path.relative_to(source).as_posix() for path in files if ".egg-info" not in str(path)}
    built = [wheel, *wheel.parent.glob("*.tar.gz")]
    run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=tmp_path)


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
def test_the_readme_is_true_of_its_wheel(released: tuple[Path, Path], core: Path, tmp_path: Path) -> None:
    """Files it shows are written, commands it shows are run, all in one process, in a fresh environment."""
    plugin, wheel = released
    skip_without_dependencies(plugin)
    lines: list[str] = []
    page = (plugin / "README.md").read_text(encoding="utf-8")
    for info, body in re.findall(r"^```(.+?)\n(.*?)^```$", page, re.S | re.M):
        if "title=" in info:
            (tmp_path / info.partition("title=")[2]).write_text(body, encoding="utf-8")
        elif info == "bash":
            lines += body.splitlines()
    assert len(lines) >= 4
    commands = fresh_environment(tmp_path / "env", core, wheel)
    run(commands / "python", "-c", COMMANDS, *lines, cwd=tmp_path)
