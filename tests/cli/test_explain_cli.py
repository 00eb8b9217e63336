"""``pipeline-kit explain``: flags, formats, files, comparison, exit codes; a few of them as a process."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline_kit
from pipeline_kit.cli.app import main
from pipeline_kit.testing.checkpoints import tiny_checkpoint

TEXT = "I hate this so much!"

SILENT = """
from dataclasses import dataclass

from pipeline_kit import Encoding, Tokenizer


@dataclass
class Config:
    pass


class Ids(Tokenizer):
    pad_token_id, padding_side, max_length = 0, "right", None

    def __init__(self, config, context):
        pass

    def encode(self, examples):
        if any("poison" in example for example in examples):
            raise ValueError("poisoned")
        return [Encoding([2, *(ord(c) % 50 + 5 for c in text), 3], example=i) for i, text in enumerate(examples)]

    def decode(self, ids):
        return "".join(chr(97 + id % 26) for id in ids)


def register(registry):
    registry.tokenizer("ids", __name__ + ":Ids", Config)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"checkpoint.path={tiny_checkpoint(tmp_path_factory.mktemp('checkpoint'))}"


def process(*argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline_kit", "explain", *argv]
    return subprocess.run(command, capture_output=True, text=True, input=stdin)


def test_piped_it_is_plain_and_80_wide() -> None:
    done = process("--text", TEXT, "--text", "\x1b[31mred\x1b[0m <b> ‮x")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "‮" not in done.stdout
    assert max(len(line) for line in done.stdout.split("\n")) <= 80
    assert json.dumps(pipeline_kit.load()(TEXT)) in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="terminals as POSIX has them")
def test_on_a_terminal_it_has_colour(checkpoint: str) -> None:
    primary, secondary = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "pipeline_kit", "explain", "--text", "Good.", checkpoint]
    running = subprocess.Popen(command, stdout=secondary, stderr=subprocess.DEVNULL, env=env)
    os.close(secondary)
    shown = b""
    try:
        while block := os.read(primary, 65536):
            shown += block
    except OSError:  # how a terminal ends
        pass
    os.close(primary)
    assert running.wait() == 0
    assert b"\x1b[" in shown


def test_json_is_one_object(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", '{"text": "Good."}', "--format", "json", checkpoint]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["example"] == {"text": "Good."}
    assert found["stages"][0]["options"]["overflow"] is None
    assert found["batches"][0]["layers"]


def test_two_sides_as_text_and_json(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["explain", "--text", "Good.", checkpoint, "--vs", "tokenizer=tokenizers_json padding=max_length"]
    assert main(sides) == 0
    shown = capsys.readouterr().out
    assert "B: tokenizer=tokenizers_json padding=max_length" in shown
    assert [line for line in shown.split("\n") if "≠" in line and "batch" in line]
    assert main([*sides, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[side]["stages"][0]["name"] for side in ("first", "other")] == ["hf", "tokenizers_json"]


def test_attentions_and_full(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--text", "good " * 50, checkpoint, "--attentions", "--no-times"]) == 0
    short = capsys.readouterr().out
    assert "attention comes from a second run" in " ".join(short.split())
    assert "more tokens" in short
    assert " ms" not in short
    assert main(["explain", "--text", "good " * 50, checkpoint, "--full"]) == 0
    assert "more tokens" not in capsys.readouterr().out


def test_a_page_is_written_whole_or_not_at_all(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pipeline_kit.explain.html")
    page = tmp_path / "page.html"
    assert main(["explain", "--text", "<i>Good</i>", checkpoint, "--html", str(page)]) == 0
    assert capsys.readouterr().out == ""
    assert "<i>Good" not in page.read_text(encoding="utf-8")
    assert main(["explain", "--text", "Good", checkpoint, "--html", str(tmp_path / "none" / "page.html")]) == 1
    assert "is there a folder" in capsys.readouterr().err
    before = page.read_bytes()
    assert main(["explain", "--text", "Good", "checkpoint.path=/nowhere", "--html", str(page)]) == 2
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_plugin_that_tells_nothing_and_a_row_that_fails(tmp_path: Path, checkpoint: str) -> None:
    plugin = tmp_path / "ids.py"
    plugin.write_text(SILENT)
    done = process("--plugin", str(plugin), "tokenizer=ids", checkpoint, "--text", "abc", "--text", "poison")
    assert done.returncode == 1, done.stderr
    assert "row 1 failed in the stage tokenizer: ValueError: poisoned" in done.stdout
    assert "does not tell where its tokens stand" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_file_and_rows_that_cannot_be_read(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Good."}\n{broken\n')
    assert main(["explain", "--input", str(rows), checkpoint]) == 1
    captured = capsys.readouterr()
    assert "row 1 could not be read" in captured.err
    assert "result" in captured.out
    rows.write_text("Good.\n" * 70)
    assert main(["explain", "--input", str(rows), "--input-format", "text", checkpoint]) == 0
    assert "the first 64 rows" in capsys.readouterr().err
    rows.write_text("{broken\n")
    assert main(["explain", "--input", str(rows), checkpoint]) == 2
    assert "no row to explain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--text", "x", "--format", "jsno"], "Did you mean 'json'?"),
        (["--text", "x", "--vs", "padding"], "write overrides (key=value)"),
        (["--text", "x", "--vs", "'padding=none"], "No closing quotation"),
        (["--text", "x", "--vs", "task=question-answering"], "both have to take the same texts"),
        (["--text", "x", "--vs", "padding=longst"], "longest"),
        (["--text", "x", "-m", "padding=longest,none"], "--vs OVERRIDES"),
        (["--text", "x", "--htm", "f"], "Did you mean '--html'?"),
    ],
)
def test_a_users_mistake_is_a_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_it_prints_its_config_and_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--cfg", "job", "--package", "padding"]) == 0
    assert "longest" in capsys.readouterr().out
    assert main(["__complete", "pipeline-kit explain --at"]) == 0
    assert capsys.readouterr().out.split() == ["--attentions", "--attribute"]
    assert main(["__complete", "pipeline-kit explain padding=lon"]) == 0
    assert "padding=longest" in capsys.readouterr().out
