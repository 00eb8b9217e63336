"""``pipeline-kit run`` as a process: signals, closed pipes, full disks, terminals, what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import checkpoint

TINY = f"checkpoint.path={checkpoint()}"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")

# It says on stderr when the model runs, then stays in it until a signal comes.
STUCK = """
import signal, sys
from dataclasses import dataclass

from pipeline_kit import Postprocessor


@dataclass
class Config:
    pass


class Stuck(Postprocessor):
    def __init__(self, config, context):
        pass

    def __call__(self, examples, encodings, outputs):
        print("here", file=sys.stderr, flush=True)
        signal.pause()


def register(registry):
    registry.postprocessor("stuck", __name__ + ":Stuck", Config)
"""


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "pipeline_kit", "run", *argv]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_run_and_leaves_no_file(number: signal.Signals, code: int, word: str, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    folder = tmp_path / "out"
    folder.mkdir()
    plugin = ["--plugin", str(tmp_path / "stuck.py"), "postprocessor=stuck"]
    argv = command(TINY, *plugin, "--text", "a", "--output", str(folder / "rows.jsonl"))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "here\n"
        assert len(os.listdir(folder)) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", f"{word}\n")
    assert os.listdir(folder) == []


def test_a_reader_that_leaves_ends_the_run_quietly(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("a line\n" * 3000)
    argv = command(TINY, "--input", str(tmp_path / "many.txt"))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline()).keys() == {"label", "score"}
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(TINY, "--text", "a"), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: stdout: cannot be written: No space left on device\n"


def test_a_run_leaves_no_files_and_writes_utf8_in_any_locale(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = command(TINY, "task=feature-extraction", "-m", "padding=longest", "--text", "日本 I love this.")
    done = subprocess.run(argv, capture_output=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert [sorted(row) for row in rows] == [["overrides"], ["tokens", "vectors"]]
    assert os.listdir(folder) == []


def test_a_terminal_gets_a_table() -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            command(TINY, "--text", "I love this.", "--text", "x"),
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "100", "TERM": "dumb"},
        )
        os.close(slave)
        shown = b""
        while True:
            try:
                block = os.read(master, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not block:
                break
            shown += block
        _, err = process.communicate()
    finally:
        os.close(master)
    assert process.returncode == 0
    text = shown.decode()
    assert "input" in text
    assert "I love this." in text
    assert "{" not in text
    assert err.decode().startswith("2 rows in ")
