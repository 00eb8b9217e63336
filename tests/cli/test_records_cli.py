"""``run --input`` with packed files, patterns, Parquet and saved datasets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipeline_kit.cli.app import main
from pipeline_kit.testing.checkpoints import tiny_checkpoint

TEXTS = ["good film", "bad film", "good good"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"checkpoint.path={tiny_checkpoint(tmp_path_factory.mktemp('checkpoint'))}"


def run(checkpoint: str, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str], str]:
    code = main(["run", checkpoint, "--format", "jsonl", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def inputs(*names: object) -> list[object]:
    return [word for name in names for word in ("--input", name)]


@pytest.fixture
def expected(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    return run(checkpoint, capsys, *[word for text in TEXTS for word in ("--text", text)])[1]


def test_packed_files_and_patterns(
    checkpoint: str, capsys: pytest.CaptureFixture[str], expected: list[str], tmp_path: Path
) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode() + b"\n"))
    code, out, err = run(checkpoint, capsys, *inputs(tmp_path / "*.jsonl.gz"))
    assert (code, out) == (0, expected)
    assert "3 rows" in err
    code, out, err = run(checkpoint, capsys, *inputs(tmp_path / "*.csv"))
    assert (code, out) == (2, [])
    assert "no file matches this pattern" in err


def test_parquet_and_a_saved_dataset(
    checkpoint: str, capsys: pytest.CaptureFixture[str], expected: list[str], tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"body": TEXTS, "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    folder = tmp_path / "saved"
    folder.mkdir()
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    code, out, _ = run(checkpoint, capsys, *inputs(tmp_path / "a.parquet", folder), "--fields", "text=body")
    assert (code, out) == (0, expected + expected)
    code, out, err = run(checkpoint, capsys, *inputs(tmp_path / "a.parquet"))
    assert (code, out) == (2, [])
    assert "'text' is missing; there are: body, n" in err
    assert "Traceback" not in err


def test_a_file_cut_off_ends_the_run(checkpoint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"good\n" * 50)[:-4])
    code, _, err = run(checkpoint, capsys, *inputs(tmp_path / "a.txt.gz"))
    assert code == 2
    assert "a.txt.gz: ends in the middle of its gzip stream: it was cut off; the last whole row is in line 50" in err
    assert "Traceback" not in err


def test_packed_stdin(
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in").write_bytes(gzip.compress("".join(f"{text}\n" for text in TEXTS).encode()))
    for args in ([], ["-m", "padding=longest,none"]):
        with open(tmp_path / "in", "rb") as binary:
            monkeypatch.setattr("sys.stdin", type("In", (), {"buffer": binary, "isatty": lambda self: False})())
            code, out, _ = run(checkpoint, capsys, *inputs("-"), *args)
        assert code == 0
        assert [line for line in out if "label" in line][:3] == expected
