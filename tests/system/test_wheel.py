"""The distribution: an sdist, a wheel made from it, installed into a fresh environment, and run from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).parents[2]
BIN = "Scripts" if os.name == "nt" else "bin"


def run(*command: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "pipeline-kit"
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT) if (ROOT / ".git").exists() else ""
    if not listed:
        pytest.skip("the sources are not a git checkout")
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_carries_all_yaml_and_checkpoints(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"pipeline_kit/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for path in (ROOT / "pipeline_kit" / "assets").glob("*/*"):
        assert f"pipeline_kit/assets/{path.parent.name}/{path.name}" in names
    for folder in ("cli", "explain"):
        for path in (ROOT / "pipeline_kit" / folder / "templates").rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"pipeline_kit/{path.relative_to(ROOT / 'pipeline_kit').as_posix()}" in names
    assert "pipeline_kit/py.typed" in names
    assert not any(name.startswith(("conf/", "tests/", "tools/", "benchmarks/")) for name in names)


def test_the_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / BIN / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", "--no-compile")
    run(*pip, wheel, cwd=tmp_path)
    # The dependencies are those of the running environment: only this project is installed anew.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(str(Path(numpy.__file__).parent.parent))
    home = run(python, "-c", "import pipeline_kit; print(pipeline_kit.__file__)", cwd=tmp_path).strip()
    assert Path(home).is_relative_to(site)
    command = tmp_path / "env" / BIN / "pipeline-kit"
    assert run(command, "--version", cwd=tmp_path).startswith("pipeline-kit ")
    printed = run(command, "run", "--text", "I love this.", "--format", "jsonl", cwd=tmp_path)
    assert json.loads(printed)["label"] == "POSITIVE"
    assert "longest" in run(command, "ls", "padding", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"env"}
