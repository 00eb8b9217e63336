"""``pipeline-kit run`` from texts and files to results, with a tiny checkpoint."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import POISON
from harness import Done, checkpoint, cli

from pipeline_kit import load
from pipeline_kit.runtime.pipeline import Pipeline

TINY = f"checkpoint.path={checkpoint()}"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load(TINY)


@pytest.fixture
def poison(tmp_path: Path) -> list[str]:
    (tmp_path / "poison.py").write_text(POISON)
    return ["--plugin", str(tmp_path / "poison.py"), "postprocessor=poison"]


class Ran(Done):
    """What one run printed."""

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(*argv: str, stdin: bytes = b"") -> Ran:
    done = cli("run", TINY, *argv, stdin=stdin)
    assert "Traceback" not in done.err
    return Ran(done.code, done.out, done.err)


def close(found: list[Any], expected: list[Any]) -> bool:
    """Compare results as the pipeline promises them: scores to 1e-5."""
    return len(found) == len(expected) and all(
        one.keys() == other.keys()
        and one["label"] == other["label"]
        and one["score"] == pytest.approx(other["score"], abs=1e-5)
        for one, other in zip(found, expected, strict=True)
    )


def test_texts_objects_and_files_in_their_order(pipe: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file\nand more\n")
    pair = {"text": "a pair", "text_pair": "of texts"}
    done = run("--input", str(tmp_path / "a.txt"), "--json", json.dumps(pair), "--text", "-m", "--text", "{b: c}, 日本")
    assert done.code == 0
    assert close(done.rows, pipe(["-m", "{b: c}, 日本", pair, "from a file", "and more"]))
    assert done.err.startswith("5 rows in ")
    assert "padding" in done.err
    assert "cpu float32" in done.err


def test_one_text_gives_one_line_and_nothing_else(pipe: Pipeline) -> None:
    done = run("--text", "I love this.")
    assert close(done.rows, [pipe("I love this.")])
    assert done.err == ""


@pytest.mark.parametrize("flags", [[], ["--input", "-"]])
def test_stdin(pipe: Pipeline, flags: list[str]) -> None:
    done = run(*flags, "--quiet", stdin=b"one\r\ntwo\n")
    assert close(done.rows, pipe(["one", "two"]))
    assert done.err == ""


def test_stdin_as_jsonl(pipe: Pipeline) -> None:
    done = run("--input-format", "jsonl", "--fields", "text=body", stdin=b'{"body": "one", "id": 3}\n"two"\n')
    assert close(done.rows, pipe(["one", "two"]))


def test_empty_input_is_no_error() -> None:
    done = run(stdin=b"")
    assert (done.code, done.out) == (0, "")
    assert "0 rows" in done.err


def test_failed_rows_keep_their_place_and_harm_no_other(poison: list[str]) -> None:
    done = run(*poison, stdin=b"a\npoison\nb\n\xff\nnan\nc\n")
    assert done.code == 1
    good = [row.get("text") for row in done.rows]
    assert good == ["a", None, "b", None, None, "c"]
    errors = [row["error"] for row in done.rows if "error" in row]
    assert [(error["stage"], error["type"]) for error in errors] == [
        ("postprocessor", "ValueError"),
        ("input", "InputError"),
        ("postprocessor", "ValueError"),
    ]
    assert errors[0]["message"] == "cannot swallow this"
    assert "line 4: not UTF-8" in errors[1]["message"]
    assert "row 1 failed: postprocessor: ValueError: cannot swallow this" in done.err
    assert "row 3 failed: input" in done.err
    assert "6 rows, 3 failed" in done.err


def test_output_is_a_complete_file_with_a_row_for_each_input(poison: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out" / "rows.jsonl"
    path.parent.mkdir()
    done = run(*poison, "--output", str(path), "--text", "a", "--text", "poison", "--text", "b\u2028")
    assert (done.code, done.out) == (1, "")
    assert os.listdir(path.parent) == ["rows.jsonl"]
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line).get("text") for line in lines[:-1]] == ["a", None, "b\u2028"]
    assert lines[-1] == ""


def test_a_run_that_fails_leaves_no_output(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("before")
    done = run("--output", str(folder / "rows.jsonl"), "--text", "a", "checkpoint.path=/no/such/folder")
    assert done.code == 2
    assert os.listdir(folder) == ["rows.jsonl"]
    assert (folder / "rows.jsonl").read_text() == "before"


def test_a_sweep_says_what_made_each_block(pipe: Pipeline) -> None:
    done = run("-m", "padding=longest,none", "postprocessor.top_k=1,2", "--text", "a", stdin=b"")
    assert done.code == 0
    heads, results = done.rows[::2], done.rows[1::2]
    combined = [(pad, top) for pad in ("longest", "none") for top in (1, 2)]
    for head, result, (pad, top) in zip(heads, results, combined, strict=True):
        assert head.keys() == {"overrides"}
        assert head["overrides"][-2:] == [f"padding={pad}", f"postprocessor.top_k={top}"]
        assert ("labels" in result) == (top == 2)
        assert result["score"] == pytest.approx(pipe("a")["score"], abs=1e-5)


def test_a_sweep_reads_stdin_for_each_run_and_writes_a_file_for_each(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    done = run("-m", "padding=longest,none", "--output", str(path), stdin=b"one\ntwo three\n")
    assert (done.code, done.out) == (0, "")
    for padding in ("longest", "none"):
        rows = [json.loads(line) for line in (tmp_path / f"out.padding={padding}.jsonl").read_text().splitlines()]
        assert close(rows, pipe(["one", "two three"]))
        assert f"out.padding={padding}.jsonl: checkpoint.path=" in done.err
        assert f"padding={padding}: 2 rows in" in done.err
    assert not path.exists()


def test_a_sweep_of_jobs_has_a_folder_for_each_and_resumes(tmp_path: Path) -> None:
    flags = ["-m", "padding=longest,none", "--output", str(tmp_path / "out"), "--text", "a"]
    assert run(*flags).code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["padding=longest", "padding=none"]
    again = run(*flags)
    assert again.err.count("nothing was left to do") == 2
    assert "there is no folder" in run(*flags[:3], str(tmp_path / "not" / "there"), *flags[4:]).err


def test_a_table(poison: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    done = run(*poison, "--format", "table", "--text", "fine", "--text", "poison", "-m")
    assert done.code == 1
    for part in ("fine", "0.5", "cannot swallow this", "postprocessor=poison"):
        assert part in done.out


def test_nothing_to_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_kit.cli.inputs.is_terminal", lambda stream: True)
    done = run()
    assert done.code == 2
    assert 'Try: pipeline-kit run --text "I love this."' in done.err


def test_resolve_says_what_auto_became() -> None:
    import yaml

    done = run("--cfg", "job", "--resolve", "device=auto")
    found = yaml.safe_load(done.out)
    assert found["device"]["name"] == "auto"
    assert found["resolved"]["device"]["name"] in ("cpu", "cuda:0", "mps")
    assert found["resolved"]["batching"]["max_tokens"] > 0


def test_validate_builds_on_request(tmp_path: Path) -> None:
    assert cli("validate", "--build", TINY).out == "ok\n"
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    assert cli("validate", f"checkpoint.path={folder}").code == 0
    assert cli("validate", "--build", f"checkpoint.path={folder}").code == 2
    assert "no config.json" in cli("validate", f"checkpoint.path={tmp_path}").err


# Packed files, patterns, Parquet and saved datasets.

TEXTS = ["good film", "bad film", "good good"]


def lines_of(*words: object) -> tuple[int, list[str], str]:
    done = run("--format", "jsonl", *map(str, words))
    return done.code, done.out.splitlines(), done.err


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return lines_of(*[word for text in TEXTS for word in ("--text", text)])[1]


def test_packed_files_and_patterns(expected: list[str], tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode() + b"\n"))
    code, out, err = lines_of("--input", tmp_path / "*.jsonl.gz")
    assert (code, out) == (0, expected)
    assert "3 rows" in err
    code, out, err = lines_of("--input", tmp_path / "*.csv")
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
    code, out, _ = lines_of("--input", tmp_path / "a.parquet", "--input", folder, "--fields", "text=body")
    assert (code, out) == (0, expected + expected)
    code, out, err = lines_of("--input", tmp_path / "a.parquet")
    assert (code, out) == (2, [])
    assert "'text' is missing; there are: body, n" in err


@pytest.mark.parametrize("more", [[], ["-m", "padding=longest,none"]])
def test_packed_stdin(expected: list[str], more: list[str]) -> None:
    packed = gzip.compress("".join(f"{text}\n" for text in TEXTS).encode())
    done = run("--format", "jsonl", "--input", "-", *more, stdin=packed)
    assert [line for line in done.out.splitlines() if "label" in line][:3] == expected
