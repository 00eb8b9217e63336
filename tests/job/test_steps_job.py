"""Jobs and files of a config with steps: the same bytes in one process and in two, columns for each step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import warm
import yaml
from echo_job import content_of, dead_of, write_rows
from harness import checkpoint, cli, pipeline_of

STEPS: dict[str, Any] = {
    "first": {"postprocessor": {"top_k": None}},
    "sentences": {"split": "text"},
    "each": {"take": {"text": "sentences.*.text"}},
    "vector": {"task": "sentence-embedding", "when": {"kind": ["a", True]}},
}
ROWS = [
    {"text": f"row {n}. It is {'good' * (n % 3)}!", "kind": "a" if n % 4 else None, "id": f"r{n}"} for n in range(23)
]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    content = {
        "defaults": ["config", "_self_"],
        "checkpoint": {"path": str(checkpoint())},
        "device": {"name": "cpu", "threads": 1},
        "input": {"id": "id"},
        "output": {"rows_per_shard": 5},
        "steps": STEPS,
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def rows_without(kind: str) -> list[dict[str, Any]]:
    return [row | {"kind": row["kind"] or kind} for row in ROWS]


def test_two_workers_write_the_bytes_of_one_and_a_job_continues_only_as_itself(mine: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*rows_without("b"), {"text": 7, "kind": "a", "id": "bad"}])
    start = ("run", "--config", mine, "--input", source, "job.max_failed_rows=null", "output.format=parquet")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = warm.run("-m", "pipeline_kit", *map(str, start), "--output", str(one))
    assert alone.returncode == 1, alone.err
    assert "24 rows in 5 shards, 1 failed" in alone.err
    shared = warm.run("-m", "pipeline_kit", *map(str, start), "--output", str(two), "runner.workers=2")
    assert shared.returncode == 1, shared.err
    assert content_of(one) == content_of(two)
    assert [(letter["id"], letter["stage"]) for letter in dead_of(one)] == [("bad", "first.tokenizer")]
    manifest = json.loads((one / "_manifest.json").read_bytes())
    assert set(manifest["identity"]["checkpoint"]) == set(manifest["settled"]) == {"first", "each", "vector"}
    refused = cli(*start, "--output", one, "steps.each.tokenizer.max_length=9")
    assert refused.code == 2
    assert "config.steps.each.tokenizer.max_length: nothing before, 9 now" in refused.err
    again = cli(*start, "--output", one, "--retry", "steps.first.padding=none")
    assert "config.steps.first.padding.name: longest before, none now" in again.err
    assert "1 failed again" in again.err
    refused = cli(*start, "--output", one, "--retry", "steps.first.when=text", "steps.vector.take.text=kind")
    assert refused.code == 1, refused.err


def test_parquet_has_a_column_for_each_step(mine: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", rows_without("b"))
    done = cli("run", "--config", mine, "--input", source, "--output", tmp_path / "out.parquet")
    assert done.code == 0, done.err
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names[:5] == ["id", *STEPS]
    assert str(found.schema.field("sentences").type) == (
        "list<element: struct<text: string, start: int64, end: int64>>"
    )
    vectors = found["vector"].to_pylist()
    texts = [str(row["text"]) for row in ROWS]
    wanted = [text for text, row in zip(texts, ROWS, strict=True) if row["kind"]]
    by_hand = pipeline_of("sentence-embedding", checkpoint())(wanted)
    got = [row["embedding"] for row in vectors if row is not None]
    assert len(got) == len(by_hand) == 17
    assert got[0] == pytest.approx(by_hand[0]["embedding"], abs=1e-5)
    lines = cli("run", "--config", mine, "--input", source, "--format", "jsonl")
    for line, row in zip(lines.out.splitlines(), found.to_pylist(), strict=True):
        value = json.loads(line)
        assert [part["label"] for part in value["each"]] == [part["label"] for part in row["each"]]
        assert (value["vector"] is None) == (row["vector"] is None)


def test_rows_of_stdin_and_of_a_sweep(mine: Path, tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows_without("b"))
    words = ("--config", mine, "--format", "jsonl", "--input-format", "jsonl")
    done = cli("run", *words, "input.id=null", stdin=text)
    assert (done.code, len(done.out.splitlines())) == (0, 23)
    done = cli("run", *words, "-m", "steps.first.tokenizer.max_length=3,64", stdin=text)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["overrides"] for row in found if "overrides" in row] == [
        ["steps.first.tokenizer.max_length=3"],
        ["steps.first.tokenizer.max_length=64"],
    ]
    results = [row for row in found if "overrides" not in row]
    assert ["truncated" in row["first"] for row in results] == [True] * 23 + [False] * 23


def test_fields_are_those_that_the_steps_take(mine: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("body,sort,id\nA text.,a,1\n")
    done = cli("run", "--config", mine, "--input", source, "--format", "jsonl", "--fields", "text=body,kind=sort")
    assert done.code == 0, done.err
    assert json.loads(done.out)["vector"]["embedding"]
    done = cli("run", "--config", mine, "--input", source)
    assert (done.code, "'text' is missing; there are: body, sort, id" in done.err) == (2, True)
    done = cli("run", "--config", mine, "--text", "alone", "input.id=null")
    assert "an example is a mapping with the fields 'text' and 'kind', not a text: alone" in done.err


def test_the_other_commands(mine: Path, tmp_path: Path) -> None:
    rows = [
        {"text": text, "kind": "b", "label": label, "id": text}
        for text, label in (("a", "NEGATIVE"), ("b", "POSITIVE"))
    ]
    asked = ("--config", mine, "--input", write_rows(tmp_path / "in.jsonl", rows))
    assert cli("validate", "--config", mine, "--build").out == "ok\n"
    last = {"last": {"when": {"first.label": ["NEGATIVE", "POSITIVE"]}}}
    content = yaml.safe_load(mine.read_text())
    mine.write_text(yaml.safe_dump({**content, "steps": {**STEPS, **last}}, sort_keys=False))
    done = cli("evaluate", *asked, "--json", "--quiet")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["task"], report["evaluated"]) == ("text-classification", 2)
    alone = cli("evaluate", "--input", tmp_path / "in.jsonl", f"checkpoint.path={checkpoint()}", "--json", "--quiet")
    assert report["metrics"] == json.loads(alone.out)["metrics"]
    done = cli("evaluate", *asked, "steps.last.take.text=sentences.0.text")
    assert "by the row's own fields, and 'last' takes text: sentences.0.text" in done.err
    for command in (("tune",), ("bench", "--vs", "transformers")):
        done = cli(*command, "--config", mine, "--json", json.dumps(rows[0]))
        assert done.code == 2
        assert "one pipeline; this config has the steps first, sentences, each, vector, last" in done.err


def test_explain_shows_each_step(mine: Path, tmp_path: Path) -> None:
    row = json.dumps({"text": "One here. Two there.", "kind": "b"})
    done = cli("explain", "--config", mine, "--json", row, "--no-times")
    assert done.code == 0, done.err
    assert [line for line in done.out.splitlines() if line.startswith("step ")] == ["step first", "step each"]
    found = json.loads(cli("explain", "--config", mine, "--json", row, "--format", "json").out)["steps"]
    assert list(found) == ["first", "each"]
    result = json.loads(cli("run", "--config", mine, "--json", row, "--format", "jsonl", "input.id=null").out)
    assert found["first"]["rows"][0]["result"] == result["first"]
    assert [traced["result"] for traced in found["each"]["rows"]] == result["each"]
    page = tmp_path / "page.html"
    failed = cli("explain", "--config", mine, "--json", '{"text": 7, "kind": "a"}', "--html", page)
    assert failed.code == 1
    assert "<h2>first</h2><iframe" in page.read_text()
    refused = cli("explain", "--config", mine, "--json", row, "--vs", "padding=none")
    assert "one pipeline; this config has the steps" in refused.err
