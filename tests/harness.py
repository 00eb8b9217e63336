"""What all tests share: tiny checkpoints written once, pipelines without Hydra, the command line in process.

It imports torch only where a checkpoint is asked for: see `pytest_ignore_collect` in conftest.py.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit import Pipeline, builtin, testing
from pipeline_kit.cli.app import main
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry, Task
from pipeline_kit.files.write.layout import Layout

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "checkpoints"


@functools.cache
def _versions() -> str:
    source = Path(testing.__file__).with_name("checkpoints.py").read_text(encoding="utf-8")
    return f"{version('torch')} {version('transformers')} {source}"


def checkpoint(architecture: str = "bert", **options: Any) -> Path:
    """Return the folder of a tiny checkpoint, written once for its arguments and versions. Nobody may change it.

    Two processes may write the same one: each writes its own folder and renames it, and the first one stays.
    Its files are dated 1970, so one that a test changed fails the next test that uses it.
    Where torch is not installed, the test is skipped.
    """
    pytest.importorskip("torch")
    key = hashlib.sha256(f"{architecture} {sorted(options.items())} {_versions()}".encode()).hexdigest()[:16]
    folder = CACHE / f"{architecture}-{key}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = testing.tiny_checkpoint(Path(tempfile.mkdtemp(dir=CACHE)), architecture, **options)
        for file in made.iterdir():
            os.utime(file, (0, 0))
        try:
            os.rename(made, folder)
        except OSError:  # another process was first
            shutil.rmtree(made)
    changed = [file.name for file in folder.iterdir() if file.stat().st_mtime]
    assert not changed, f"a test changed {changed} of a shared checkpoint; copy it first, and remove {folder}"
    return folder


@functools.cache
def scratch() -> Path:
    """Return a folder for what tests share, which is removed when this process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def builtins() -> Registry:
    """Return a registry with the built-in stages and tasks. Nobody may add to it."""
    registry = Registry()
    builtin.register(registry)
    return registry


def task_of(name: str) -> Task:
    """Return a built-in task's head, stages and fields."""
    found: Task = builtins().get("task", name).detail
    return found


def layout_of(postprocessor: str, **options: Any) -> Layout:
    """Return the columns of a built-in postprocessor's results."""
    return Layout.of(builtins().get("postprocessor", postprocessor).detail, **options)


def pipeline_of(
    task: str,
    folder: Path,
    tokenizer: Mapping[str, Any] | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    languages: tuple[str | None, str | None] = (None, None),
    **postprocessor: Any,
) -> Pipeline:
    """Build a task's own stages on `folder`, without Hydra: `postprocessor` and the mappings are stage options."""
    found = task_of(task)
    data = {
        "task": {"name": task, "src_lang": languages[0], "tgt_lang": languages[1]},
        "checkpoint": {"path": str(folder), **(checkpoint or {})},
        "tokenizer": {"name": "hf", **(tokenizer or {})},
        "model": {"name": found.model or "hf", **(model or {})},
        "postprocessor": {"name": found.postprocessor, **postprocessor},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, builtins(), []))


def with_files(folder: Path, **files: Mapping[str, Any]) -> Path:
    """Merge keys into JSON files of a checkpoint: ``with_files(folder, config={...})``."""
    for name, keys in files.items():
        path = folder / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**found, **keys}), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def cli(*words: object, stdin: str | bytes = "") -> Done:
    """Run ``pipeline-kit WORDS`` in this process, as a new one would: the same code, stdout and stderr."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        sys.stdin = before
    return Done(code, out.getvalue(), err.getvalue())
