"""``run`` without a folder: ids, carried columns and the choice of rows, in every format and on stdout."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_plugins import POISON
from harness import checkpoint, cli

Run = Callable[..., tuple[int, str, str]]

ROWS: list[dict[str, Any]] = [
    {"key": "r0", "text": "good", "stars": 5, "note": "=1+1"},
    {"key": "r1", "text": "poison", "stars": 1, "note": "a"},
    {"key": "r2", "text": None, "stars": 2, "note": "b"},
    {"key": "r0", "text": "again", "stars": 3, "note": "c"},
    {"key": 7, "text": "日本", "stars": 4, "note": None},
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "poison.py").write_text(
        POISON.replace('"poison" in examples', 'any("poison" in str(e) for e in examples)')
    )

    def call(*words: str, stdin: str = "") -> tuple[int, str, str]:
        flags = ["--plugin", str(tmp_path / "poison.py"), "postprocessor=poison", "--quiet"]
        done = cli("run", f"checkpoint.path={checkpoint()}", *flags, *words, stdin=stdin)
        assert "Traceback" not in done.err
        return done.code, done.out, done.err

    return call


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_row_has_its_id_and_what_it_carries(run: Run, reviews: str, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    code, _, err = run("--input", reviews, "--output", str(out), "input.id=key", "input.carry=[stars,note]")
    assert code == 1
    rows = read(out)
    assert list(rows[0])[:3] == ["id", "stars", "note"]
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "in.jsonl:4", "7"]
    number = str if ending == "csv" else int
    assert [row["stars"] for row in rows] == [number(row["stars"]) for row in ROWS]
    empty = "" if ending == "csv" else None
    assert [row["note"] for row in rows] == ["'=1+1" if ending == "csv" else "=1+1", "a", "b", "c", empty]
    assert [bool(row.get("error")) for row in rows] == [False, True, True, True, False]
    assert "row 3 failed: input: InputError: in.jsonl, line 4: the id 'r0' was there before" in err


def test_each_of_the_two_alone(run: Run, reviews: str, tmp_path: Path) -> None:
    plain, named, carried = (tmp_path / f"{name}.jsonl" for name in ("plain", "named", "carried"))
    run("--input", reviews, "--output", str(plain))
    run("--input", reviews, "--output", str(named), "input.id=key")
    run("--input", reviews, "--output", str(carried), "input.carry=[note]")
    assert [sorted(row) for row in read(plain)][:3] == [["score", "text"], ["error"], ["error"]]
    assert [sorted(row) for row in read(named)][:3] == [["id", "score", "text"], ["error", "id"], ["error", "id"]]
    assert [sorted(row) for row in read(carried)][:2] == [["note", "score", "text"], ["error", "note"]]
    for row, same in zip(read(carried), read(plain), strict=True):
        row.pop("note")
        assert row == same


def plain(*words: str) -> tuple[int, str]:
    done = cli("run", f"checkpoint.path={checkpoint()}", "--quiet", *words)
    return done.code, done.err


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_star_carries_every_column_that_fits(reviews: str, tmp_path: Path, ending: str) -> None:
    out, table = tmp_path / f"out.{ending}", tmp_path / "in.csv"
    table.write_text("text,id,label\na,7,x\n")
    for words, expected in (
        (["--input", reviews, "input.carry=[*]"], ["key", "text", "stars", "note", "label"]),
        (["--input", reviews, "input.carry=['*']", "input.id=key"], ["id", "text", "stars", "note", "label"]),
        (["--input", reviews, "--input", str(table), "input.carry=[*]"], ["text", "label", "score"]),
        (["--input", str(table), "input.carry=[*]"], ["text", "id", "label", "score"]),
    ):
        assert plain(*words, "--output", str(out), "input.limit=1") == (0, "")
        assert list(read(out)[0])[: len(expected)] == expected
    assert (read(out)[0]["id"], read(out)[0]["label"] == "x") == ("7", False)
    code, err = plain("--input", reviews, "input.carry=[*,stars]")
    assert (code, "carry=[*] means all columns" in err) == (2, True)


def test_a_job_keeps_the_names_that_a_star_stood_for(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,id,other\na,7,x\nb,8,y\n")
    words = ["--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out")]
    assert plain(*words, "input.carry=[*]") == (0, "")
    row, _ = read(tmp_path / "out" / "part-00000.jsonl")
    assert list(row)[:3] == ["id", "text", "other"]
    assert (row["id"], row["other"]) == ("in.csv:2", "x")
    assert plain(*words, "input.carry=[*]") == (0, "")
    code, err = plain(*words)
    assert (code, "input.carry: ['text', 'other'] before, [] now" in err) == (2, True)


def test_on_stdout_too(run: Run, reviews: str) -> None:
    _, out, _ = run("--input", reviews, "input.id=key", "input.limit=1")
    assert list(json.loads(out)) == ["id", "text", "score"]
    _, out, _ = run("--input", reviews, "input.id=key", "--format", "table")
    assert "in.jsonl:4" in out


def test_rows_are_chosen(run: Run, tmp_path: Path) -> None:
    texts = tmp_path / "in.txt"
    texts.write_text("".join(f"t{i}\n" for i in range(10)))

    def found(*options: str, ending: str = "jsonl") -> list[str]:
        out = tmp_path / f"out.{ending}"
        assert run("--input", str(texts), "--output", str(out), *options)[0] == 0
        return [row["text"] for row in read(out)]

    assert found("input.skip=7") == ["t7", "t8", "t9"]
    assert found("input.skip=2", "input.limit=3") == ["t2", "t3", "t4"]
    assert found("input.limit=0") == []
    parts = [found(f"input.shard={i}/3", ending=ending) for i, ending in enumerate(["jsonl", "csv", "parquet"])]
    assert parts == [[f"t{n}" for n in range(10) if n % 3 == i] for i in range(3)]


def test_a_failed_row_is_told_by_its_number_in_the_whole_input(run: Run, reviews: str) -> None:
    code, out, err = run("--input", reviews, "input.skip=1", "input.limit=1")
    assert code == 1
    assert err.startswith("row 1 failed: postprocessor: ValueError: cannot swallow this")
    assert json.loads(out)["error"]["stage"] == "postprocessor"


def test_options_and_flags_go_together(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_text("body,n\nfirst,1\nsecond,2\n")
    _, out, _ = run("--input", str(tmp_path / "in.dat"), "input.format=csv", "input.fields.text=body", "input.skip=1")
    assert "second" in json.loads(out)["text"]["text"]
    _, out, _ = run("--input", str(tmp_path / "in.dat"), "--input-format", "csv", "--fields", "text=n", "input.id=body")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["first", "second"]
    _, out, _ = run("--text", "a", "--json", '{"text": "b", "k": 1}', "input.skip=1", "input.carry=[k]")
    assert json.loads(out) == {"k": 1, "text": {"text": "b"}, "score": 0.5}


def test_a_sweep_reads_stdin_once_for_all(run: Run) -> None:
    _, out, _ = run("-m", "input.limit=1,2", stdin="a\nb\nc\n")
    first, second = [["overrides"], ["text", "score"]], [["overrides"], ["text", "score"], ["text", "score"]]
    assert [list(json.loads(line)) for line in out.splitlines()] == [*first, *second]
    code, out, err = run("-m", "input.format=text,jsonl", stdin="a\n")
    assert (code, out) == (2, "")
    assert "it can be read once; put it into a file" in err


def test_what_cannot_work_is_told_before_any_model_loads(
    run: Run, reviews: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_kit.compose.build.build", lambda config: pytest.fail("a model was loaded"))
    code, _, err = run("--input", reviews, "input.id=kye")
    assert (code, "'kye' of input.id is missing" in err, "Did you mean 'key'?" in err) == (2, True, True)
    for option in ("input.carry=[error]", "input.carry=[id]"):
        code, _, err = run("--input", reviews, option, "input.id=key")
        assert code == 2
    code, _, err = run("--input", reviews, "input.fields.txet=a")
    assert (code, "Did you mean 'text'?" in err) == (2, True)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_result_with_the_name_of_a_carried_column_fails_its_row(run: Run, reviews: str, tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "a", "score": 1}\n')
    code, out, err = run("--input", str(tmp_path / "odd.jsonl"), "input.carry=[score]")
    assert code == 1
    assert json.loads(out)["score"] == 1
    assert "the result's key 'score' is a column of the input too" in err
