"""``evaluate`` chooses its rows by the same options as ``run``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import checkpoint, cli

pytest.importorskip("sklearn.metrics")

Evaluate = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    rows = [{"key": f"r{i}", "body": f"text {i}", "label": "POSITIVE" if i % 2 else "NEGATIVE"} for i in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*argv: str) -> tuple[int, Any, str]:
        words = [f"checkpoint.path={checkpoint()}", "--input", tmp_path / "in.jsonl", "--json", "--quiet"]
        done = cli("evaluate", *words, *argv)
        assert "Traceback" not in done.err
        return done.code, json.loads(done.out) if done.out.count("\n") == 1 else done.out, done.err

    return call


def saved(path: Path) -> list[tuple[str, int]]:
    return [(row["id"], row["row"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize("field", [["input.fields.text=body"], ["--fields", "text=body"]])
def test_rows_are_chosen_and_saved_with_their_ids(evaluate: Evaluate, tmp_path: Path, field: list[str]) -> None:
    save = ["--save", str(tmp_path / "wrong.jsonl")]
    _, whole, _ = evaluate(*field, *save, "input.id=key")
    assert whole["rows"] == 12
    wrong = saved(tmp_path / "wrong.jsonl")
    assert 0 < len(wrong) < 12
    assert all(id == f"r{row}" for id, row in wrong)
    _, part, _ = evaluate(*field, *save, "input.id=key", "input.skip=3", "input.limit=6")
    assert part["rows"] == 6
    assert saved(tmp_path / "wrong.jsonl") == [pair for pair in wrong if 3 <= pair[1] < 9]
    _, part, _ = evaluate(*field, *save, "input.shard=1/4")
    assert part["rows"] == 3
    assert saved(tmp_path / "wrong.jsonl") == [(f"in.jsonl:{row + 1}", row) for _, row in wrong if row % 4 == 1]


def test_the_format_may_be_an_option(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_text("text,label\nx,POSITIVE\n")
    _, report, _ = evaluate("input.fields.text=body", "input.limit=2")
    assert report["rows"] == 2
    code, _, err = evaluate("--input", str(tmp_path / "in.dat"), "input.format=text")
    assert (code, "a line of text has no label" in err) == (2, True)


def test_a_sweep_over_the_rows(evaluate: Evaluate) -> None:
    _, out, _ = evaluate("input.fields.text=body", "-m", "input.limit=2,5")
    assert [json.loads(line)["rows"] for line in out.splitlines()] == [2, 5]
