"""``run --output`` in every format, and files that are complete or not there when the disk fails."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_plugins import POISON
from harness import cli, layout_of
from test_atomic import Breaking

from pipeline_kit.cli.outputs import output_path, sweep_names, swept
from pipeline_kit.errors import OutputError, RowFailure, UsageError
from pipeline_kit.files.write import one_file as files
from pipeline_kit.files.write.base import FILE_FORMATS, FileFormat, OutputConfig, UnwritableRowsError
from pipeline_kit.files.write.formats import shard_format, stream_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.files.write.one_file import error_text, rows_file

LAYOUT = layout_of("classification", identified=False, errors=True)
FORMATS: list[FileFormat] = ["csv", "parquet"]


def read(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
        return rows
    if name.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def write(path: Path, rows: Any, format: FileFormat, layout: Layout = LAYOUT, **more: Any) -> None:
    with rows_file(path, stream_format(format, layout), **more) as add:
        for row in rows:
            add(row, 100)


def row(place: int) -> dict[str, Any]:
    return {"label": f"L{place % 3}", "score": place / 7}


def run(*words: object) -> tuple[int, str]:
    done = cli("run", "model.linear=eager", *words)  # auto may differ in the last bits from load to load
    assert "Traceback" not in done.err
    assert done.out == ""
    return done.code, done.err


@pytest.fixture
def poison(tmp_path: Path) -> list[str]:
    (tmp_path / "poison.py").write_text(POISON)
    return ["--plugin", str(tmp_path / "poison.py"), "postprocessor=poison"]


def test_every_format_holds_the_same_results(tmp_path: Path) -> None:
    names = [f"out.{ending}" for ending in ("jsonl", "csv.gz", "parquet")]
    flags = [flag for text in ("I love this.", "I hate it.", "=1+1", "日本") for flag in ("--text", text)]
    for name in names:
        assert run(*flags, "--output", tmp_path / name, "--quiet") == (0, "")
    expected, *others = ([(row["label"], float(row["score"])) for row in read(tmp_path / name)] for name in names)
    assert all(found == expected for found in others)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_nested_results_and_truncation(tmp_path: Path) -> None:
    options = ["postprocessor.top_k=2", "tokenizer.overflow=truncate", "--quiet"]
    flags = ["--text", "word " * 600, "--text", "short", *options]
    for ending in ("jsonl", "csv", "parquet"):
        assert run(*flags, "--output", str(tmp_path / f"out.{ending}"))[0] == 0
    plain, table, typed = (read(tmp_path / f"out.{ending}") for ending in ("jsonl", "csv", "parquet"))
    assert plain[0]["truncated"] > 0
    assert [row["labels"] for row in typed] == [row["labels"] for row in plain]
    assert [json.loads(row["labels"]) for row in table] == [row["labels"] for row in plain]
    assert [row["truncated"] for row in typed] == [plain[0]["truncated"], None]
    assert [row["truncated"] for row in table] == [str(plain[0]["truncated"]), ""]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_that_failed_keep_their_place(poison: list[str], tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    code, err = run(*poison, "--output", str(path), *(f for t in ("a", "poison", "nan", "b") for f in ("--text", t)))
    assert code == 1
    assert "4 rows, 2 failed" in err
    rows = read(path)
    none = None if format == "parquet" else ""
    assert [row["text"] for row in rows] == ["a", none, none, "b"]
    assert [row["error"] for row in rows[::3]] == [none, none]
    assert rows[1]["error"] == "postprocessor: ValueError: cannot swallow this"
    assert rows[2]["error"].startswith("postprocessor: ValueError: the result cannot be written as JSON")


def test_results_that_a_format_cannot_hold_fail_their_row(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        POISON.replace(
            '"score": float("nan") if example == "nan" else 0.5', '**({"more": 1} if example == "odd" else {})'
        )
    )
    options = ["--plugin", str(tmp_path / "odd.py"), "postprocessor=poison", "--output", str(tmp_path / "out.csv")]
    code, err = run(*options, *(f for t in ("a", "\ud800", "b") for f in ("--json", json.dumps(t))))
    assert code == 1
    assert "row 1 failed" in err
    (tmp_path / "lone.py").write_text(POISON.replace("[{", '[{"lone": "\\ud800"[example != "odd" :],'))
    options[1] = str(tmp_path / "lone.py")
    code, err = run(*options, *(f for t in ("a", "odd", "b") for f in ("--text", t)))
    assert code == 1
    assert "row 1 failed: output: UnicodeEncodeError: column 'lone': the text has a lone surrogate" in err
    assert "3 rows, 1 failed" in err
    rows = read(tmp_path / "out.csv")
    assert [row["text"] for row in rows] == ["a", "", "b"]
    assert rows[1]["error"].startswith("output: UnicodeEncodeError: column 'lone'")


def test_no_rows_give_a_file_with_the_columns(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for format in FORMATS:
        path = tmp_path / f"out.{format}"
        assert run("--input", str(tmp_path / "empty.txt"), "--output", str(path), "--quiet")[0] == 0
        assert read(path) == []
    names = ["label", "score", "labels", "truncated", "truncated_chars", "windows", "error"]
    assert (tmp_path / "out.csv").read_text().strip().split(",") == names
    assert pq.read_schema(tmp_path / "out.parquet").names == names


def test_a_sweep_names_its_files_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    code, err = run("-m", "padding=longest,none", "--output", str(path), "--text", "a", "--quiet")
    assert code == 0
    assert "out.padding=none.csv: model.linear=eager padding=none" in err
    assert [len(read(tmp_path / f"out.padding={name}.csv")) for name in ("longest", "none")] == [1, 1]
    assert swept(Path("a/out.jsonl.gz"), "a=1") == Path("a/out.a=1.jsonl.gz")
    assert swept(Path("a/out.jsonl"), "") == Path("a/out.jsonl")


def test_names_of_a_sweep_are_safe_short_and_never_the_same() -> None:
    assert sweep_names([["a=1", "b=2"]]) == [""]
    assert sweep_names([["b=2", "+a=x"], ["b=2", "+a=y"]]) == ["a=x", "a=y"]
    assert sweep_names([["a=1", "b=1"], ["a=2", "b=2"]]) == ["a=1,b=1", "a=2,b=2"]
    texts = ["a=../x", "a=b/c", "a=~/日本", "a='b c'", "a=\0", "a=" + "x" * 300, "a=" + "x" * 301, "a=b%2Fc"]
    names = sweep_names([[text] for text in texts])
    assert names[:2] == ["a=..%2Fx", "a=b%2Fc"]
    assert len(set(names)) == len(texts)
    for name in names:
        assert not set(name) & set("/\\\0 '~*?:<>|")
        assert len(name.encode()) < 200
    secrets = sweep_names([["checkpoint.token=hf_aaaaaaaaaaaaaaaaaaaa"], ["checkpoint.token=hf_bbbbbbbbbbbbbbbbbbbb"]])
    assert len(set(secrets)) == 2
    assert not any("aaaa" in name or "bbbb" in name for name in secrets)


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("x.tsv", None, "no .tsv files are written; name the file .jsonl, .csv, .parquet, .jsonl.gz or .csv.gz"),
        ("x.jsonl.zst", None, "no .zst files are written"),
        ("x.parquet.gz", None, "Parquet is compressed inside; name the file .parquet"),
        ("x.csv", "jsonl", "the ending says csv, the format asked for is jsonl; leave one out"),
        ("x.csv", "table", "--output writes jsonl or csv or parquet"),
        (None, "csv", "--format csv is for files: pass --output FILE.csv"),
        ("x/", "csv", "is a folder"),
    ],
)
def test_names_that_make_no_sense(name: str | None, format: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        output_path(name, format, FILE_FORMATS)


def test_names_that_do() -> None:
    for name, format in (("x", "csv"), ("x.txt", "parquet"), ("x.CSV", "csv"), ("x.jsonl.gz", None), ("x.json", None)):
        assert output_path(name, format, FILE_FORMATS) == Path(name)
    for refused in ("x.csv", "x.tsv", "x.gz", "x.parquet"):  # where only JSON lines are written, as by bench
        with pytest.raises(UsageError, match=r"results are written as JSON lines; name the file \.jsonl"):
            output_path(refused, None)


def test_parquet_without_pyarrow_is_told_before_any_model_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline_kit.files.write.formats.find_spec", lambda name: None)
    monkeypatch.setattr("pipeline_kit.compose.build.build", lambda *_: pytest.fail("was built"))
    code, err = run("--text", "a", "--output", str(tmp_path / "x.parquet"))
    assert code == 2
    assert "pip install 'pipeline-kit[files]'" in err


def test_options_of_the_group_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.table"
    snappy = ("output.format=parquet", "output.compression=snappy")
    assert run("--text", "a", "--output", str(path), "--quiet", *snappy) == (0, "")
    assert pq.read_metadata(path).row_group(0).column(0).compression == "SNAPPY"
    monkeypatch.setattr("pipeline_kit.compose.build.build", lambda *_: pytest.fail("was built"))
    wrong = {
        ("output.format=csv",): "output.format=csv is for files: pass --output FILE.csv",
        ("output.format=csv", "--output", "x.parquet"): "the ending says parquet, the format asked for is csv",
        ("output.vectors=npy", "--output", "x.jsonl"): "output.vectors=npy is for folders of shards",
    }
    for flags, message in wrong.items():
        code, err = run("--text", "a", *flags)
        assert code == 2
        assert message in err


@pytest.mark.parametrize("format", [*FORMATS, "jsonl"])
def test_a_file_in_chunks_is_what_a_shard_would_be(tmp_path: Path, format: FileFormat) -> None:
    rows = [row(place) for place in range(2_500)]
    write(tmp_path / "x", rows, format)
    shards = shard_format(OutputConfig(format=format), LAYOUT)
    assert (tmp_path / "x").read_bytes() == shards.encode(rows, shards.schema(rows))[f".{format}"]
    for name in ("y", "z"):
        write(tmp_path / name, rows, format, gzip=True)
    assert gzip.decompress((tmp_path / "y").read_bytes()) == (tmp_path / "x").read_bytes()
    assert (tmp_path / "y").read_bytes() == (tmp_path / "z").read_bytes()


def test_rows_are_written_as_they_come_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 1_000)
    alive = 0
    most = 0

    class Counted(dict[str, Any]):
        def __init__(self, *args: Any) -> None:
            nonlocal alive, most
            super().__init__(*args)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    for format in FORMATS:
        alive = most = 0
        write(tmp_path / f"x.{format}", (Counted(row(place)) for place in range(500)), format)
        assert most <= 12
        assert len(read(tmp_path / f"x.{format}")) == 500
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 50


def test_refused_rows_keep_their_id_where_they_can(tmp_path: Path) -> None:
    layout = layout_of("classification", carry=["who"], errors=True)
    told: list[RowFailure] = []

    def failed(failure: RowFailure) -> str:
        told.append(failure)
        return error_text(failure)

    rows = [{"id": str(place), "who": "x", "label": "fine"} for place in range(1_200)]
    rows[3]["label"] = rows[1_100]["label"] = rows[1_101]["who"] = "\ud800"
    with rows_file(tmp_path / "x.csv", stream_format("csv", layout), failed, keep=("id", "who")) as add:
        for item in rows:
            add(item)
    found = read(tmp_path / "x.csv")
    assert [failure.index for failure in told] == [3, 1_100, 1_101]
    assert [(found[place]["id"], found[place]["who"]) for place in (3, 1_100, 1_101)] == [
        ("3", "x"),
        ("1100", "x"),
        ("", ""),
    ]
    assert [place for place, item in enumerate(found) if item["error"]] == [3, 1_100, 1_101]
    with pytest.raises(UnwritableRowsError, match="row 3 "):
        write(tmp_path / "y.csv", rows, "csv", layout)
    assert os.listdir(tmp_path) == ["x.csv"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one file takes many writes."""
    monkeypatch.setattr("pipeline_kit.files.atomic.BLOCK", 64)
    monkeypatch.setattr(files, "CHUNK_BYTES", 500)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("format", "gzipped"), [("csv", False), ("parquet", False), ("jsonl", True)])
