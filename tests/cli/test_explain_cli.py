"""``pipeline-kit explain``: flags, formats, files, comparison, exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from harness import checkpoint, cli

import pipeline_kit

TINY = f"checkpoint.path={checkpoint()}"
TEXT = "I hate this so much!"


def test_piped_it_is_plain_and_80_wide() -> None:
    done = cli("explain", "--text", TEXT, "--text", "\x1b[31mred\x1b[0m <b> ‮x")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert "‮" not in done.out
    assert max(len(line) for line in done.out.split("\n")) <= 80
    assert json.dumps(pipeline_kit.load()(TEXT)) in done.out


@pytest.mark.skipif(os.name != "posix", reason="terminals as POSIX has them")
def test_on_a_terminal_it_has_colour() -> None:
    primary, secondary = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "pipeline_kit", "explain", "--text", "Good.", TINY]
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


def test_json_is_one_object() -> None:
    found = json.loads(cli("explain", "--json", '{"text": "Good."}', "--format", "json", TINY).out)
    assert found["rows"][0]["example"] == {"text": "Good."}
    assert found["stages"][0]["options"]["overflow"] is None
    assert found["batches"][0]["layers"]


def test_two_sides_as_text_and_json() -> None:
    sides = ["explain", "--text", "Good.", TINY, "--vs", "tokenizer=tokenizers_json padding=max_length"]
    shown = cli(*sides).out
    assert "B: tokenizer=tokenizers_json padding=max_length" in shown
    assert [line for line in shown.split("\n") if "≠" in line and "batch" in line]
    found = json.loads(cli(*sides, "--format", "json").out)
    assert [found[side]["stages"][0]["name"] for side in ("first", "other")] == ["hf", "tokenizers_json"]


def test_attentions_and_full() -> None:
    words = ["explain", "--text", "good " * 50, TINY]
    short, full = cli(*words, "--attentions", "--no-times").out, cli(*words, "--full").out
    assert "attention comes from a second run" in " ".join(short.split())
    assert ("more tokens" in short, "more tokens" in full) == (True, False)
    assert (" ms" in short, " ms" in full) == (False, True)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    pytest.importorskip("pipeline_kit.explain.html")
    page = tmp_path / "page.html"
    done = cli("explain", "--text", "<i>Good</i>", TINY, "--html", page)
    assert (done.code, done.out) == (0, "")
    assert "<i>Good" not in page.read_text(encoding="utf-8")
    before = page.read_bytes()
    assert cli("explain", "--text", "Good", "checkpoint.path=/nowhere", "--html", page).code == 2
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_file_and_rows_that_cannot_be_read(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Good."}\n{broken\n')
    done = cli("explain", "--input", rows, TINY)
    assert (done.code, "row 1 could not be read" in done.err, "result" in done.out) == (1, True, True)
    rows.write_text("Good.\n" * 70)
    done = cli("explain", "--input", rows, "--input-format", "text", TINY)
    assert (done.code, "the first 64 rows" in done.err) == (0, True)
    rows.write_text("{broken\n")
    done = cli("explain", "--input", rows, TINY)
    assert (done.code, "no row to explain" in done.err) == (2, True)
