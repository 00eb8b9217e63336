"""R3: a disk that fails at any call ends a job with one clear error, leaves no torn file, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import warm
from echo_job import content_of, job_config, lines_of, run_echo, write_rows
from harness import checkpoint, cli

from pipeline_kit.errors import OutputError

STEPS = ("open", "write", "fsync", "replace")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = ["a", "b", "c~p", "d", "e~t"]
    return write_rows(tmp_path / "in.jsonl", [{"text": text} for text in texts])


class PowerCut(Exception):
    """Ends a run between two steps of a write."""


class FailingDisk:
    """Stands in front of one call of `os`; its n-th call on a file of a job fails."""

    def __init__(self, step: str, at: int | None = None, error: Exception | None = None) -> None:
        self.real, self.step, self.at, self.error, self.calls = getattr(os, step), step, at, error, 0

    def __call__(self, *args: Any, **more: Any) -> Any:
        mine = self.step != "open" or ".tmp" in str(args[0])
        self.calls += mine
        if mine and self.calls == self.at and self.error is not None:
            raise self.error
        return self.real(*args, **more)


@pytest.mark.parametrize("step", STEPS)
def test_every_call_may_fail(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    config = job_config("job.max_failed_rows=null", "output.rows_per_shard=2")
    counted = FailingDisk(step)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, counted)
        run_echo(config, [rows], tmp_path / "whole")
    expected = content_of(tmp_path / "whole")
    assert counted.calls >= 8
    for at in range(1, counted.calls + 1):
        out = tmp_path / f"out-{at}"
        code = (errno.ENOSPC, errno.EIO, errno.EACCES, 0)[at % 4]
        if step == "fsync" and code == errno.EACCES:  # that a folder may not be synced is no failure
            code = errno.EIO
        error = OSError(code, os.strerror(code)) if code else PowerCut()
        with monkeypatch.context() as patch:
            patch.setattr(os, step, FailingDisk(step, at, error))
            with pytest.raises(OutputError if code else PowerCut) as caught:
                run_echo(config, [rows], out)
        if isinstance(caught.value, OutputError):
            assert str(caught.value).startswith(str(out)), "the path is named"
            assert os.strerror(code) in str(caught.value)
            assert caught.value.exit_code == 1
        assert not list(out.rglob("*.tmp"))
        assert not (out / "_SUCCESS").exists()
        for name, content in content_of(out).items():
            assert content == expected[name], f"{step} {at}: {name} is torn"
        run_echo(config, [rows], out)
        assert content_of(out) == expected, f"{step} {at}"
        assert (out / "_SUCCESS").exists()


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))
runpy.run_module("pipeline_kit", run_name="__main__", alter_sys=True)
"""


def test_a_limit_of_the_system_on_a_files_size(tmp_path: Path) -> None:
    """The command in a process that may write files of 16 KiB at most; then without the limit."""
    texts = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}", "n": "n" * 100} for i in range(300)])
    out = tmp_path / "out"
    argv = ["run", "--input", str(texts), "--output", str(out), "--quiet", f"checkpoint.path={checkpoint()}"]
    argv += ["device=cpu", "model.linear=eager", "output.rows_per_shard=250", "input.carry=[n]"]
    done = warm.run("-c", LIMITED, *argv)
    assert done.returncode == 1
    assert done.err.startswith(f"error: {out / 'part-00000.jsonl'}: cannot be written: File too large")
    assert not list(out.rglob("*.tmp"))
    assert not list(out.glob("part-*"))
    assert cli(*argv).code == 0
    assert [row["id"] for row in lines_of(out)] == [f"in.jsonl:{i + 1}" for i in range(300)]
    assert json.loads((out / "_manifest.json").read_bytes())["done"] is True
