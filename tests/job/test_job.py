"""Jobs: every row exactly once, whatever ends a run, and never another job in the same folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from echo_job import EchoModel, content_of, dead_of, echo, ids_of, job_config, lines_of, reseal, run_echo, write_rows

from pipeline_kit.compose.build import build
from pipeline_kit.contract.types import ModelOutput, TokenBatch
from pipeline_kit.errors import JobError, OutputError, UsageError
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.ledger import JobWatcher
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.run import JobSummary

ROWS = 23


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": f"row {i} is " + "good " * (i % 7), "number": i} for i in range(ROWS)]
    return write_rows(tmp_path / "in.jsonl", rows)


class Counting(JobWatcher):
    """Counts what it receives; raises `Stop` after so many shards."""

    def __init__(self, stop_after: int = 100) -> None:
        self.before, self.loads, self.shards, self.stop_after = 0, 0, 0, stop_after

    def resumed(self, rows: int) -> None:
        self.before = rows

    def loaded(self, notes: object) -> None:
        self.loads += 1

    def shard(self, receipt: Receipt) -> None:
        self.shards += 1
        if self.shards > self.stop_after:
            raise Stop


class Stop(Exception):
    """Ends a run from outside."""


def run(texts: Path, out: Path, *overrides: str, **how: Any) -> JobSummary:
    config = job_config("output.rows_per_shard=5", "input.carry=[number]", *overrides)
    return run_echo(config, [texts], out, **how)


def test_a_job_writes_every_row_once_in_order(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run(texts, out)
    assert (summary.rows, summary.written, summary.dead, summary.shards, summary.reused) == (ROWS, ROWS, 0, 5, 0)
    rows = lines_of(out)
    assert ids_of(rows) == [f"in.jsonl:{i + 1}" for i in range(ROWS)]
    assert [row["number"] for row in rows] == list(range(ROWS))
    assert all(set(row) == {"id", "number", "label", "score"} for row in rows)
    assert (out / "_SUCCESS").exists()


def test_the_results_are_those_of_the_pipeline(texts: Path, tmp_path: Path) -> None:
    run(texts, tmp_path / "out", build=build)
    expected = build(job_config())([json.loads(line)["text"] for line in texts.read_text().splitlines()])
    for row, result in zip(lines_of(tmp_path / "out"), expected, strict=True):
        assert row["label"] == result["label"]
        assert row["score"] == pytest.approx(result["score"], abs=1e-5)


def test_a_complete_job_is_not_run_again(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(texts, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*")}
    watcher = Counting()
    assert run(texts, out, watcher=watcher).reused == ROWS
    assert (watcher.loads, watcher.shards) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("part-*")} == before


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_job_goes_on_where_it_stopped_with_the_same_bytes(texts: Path, tmp_path: Path, after: int) -> None:
    run(texts, tmp_path / "whole")
    with pytest.raises(Stop):
        run(texts, tmp_path / "out", watcher=Counting(after))
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    watcher = Counting()
    summary = run(texts, tmp_path / "out", watcher=watcher)
    assert summary.reused == watcher.before == 5 * (after + 1)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_a_row_that_the_format_cannot_hold_is_dead_and_counted(texts: Path, tmp_path: Path) -> None:
    class NotFinite(EchoModel):
        def forward(self, batch: TokenBatch) -> ModelOutput:
            sums = super().forward(batch).tensors["sum"]
            for place, row in enumerate(batch.input_ids.tolist()):
                if b"row 13 " in bytes(row):
                    sums[place] = float("inf")
            return ModelOutput({"sum": sums})

    build = lambda config: echo(config, model=NotFinite())  # noqa: E731
    summary = run(texts, tmp_path / "out", "job.max_failed_rows=1", build=build)
    assert (summary.written, summary.dead, summary.stats.failed) == (ROWS - 1, 1, 1)
    assert ids_of(dead_of(tmp_path / "out")) == ["in.jsonl:14"]


def test_restart_begins_anew_and_deletes_nothing(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(texts, out)
    before = content_of(out)
    monkeypatch.chdir(out)
    with pytest.raises(UsageError, match=f"cannot be renamed by this name; .* name the folder as {out}"):
        run(texts, Path("."), restart=True)
    run(texts, out, "tokenizer.max_length=20", restart=True)
    assert content_of(tmp_path / "out.1") == before
    assert len(lines_of(out)) == ROWS


def test_by_default_the_first_bad_row_stops_the_job(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    texts.write_text(texts.read_text().replace("row 13 ", "row 13~p "))
    with pytest.raises(
        JobError, match=r"row in\.jsonl:14 failed: postprocessor: ValueError: no result(.|\n)*max_failed_rows=0"
    ):
        run(texts, out)
    assert [path.name for path in sorted(out.glob("part-*"))] == ["part-00000.jsonl", "part-00001.jsonl"]
    summary = run(texts, out, "job.max_failed_rows=1")
    assert (summary.reused, summary.dead, summary.rows) == (10, 1, ROWS)


@pytest.mark.parametrize(("budget", "stops"), [("1", False), ("'1%'", True), ("'10%'", False), ("null", False)])
def test_the_budget(texts: Path, tmp_path: Path, budget: str, stops: bool) -> None:
    texts.write_text(texts.read_text().replace("row 13 ", "row 13~p "))
    if stops:
        with pytest.raises(JobError):
            run(texts, tmp_path / "out", f"job.max_failed_rows={budget}")
    else:
        assert run(texts, tmp_path / "out", f"job.max_failed_rows={budget}").dead == 1


def test_one_writer_at_a_time(texts: Path, tmp_path: Path) -> None:
    folder = JobFolder(str(tmp_path / "out"))
    folder.claim()
    expected = rf"another process writes .*: process {os.getpid()} on "
    for retry in (False, True):
        with folder.locked(60), pytest.raises(OutputError, match=expected):
            run(texts, Path(folder.key), retry=retry)
        assert run(texts, Path(folder.key)).rows == ROWS


def test_a_job_runs_on_a_file_system_without_locks(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert run(texts, tmp_path / "out").rows == ROWS


def test_a_folder_of_something_else_is_not_touched(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    for name in ("file", "link", "full", "deep/deeper"):
        with pytest.raises(OutputError):
            run(texts, tmp_path / name, restart=name == "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "x"
    assert sorted(os.listdir(tmp_path / "full")) == ["thesis.txt"]


def test_a_folder_of_another_version_is_refused_and_left_alone(texts: Path, tmp_path: Path) -> None:
    """Receipts without a number are those of the first versions."""
    out = tmp_path / "out"
    run(texts, out)
    receipt, manifest = out / "_receipts" / "part-00001.json", out / "_manifest.json"
    old = {path: path.read_bytes() for path in (receipt, manifest)}
    for path in (receipt, manifest):
        for layout, said in ((3, r"a newer pipeline-kit \(layout 3"), (None, r"an older pipeline-kit \(layout 1")):
            reseal(path, layout=layout)
            with pytest.raises(OutputError, match=rf"{path.name}: was written by {said}"):
                run(texts, out)
            assert (out / "_SUCCESS").exists()
        path.write_bytes(old[path])
    assert run(texts, out).reused == ROWS
    with pytest.raises(UsageError, match="is not this one"):
        run(texts, out, "padding=max_length")
