"""``run --input`` with packed files, patterns, Parquet and saved datasets."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from harness import checkpoint, cli

from pipeline_kit.cli.app import main

TEXTS = ["good film", "bad film", "good good"]


def run(*words: object) -> tuple[int, list[str], str]:
    done = cli("run", f"checkpoint.path={checkpoint()}", "--format", "jsonl", *words)
    assert "Traceback" not in done.err
    return done.code, done.out.splitlines(), done.err


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return run(*[word for text in TEXTS for word in ("--text", text)])[1]


def test_packed_files_and_patterns(expected: list[str], tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode() + b"\n"))
    code, out, err = run("--input", tmp_path / "*.jsonl.gz")
    assert (code, out) == (0, expected)
    assert "3 rows" in err
    code, out, err = run("--input", tmp_path / "*.csv")
    assert (code, out) == (2, [])
    assert "no file matches this pattern" in err


def test_parquet_and_a_saved_dataset(expected: list[str], tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"body": TEXTS, "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    folder = tmp_path / "saved"
    folder.mkdir()
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    code, out, _ = run("--input", tmp_path / "a.parquet", "--input", folder, "--fields", "text=body")
    assert (code, out) == (0, expected + expected)
    code, out, err = run("--input", tmp_path / "a.parquet")
    assert (code, out) == (2, [])
    assert "'text' is missing; there are: body, n" in err


def test_a_file_cut_off_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"good\n" * 50)[:-4])
    code, _, err = run("--input", tmp_path / "a.txt.gz")
    assert code == 2
    assert "a.txt.gz: ends in the middle of its gzip stream: it was cut off; the last whole row is in line 50" in err


@pytest.mark.parametrize("more", [[], ["-m", "padding=longest,none"]])
def test_packed_stdin(
    expected: list[str], more: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress("".join(f"{text}\n" for text in TEXTS).encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(packed)))
    assert main(["run", f"checkpoint.path={checkpoint()}", "--format", "jsonl", "--input", "-", *more]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "label" in line][:3] == expected
