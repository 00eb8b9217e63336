"""Distributions built as for a release, and fresh environments that hold them."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy
import pytest
from fake_plugins import ROOT

__all__ = ["build", "fresh_environment", "run"]

BIN = "Scripts" if os.name == "nt" else "bin"
SITE = Path(numpy.__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, without this process's plugins and search path; return what it printed."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIPELINE_KIT_PLUGINS")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(project: Path, out: Path) -> Path:
    """Build an sdist, and a wheel from it, of the files of a folder that git tracks or would; return the wheel.

    :param out: an empty folder for both.
    """
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=project) if (ROOT / ".git").exists() else ""
    if not listed:
        pytest.skip("the sources are not a git checkout")
    for name in listed.splitlines():
        if (project / name).is_file():
            copy = out / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((project / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, out / "source", cwd=out)
    [wheel], [_] = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel


def fresh_environment(folder: Path, *wheels: Path) -> Path:
    """Make a virtual environment with some wheels and the libraries of this one; return the folder of its commands.

    Other distributions of this project are left out, however they are installed here.
    """
    venv.create(folder, with_pip=False)
    commands = folder / BIN
    libraries = folder / "libraries"
    libraries.mkdir()
    for path in SITE.iterdir():
        if not path.name.startswith(("pipeline_kit", "__editable__", "pk_")):
            (libraries / path.name).symlink_to(path)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(commands / "python", "-c", code, cwd=folder).strip())
    (site / "libraries.pth").write_text(str(libraries))
    pip = (sys.executable, "-m", "pip", "--python", commands / "python", "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--no-compile", *wheels, cwd=folder)
    return commands
