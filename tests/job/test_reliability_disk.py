"""R3: a disk that fails at any call ends a job with one clear error, leaves no torn file, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from echo_job import content_of, echo_config, lines_of, run_echo, write_rows

from pipeline_kit.errors import OutputError
from pipeline_kit.testing import tiny_checkpoint

STEPS = ("open", "write", "fsync", "replace")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("disk") / "bert")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = ["a", "b", "c~p", "d", "e~t"]
    return write_rows(tmp_path / "in.jsonl", [{"text": text} for text in texts])


class FailingDisk:
    """Stands in front of one call of `os`; its n-th call on a file of a job fails."""

    def __init__(self, step: str, at: int | None, code: int) -> None:
        self.real, self.step, self.at, self.code, self.calls = getattr(os, step), step, at, code, 0

    def __call__(self, *args: Any, **more: Any) -> Any:
        mine = self.step != "open" or ".tmp" in str(args[0])
        self.calls += mine
        if mine and self.calls == self.at:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **more)


@pytest.mark.parametrize("step", STEPS)
def test_every_call_may_fail(
    checkpoint: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    config = echo_config(checkpoint, "job.max_failed_rows=null", "output.rows_per_shard=2")
    counted = FailingDisk(step, None, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, counted)
        run_echo(config, [rows], tmp_path / "whole")
    expected = content_of(tmp_path / "whole")
    assert counted.calls >= 8
    for at in range(1, counted.calls + 1):
        out = tmp_path / f"out-{at}"
        code = (errno.ENOSPC, errno.EIO, errno.EACCES)[at % 3]
        disk = FailingDisk(step, at, code)
        with monkeypatch.context() as patch:
            patch.setattr(os, step, disk)
            if step == "fsync" and code == errno.EACCES:  # that a folder may not be synced is no failure
                code, disk.code = errno.EIO, errno.EIO
            with pytest.raises(OutputError) as caught:
                run_echo(config, [rows], out)
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


def test_a_limit_of_the_system_on_a_files_size(tmp_path: Path) -> None:
    """The real command in a process that may write files of 16 KiB at most; then without the limit."""
    texts = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}", "n": "n" * 100} for i in range(300)])
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "pipeline_kit", "run", "--input", str(texts), "--output", str(out), "--quiet"]
    argv += ["device=cpu", "model.linear=eager", "output.rows_per_shard=250", "input.carry=[n]"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))

    done = subprocess.run(argv, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {out / 'part-00000.jsonl'}: cannot be written: File too large")
    assert not list(out.rglob("*.tmp"))
    assert not list(out.glob("part-*"))
    assert subprocess.run(argv, capture_output=True).returncode == 0
    assert [row["id"] for row in lines_of(out)] == [f"in.jsonl:{i + 1}" for i in range(300)]
    assert json.loads((out / "_manifest.json").read_bytes())["done"] is True
