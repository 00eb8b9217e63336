"""Jobs: every row exactly once, whatever ends a run, and never another job in the same folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose
from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, OutputError, UsageError, redacted
from pipeline_kit.files.read.source import Source
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.run import Job, JobSummary, run_to_end
from pipeline_kit.job.sealed import locked
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.testing import tiny_checkpoint

ROWS = 23


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("job") / "bert")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"text": f"row {i} is " + "good " * (i % 7), "number": i, "name": f"n{i}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Quiet:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.before, self.loads, self.shards = 0, 0, 0

    def resumed(self, rows: int) -> None:
        self.before = rows

    def loaded(self, notes: Sequence[str]) -> None:
        self.loads += 1

    def advanced(self, stats: RunStats) -> None:
        self.rows = stats.rows

    def shard(self, receipt: Receipt) -> None:
        self.shards += 1


def run(
    checkpoint: Path,
    texts: Path,
    out: Path,
    *overrides: str,
    watcher: Quiet | None = None,
    restart: bool = False,
    change: Callable[[Pipeline], Pipeline] = lambda pipeline: pipeline,
) -> JobSummary:
    given = (f"checkpoint.path={checkpoint}", "device=cpu", "output.rows_per_shard=5", "input.carry=[number]")
    config = compose([*given, *overrides])
    source = Source.open([str(texts)], config.input, config.task.takes)
    job = Job(config, source, out, lambda config: change(build(config)), restart)
    return run_to_end(job, watcher or Quiet())


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob("part-*.jsonl")) for line in path.read_text().splitlines()]


def dead_of(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "_dead").glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


def test_a_job_writes_every_row_once_in_order(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run(checkpoint, texts, out)
    assert (summary.rows, summary.written, summary.dead, summary.shards, summary.reused) == (ROWS, ROWS, 0, 5, 0)
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"in.jsonl:{i + 1}" for i in range(ROWS)]
    assert [row["number"] for row in rows] == list(range(ROWS))
    assert all(set(row) == {"id", "number", "label", "score"} for row in rows)
    assert (out / "_SUCCESS").exists()


def test_the_results_are_those_of_the_pipeline(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    run(checkpoint, texts, tmp_path / "out")
    pipe = build(compose([f"checkpoint.path={checkpoint}", "device=cpu"]))
    expected = pipe([json.loads(line)["text"] for line in texts.read_text().splitlines()])
    for row, result in zip(rows_of(tmp_path / "out"), expected, strict=True):
        assert row["label"] == result["label"]
        assert row["score"] == pytest.approx(result["score"], abs=1e-5)


def test_a_complete_job_is_not_run_again(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(checkpoint, texts, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*")}
    watcher = Quiet()
    assert run(checkpoint, texts, out, watcher=watcher).reused == ROWS
    assert (watcher.loads, watcher.shards) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("part-*")} == before


class Stop(Exception):
    """Ends a run from outside."""


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_job_goes_on_where_it_stopped_with_the_same_bytes(
    checkpoint: Path, texts: Path, tmp_path: Path, after: int
) -> None:
    class Stopping(Quiet):
        def shard(self, receipt: Receipt) -> None:
            super().shard(receipt)
            if self.shards > after:
                raise Stop

    run(checkpoint, texts, tmp_path / "whole")
    with pytest.raises(Stop):
        run(checkpoint, texts, tmp_path / "out", watcher=Stopping())
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    watcher = Quiet()
    summary = run(checkpoint, texts, tmp_path / "out", watcher=watcher)
    assert summary.reused == watcher.before == 5 * (after + 1)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


STEPS = ("open", "write", "fsync", "replace", "close")


def test_a_run_that_ends_at_any_step_of_any_write_is_taken_up(
    checkpoint: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for the loss of power between write, sync and rename; the process's death is in test_job_kill."""
    run(checkpoint, texts, tmp_path / "whole")
    calls = {step: 0 for step in STEPS}

    def counting(step: str, real: Any, at: int | None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            mine = step != "open" or Path(args[0]).name.startswith(".pipeline-kit-")
            calls[step] += mine
            if mine and calls[step] == at:
                raise Stop
            return real(*args, **kwargs)

        return call

    real = {step: getattr(os, step) for step in STEPS}
    for step in ("open", "write", "fsync", "replace"):
        monkeypatch.setattr("pipeline_kit.files.atomic.os." + step, counting(step, real[step], None))
    run(checkpoint, texts, tmp_path / "counted")
    total = dict(calls)
    for step in ("open", "write", "fsync", "replace"):
        for at in range(1, total[step] + 1, 3):
            out = tmp_path / f"{step}-{at}"
            calls[step] = 0
            monkeypatch.setattr("pipeline_kit.files.atomic.os." + step, counting(step, real[step], at))
            with pytest.raises(Stop):
                run(checkpoint, texts, out)
            monkeypatch.setattr("pipeline_kit.files.atomic.os." + step, real[step])
            run(checkpoint, texts, out)
            assert bytes_of(out) == bytes_of(tmp_path / "whole"), f"{step} {at}"
            assert not list(out.rglob("*.tmp")), f"{step} {at}"


CHANGES = {
    "config": ("padding=max_length",),
    "an option of a stage": ("tokenizer.max_length=20",),
    "the shards": ("output.rows_per_shard=6",),
    "carried columns": ("input.carry=[name]",),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_config_is_refused(checkpoint: Path, texts: Path, tmp_path: Path, change: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    run(checkpoint, texts, out)
    before = bytes_of(out)
    key = change[0].split("=")[0]
    with pytest.raises(UsageError, match=rf"holds a job that is not this one:(.|\n)*config\.{key}"):
        run(checkpoint, texts, out, *change)
    assert bytes_of(out) == before


def test_another_input_checkpoint_or_version_is_refused(
    checkpoint: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(checkpoint, texts, out)
    original = texts.read_text()
    texts.write_text(original.replace("row 3", "row three"))
    with pytest.raises(UsageError, match=r"input\[0\]\.sha256: \w+ before, \w+ now"):
        run(checkpoint, texts, out)
    texts.write_text(original)
    weights = checkpoint / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        with pytest.raises(UsageError, match=r"checkpoint\.files\.model\.safetensors"):
            run(checkpoint, texts, out)
    finally:
        weights.write_bytes(kept)
    monkeypatch.setattr("pipeline_kit.job.manifest.__version__", "9.9.9")
    with pytest.raises(UsageError, match=r"versions\.pipeline-kit: \S+ before, 9\.9\.9 now"):
        run(checkpoint, texts, out)


def test_an_input_that_nothing_identifies_is_not_taken_up(checkpoint: Path, tmp_path: Path) -> None:
    config = compose([f"checkpoint.path={checkpoint}", "device=cpu"])

    def go(rows: Any) -> JobSummary:
        source = Source.of(rows, config.input, config.task.takes)
        return run_to_end(Job(config, source, tmp_path / "out", build), Quiet())

    assert go(text for text in ["one", "two"]).rows == 2
    with pytest.raises(UsageError, match="can be gone through only once"):
        go(text for text in ["one", "two"])


def test_a_row_that_the_format_cannot_hold_is_dead_and_counted(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    def change(pipeline: Pipeline) -> Pipeline:
        class NotFinite(type(pipeline.postprocessor)):  # type: ignore[misc]
            def __init__(self) -> None:
                self.__dict__ = pipeline.postprocessor.__dict__

            def __call__(self, *given: Any) -> Any:
                results = super().__call__(*given)
                for example, result in zip(given[0], results, strict=True):
                    if "row 13 " in text_of(example):
                        result["score"] = float("nan")
                return results

        return replace(pipeline, postprocessor=NotFinite())

    summary = run(checkpoint, texts, tmp_path / "out", "job.max_failed_rows=1", change=change)
    assert (summary.written, summary.dead, summary.stats.failed) == (ROWS - 1, 1, 1)
    assert [letter["id"] for letter in dead_of(tmp_path / "out")] == ["in.jsonl:14"]


def test_restart_begins_anew_and_deletes_nothing(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(checkpoint, texts, out)
    before = bytes_of(out)
    run(checkpoint, texts, out, "tokenizer.max_length=20", restart=True)
    assert bytes_of(tmp_path / "out.1") == before
    assert len(rows_of(out)) == ROWS


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "receipt cut", "receipt gone"])
def test_a_damaged_shard_alone_is_done_again(checkpoint: Path, texts: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    run(checkpoint, texts, out)
    expected = bytes_of(out)
    path = out / "_receipts/part-00002.json" if damage.startswith("receipt") else out / "part-00002.jsonl"
    content = path.read_bytes()
    if damage.endswith("gone"):
        path.unlink()
    elif damage == "flip":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    else:
        path.write_bytes(content[: len(content) // 2])
    watcher = Quiet()
    run(checkpoint, texts, out, watcher=watcher)
    assert watcher.shards == 1
    assert bytes_of(out) == expected


def test_a_manifest_cut_at_any_byte_is_noticed(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(checkpoint, texts, out)
    manifest = out / "_manifest.json"
    whole = manifest.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        manifest.write_bytes(whole[:length])
        with pytest.raises(OutputError, match="cannot be told what the job is; add --restart"):
            run(checkpoint, texts, out)
    manifest.write_bytes(whole.replace(b'"done": true', b'"done": false'))
    with pytest.raises(OutputError, match="is not as this version"):
        run(checkpoint, texts, out)


def poisoned(stage: str, error: BaseException) -> Callable[[Pipeline], Pipeline]:
    """Make a stage of a pipeline fail on every text with a 3 after 'row 1'."""

    def change(pipeline: Pipeline) -> Pipeline:
        part: Any = getattr(pipeline, stage)
        method = {"tokenizer": "encode", "model": "forward", "postprocessor": "__call__"}[stage]
        real = getattr(part, method)

        class Poisoned(type(part)):  # type: ignore[misc]
            def __init__(self) -> None:
                self.__dict__ = part.__dict__

        def call(self: Any, *args: Any) -> Any:
            if stage == "tokenizer" and any("13 " in text_of(row) for row in args[0]):
                raise error
            if stage == "postprocessor" and any("13 " in text_of(row) for row in args[0]):
                raise error
            if stage == "model" and int(args[0].lengths.max()) >= 12:
                raise error
            return real(*args)

        setattr(Poisoned, method, call)
        return replace(pipeline, **{stage: Poisoned()})

    return change


def text_of(example: Any) -> str:
    return str(example if isinstance(example, str) else example.get("text", ""))


class Panic(BaseException):
    """What a tokenizer written in Rust raises when it panics: no Exception."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize("stage", ["tokenizer", "model", "postprocessor"])
@pytest.mark.parametrize("error", [RuntimeError("boom \x1b[31m\n" + "x" * 999), MemoryError("no room")])
def test_a_bad_row_is_kept_aside_and_harms_no_other(
    checkpoint: Path, texts: Path, tmp_path: Path, stage: str, error: Exception
) -> None:
    run(checkpoint, texts, tmp_path / "clean")
    clean = {row["id"]: row for row in rows_of(tmp_path / "clean")}
    out = tmp_path / "out"
    summary = run(checkpoint, texts, out, "job.max_failed_rows=null", change=poisoned(stage, error))
    dead = dead_of(out)
    assert 0 < summary.dead == len(dead) < ROWS
    for letter in dead:
        assert set(letter) == {"id", "index", "stage", "error", "message"}
        assert (letter["stage"], letter["error"]) == (stage, type(error).__name__)
        assert len(letter["message"]) <= 200
        assert letter["message"].isprintable()
    rows = rows_of(out)
    assert sorted([row["id"] for row in rows] + [letter["id"] for letter in dead]) == sorted(clean)
    for row in rows:
        assert row["label"] == clean[row["id"]]["label"]
        assert row["score"] == pytest.approx(clean[row["id"]]["score"], abs=1e-5)


def test_by_default_the_first_bad_row_stops_the_job(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = poisoned("tokenizer", RuntimeError("boom"))
    with pytest.raises(
        JobError, match=r"row in\.jsonl:14 failed: tokenizer: RuntimeError: boom(.|\n)*max_failed_rows=0"
    ):
        run(checkpoint, texts, out, change=broken)
    assert [path.name for path in sorted(out.glob("part-*"))] == ["part-00000.jsonl", "part-00001.jsonl"]
    summary = run(checkpoint, texts, out, "job.max_failed_rows=1", change=broken)
    assert (summary.reused, summary.dead, summary.rows) == (10, 1, ROWS)


@pytest.mark.parametrize(("budget", "stops"), [("1", False), ("'1%'", True), ("'10%'", False), ("null", False)])
def test_the_budget(checkpoint: Path, texts: Path, tmp_path: Path, budget: str, stops: bool) -> None:
    def go() -> JobSummary:
        broken = poisoned("postprocessor", RuntimeError("boom"))
        return run(checkpoint, texts, tmp_path / "out", f"job.max_failed_rows={budget}", change=broken)

    if stops:
        with pytest.raises(JobError):
            go()
    else:
        assert go().dead == 1


def test_one_writer_at_a_time(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    folder = JobFolder.claim(tmp_path / "out")
    with (
        locked(folder.lock),
        pytest.raises(OutputError, match=rf"another process writes .*: process {os.getpid()} on "),
    ):
        run(checkpoint, texts, folder.path)
    assert run(checkpoint, texts, folder.path).rows == ROWS


def test_a_folder_of_something_else_is_not_touched(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    for name in ("file", "link", "full", "deep/deeper"):
        with pytest.raises(OutputError):
            run(checkpoint, texts, tmp_path / name, restart=name == "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "x"
    assert sorted(os.listdir(tmp_path / "full")) == ["thesis.txt"]


def test_what_looks_like_a_secret_is_not_shown() -> None:
    shown = redacted(
        {"hub_token": "x", "tokenizer": {"name": "hf"}, "a": ["https://me:pw@host/x", "hf_abcdefgh12345678"]}
    )
    assert shown == {"hub_token": "(hidden)", "tokenizer": {"name": "hf"}, "a": ["https://(hidden)@host/x", "(hidden)"]}