def test_a_disk_that_fails_at_any_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: FileFormat, gzipped: bool
) -> None:
    rows = [row(place) for place in range(20)]
    with monkeypatch.context() as patch:
        counted = Breaking(patch, "write", 0, errno.EIO)
        write(tmp_path / "x", rows, format, gzip=gzipped)
    (tmp_path / "x").unlink()
    assert counted.calls >= (1 if gzipped else 4)
    for at in range(1, counted.calls + 1):
        with monkeypatch.context() as patch:
            Breaking(patch, "write", at, errno.ENOSPC)
            with pytest.raises(OutputError, match=rf"x: cannot be written: {os.strerror(errno.ENOSPC)}"):
                write(tmp_path / "x", rows, format, gzip=gzipped)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", [*FORMATS, "jsonl"])
def test_an_interrupted_file_leaves_what_was_there(tmp_path: Path, format: FileFormat) -> None:
    (tmp_path / "x").write_text("before")

    def rows() -> Iterator[dict[str, Any]]:
        yield from (row(place) for place in range(12_000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", rows(), format)
    assert (tmp_path / "x").read_text() == "before"
    assert os.listdir(tmp_path) == ["x"]


FULL = """
import itertools, resource, secrets, signal
from pathlib import Path
from pipeline_kit.errors import OutputError
from pipeline_kit.files.write.formats import stream_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.files.write.one_file import rows_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, 1 << 21))
for name in ("jsonl", "parquet"):
    try:
        with rows_file(Path("x"), stream_format(name, Layout.of({"text": "string"}, identified=False))) as add:
            for _ in itertools.count():
                add({"text": secrets.token_hex(500)}, 1000)
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_FSIZE")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", FULL]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"x: cannot be written: {os.strerror(errno.EFBIG)}\n" * 2
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_ends_a_run_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        code, err = run("--text", "a", "--output", str(tmp_path / "x.parquet"))
    assert code == 1
    assert err.splitlines()[-1].endswith(f"x.parquet: cannot be written: {os.strerror(errno.ENOSPC)}")
    assert os.listdir(tmp_path) == []
