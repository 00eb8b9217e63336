"""``pipeline-kit new-plugin``: what it writes passes its own tests, ruff and mypy; what it refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import warm
from fake_plugins import ROOT, installed_by_hand

import pipeline_kit
from pipeline_kit.cli.app import main
from pipeline_kit.cli.commands.new_plugin import files
from pipeline_kit.contract.registry import KINDS, Kind

CONFIG = ROOT / "pyproject.toml"
NAMES: dict[Kind, str] = {
    "tokenizer": "signs",
    "model": "mean_of_vectors",
    "postprocessor": "name_of_thirty_two_characters_xy",
}
"""One of them as long as a name may be."""


def new_plugin(kind: str, name: str, folder: Path) -> int:
    return main(["new-plugin", kind, name, "--output", str(folder)])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """A plugin of each kind."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind, name in NAMES.items():
        assert new_plugin(kind, name, folder) == 0
    return {kind: folder / f"pipeline-kit-{name.replace('_', '-')}" for kind, name in NAMES.items()}


def run(
    command: Sequence[str | Path], where: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command], cwd=where, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass_at_once(
    kind: Kind, written: dict[Kind, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = written[kind]
    environment = installed_by_hand(plugin, tmp_path)
    monkeypatch.delenv("PIPELINE_KIT_PLUGINS")
    monkeypatch.chdir(tmp_path)
    done = warm.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *warm.IMPORTED, plugin, **environment)
    assert done.returncode == 0, done.out + done.err
    assert " passed" in done.out
    checked = warm.run("-m", "pipeline_kit", "validate", f"{kind}={NAMES[kind]}", **environment)
    assert checked.returncode == 0, checked.err


def test_pip_installs_it(written: dict[Kind, Path], tmp_path: Path) -> None:
    """A real editable install into a fresh environment that sees the packages of this one."""
    pytest.importorskip("setuptools")
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    outer = [path for path in sys.path if path.endswith("site-packages")]
    # With addsitedir the links of editable installs out there work too.
    (site / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
    plugin = written["tokenizer"]
    pip = ["-m", "pip", "--python", str(python), "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    run([sys.executable, *pip, "-e", plugin], tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PIPELINE_KIT_PLUGINS"}
    shown = run([python, "-m", "pipeline_kit", "cfg", f"tokenizer={NAMES['tokenizer']}_short"], tmp_path, environment)
    assert "max_length: 64" in shown.stdout


def test_ruff_and_mypy_find_nothing(written: dict[Kind, Path]) -> None:
    """By the rules of this project."""
    for tool in ("ruff", "mypy"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = written["model"].parent
    sources = [str(plugin / "src") for plugin in written.values()]
    ruff = [sys.executable, "-m", "ruff"]
    run([*ruff, "check", "--no-cache", "--config", CONFIG, "--config", f"src={sources}", folder], folder)
    run([*ruff, "format", "--no-cache", "--check", "--config", CONFIG, folder], folder)
    tests = [str(plugin / "tests") for plugin in written.values()]
    mypy: list[str | Path] = [sys.executable, "-m", "mypy", "--config-file", CONFIG]
    mypy += ["--cache-dir", ROOT / ".mypy_cache"]  # what mypy found in the package and in torch is known there
    run([*mypy, *sources, *tests], folder, {**os.environ, "MYPYPATH": str(ROOT)})


def test_it_says_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "postprocessor", "my_stage"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert "pipeline-kit-my-stage" in first
    assert rest == [
        "next:",
        "  pip install -e ./pipeline-kit-my-stage'[test]'",
        "  pytest ./pipeline-kit-my-stage",
        '  pipeline-kit run --text "I love this." postprocessor=my_stage',
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_filled_in(kind: Kind) -> None:
    made = files(kind, "some_name")
    assert {"pyproject.toml", "README.md", "src/pk_some_name/stage.py", "tests/test_some_name.py"} <= set(made)
    for path, text in made.items():
        assert "$" not in text, f"{path} has a placeholder left"
        assert text.endswith("\n") or not text
    project = tomllib.loads(made["pyproject.toml"])["project"]
    assert project["entry-points"]["pipeline_kit.plugins"] == {"some_name": "pk_some_name:register"}
    major, minor, *_ = pipeline_kit.__version__.split(".")
    assert project["dependencies"][0].startswith(f"pipeline-kit>={major}.{minor},<")


@pytest.mark.parametrize("how", ["file inside", "file", "dangling link"])
def test_nothing_is_overwritten(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "pipeline-kit-mine"
    if how == "file inside":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    elif how == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    assert new_plugin("model", "mine", tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_used_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "a" / "pipeline-kit-mine").mkdir(parents=True)
    assert new_plugin("model", "mine", tmp_path / "a") == 0
    assert new_plugin("model", "mine", tmp_path / "b" / "c") == 0
    assert (tmp_path / "b" / "c" / "pipeline-kit-mine" / "README.md").is_file()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert new_plugin("model", "mine", tmp_path / "file") == 1
    assert "cannot be written" in capsys.readouterr().err
