"""Jobs that several processes share: the same bytes, and no fault of a process that hangs or loses the job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm
from echo_job import content_of, dead_of, lines_of, write_rows
from harness import checkpoint, cli

from pipeline_kit.cli import progress
from pipeline_kit.errors import JobError, UsageError
from pipeline_kit.job.run import run_job
from pipeline_kit.job.workers import WorkerProcess

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills as POSIX has them")

PLUGIN = Path(__file__).parents[1] / "faulty_stages.py"
FAULTY = ("tokenizer=faulty", "postprocessor=faulty")
"""Where workers are spawned it goes with ``checkpoint=tiny_static``: they need not import transformers."""


def texts(path: Path, *faults: str, rows: int = 20) -> Path:
    found = [{"id": f"r{i}", "text": f"row {i} is " + "good " * (i % 5), "n": i} for i in range(rows)]
    for place, fault in enumerate(faults):
        found[3 + 5 * place]["text"] = fault
    return write_rows(path, found)


def words(source: Path, out: Path, *more: str) -> list[str]:
    given = (
        f"checkpoint.path={checkpoint()}",
        "device=cpu",
        "output.rows_per_shard=5",
        "input.id=id",
        "input.carry=[n]",
    )
    start = ["-m", "pipeline_kit", "run", "--plugin", str(PLUGIN), "--input", str(source)]
    return [*start, "--output", f"{out}/", *given, *more]


def run(source: Path, out: Path, *more: str) -> warm.Process:
    return warm.run(*words(source, out, *more))


def test_two_workers_write_the_bytes_of_one(tmp_path: Path) -> None:
    """Workers that are spawned, as users have them; with the schema that the first shard settles."""
    rows = [{"id": f"r{i}", "text": f"row {i}", "n": None if i < 5 else i} for i in range(23)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    argv = words(source, tmp_path / "two", "output.format=parquet", "job.max_failed_rows=null")
    two = subprocess.run([sys.executable, *argv, "runner.workers=2"], capture_output=True, text=True)
    one = warm.run(*words(source, tmp_path / "one", "output.format=parquet", "job.max_failed_rows=null"))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert len(content_of(tmp_path / "one")) == 5
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
    again = warm.run(*argv, "runner.workers=3")
    assert again.returncode == 0
    assert "nothing was left to do" in again.err


def test_a_job_that_goes_on_finds_what_its_workers_found_in_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was damaged, or is of another job, is found anew."""
    source, out = texts(tmp_path / "in.jsonl", "", "~fail"), tmp_path / "out"
    source.write_text(source.read_text().replace('"r9"', '"r4"'))
    parts = [source, *(write_rows(tmp_path / f"{name}.jsonl", [{"id": name, "text": name}]) for name in ("j", "k"))]
    sent, send = list[Any](), WorkerProcess.send

    def noted(worker: WorkerProcess, message: Any) -> None:
        sent.append(message)
        send(worker, message)

    monkeypatch.setattr(WorkerProcess, "send", noted)

    def indexed(out: Path, *more: str) -> int:
        sent.clear()
        given = ["checkpoint=tiny_static", "device=cpu", "output.rows_per_shard=5", "input.id=id", *more]
        run_job(*given, *FAULTY, output=out, files=parts, plugins=[str(PLUGIN)])
        return sum(message[0] == "index" for message in sent if isinstance(message, tuple))

    free = "job.max_failed_rows=null"
    assert indexed(tmp_path / "one", free) == 0
    assert not (tmp_path / "one" / "_plan").exists()
    with pytest.raises(JobError):
        indexed(out, "runner.workers=2")
    assert indexed(out, "runner.workers=2", free) == 0
    kept = sorted((out / "_plan").iterdir())
    first, second, _ = whole = [path.read_bytes() for path in kept]
    for path, data in zip(kept, (first[:-1], second.replace(b'"part": 1', b'"part": 0'), b"[]"), strict=True):
        path.write_bytes(data)
    (out / "part-00001.jsonl").unlink()
    assert indexed(out, "runner.workers=2", free) == 3
    assert [path.read_bytes() for path in kept] == whole
    assert content_of(out) == content_of(tmp_path / "one")
    cut = tmp_path / "cut"
    shutil.copytree(out / "_plan", cut / "_plan")  # what a kill before the first load leaves
    assert indexed(cut, "runner.workers=2", free) == 0
    assert content_of(cut) == content_of(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_continues_on_another_kind_of_machine_only_if_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A machine whose vectors may not be used: workers that start there run other kernels."""
    source, out = texts(tmp_path / "in.jsonl", "", "~fail"), tmp_path / "out"

    def go(*more: str, **how: Any) -> Any:
        given = (
            "checkpoint=tiny_static",
            "device=cpu",
            "output.rows_per_shard=5",
            f"runner.workers={workers}",
        )
        return run_job(*given, *FAULTY, *more, output=out, files=source, plugins=[str(PLUGIN)], **how)

    def kinds() -> list[dict[str, Any]]:
        resolved = json.loads((out / "_manifest.json").read_text())["resolved"]
        return [resolved["machine"], *resolved.get("other_machines", [])]

    with pytest.raises(JobError):
        go()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    free, before = "job.max_failed_rows=null", content_of(out)
    with pytest.raises(UsageError, match=r"another kind of machine: .* here, .* there\n.*runner.mixed=allow"):
        go(free)
    assert (content_of(out), len(kinds())) == (before, 1)
    assert go(free, "runner.mixed=allow").dead == 1
    assert [kind["settings"].get("ATEN_CPU_CAPABILITY") for kind in kinds()] == [None, "default"]
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    assert go(retry=True).dead == 1
    assert len(kinds()) == 3, "failed rows are run again anywhere, and the manifest says so"


def test_the_progress_line_takes_the_number_of_rows_from_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, counted = texts(tmp_path / "in.jsonl"), list[int]()
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)

    def count() -> int:
        counted.append(1)
        return 17

    for workers in (2, 1):
        given = ["checkpoint=tiny_static", "device=cpu", "input.limit=17", f"runner.workers={workers}"]
        with progress.JobProgress(count, "json") as watcher:
            run_job(*given, output=tmp_path / f"out-{workers}", files=source, watcher=watcher)
        said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert {event["of"] for event in said if event["event"] == "progress"} == {17}
        assert len(counted) == 2 - workers, "one process has no plan, and counts"


def test_a_stage_that_hangs_costs_its_own_rows_alone(tmp_path: Path) -> None:
    source = texts(tmp_path / "in.jsonl", "~hang here", "~hang in the tokenizer")
    out = tmp_path / "out"
    options = (*FAULTY, "runner.batch_timeout=1", "job.max_failed_rows=null", "runner.workers=2")
    done = run(source, out, *options)
    assert done.returncode == 1, done.err
    assert [(row["id"], row["stage"], row["error"]) for row in dead_of(out)] == [
        ("r3", "postprocessor", "StageTimeout"),
        ("r8", "tokenizer", "StageTimeout"),
    ]
    assert "runner.batch_timeout" in dead_of(out)[0]["message"]
    assert sorted(row["n"] for row in lines_of(out)) == [i for i in range(20) if i not in (3, 8)]
    clean = run(texts(tmp_path / "clean.jsonl"), tmp_path / "clean", *FAULTY)
    assert clean.returncode == 0
    expected = {row["n"]: row["score"] for row in lines_of(tmp_path / "clean")}
    assert all(abs(row["score"] - expected[row["n"]]) < 1e-3 for row in lines_of(out))


def test_a_hanging_row_stops_a_job_that_allows_none_to_fail(tmp_path: Path) -> None:
    source = texts(tmp_path / "in.jsonl", "~hang here")
    done = run(source, tmp_path / "out", *FAULTY, "runner.batch_timeout=1")
    assert done.returncode == 1
    assert "row r3 failed: postprocessor: StageTimeout" in done.err
    assert "job.max_failed_rows=0" in done.err


@pytest.mark.parametrize(("fault", "said"), [("~kill", "was ended by SIGKILL"), ("~exit", "ended with exit code 7")])
def test_a_worker_that_dies_ends_the_job_with_its_exit_code(tmp_path: Path, fault: str, said: str) -> None:
    source, out = texts(tmp_path / "in.jsonl", "", "", "", fault), tmp_path / "out"
    options = (*FAULTY, "runner.workers=2", "job.max_failed_rows=null")
    done = run(source, out, *options)
    assert done.returncode == 1
    assert said in done.err
    assert "while it made shard 3" in done.err
    assert "run the same command again to continue" in done.err
    assert "Traceback" not in done.err
    assert not (out / "_SUCCESS").exists()


def test_after_a_worker_died_the_job_goes_on(tmp_path: Path) -> None:
    source, out = texts(tmp_path / "in.jsonl", "~hang here", "~hang here"), tmp_path / "out"
    job = warm.start(*words(source, out, *FAULTY, "runner.workers=2", "runner.batch_timeout=60"))
    workers_of(job)[1].kill()
    assert job.wait().returncode == 1
    assert "was ended by SIGKILL" in job.err
    again = run(source, out, *FAULTY, "runner.workers=2", "runner.batch_timeout=1", "job.max_failed_rows=2")
    assert again.returncode == 1, "two rows hang"
    assert [row["n"] for row in lines_of(out)] == [i for i in range(20) if i not in (3, 8)]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_job(tmp_path: Path, how: signal.Signals) -> None:
    source = texts(tmp_path / "in.jsonl", "~hang here", "~hang here")
    job = warm.start(*words(source, tmp_path / "out", *FAULTY, "runner.workers=2"))
    workers = workers_of(job)
    job.send_signal(how)
    assert job.wait().returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    if how != signal.SIGKILL:
        assert "run the same command again to continue" in job.err
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_a_fault_of_the_config_that_shows_at_load_is_told_as_ever(tmp_path: Path) -> None:
    source = texts(tmp_path / "in.jsonl")
    options = ("padding=max_length", "padding.max_length=9999")
    here = run(source, tmp_path / "here", *options)
    there = run(source, tmp_path / "there", *options, "runner.workers=2")
    assert (here.returncode, there.returncode) == (2, 2)
    assert here.err.splitlines()[:2] == there.err.splitlines()[:2]


def test_workers_are_refused_where_there_is_no_job() -> None:
    done = cli("run", "--text", "a", f"checkpoint.path={checkpoint()}", "runner.workers=2")
    assert done.code == 2
    assert "runner.workers" in done.err
    assert "--output DIR" in done.err


def workers_of(job: warm.Process) -> list[psutil.Process]:
    """Wait until both workers of the job have come to a text that hangs."""
    job.until_printed("hangs", times=2)
    found: list[psutil.Process] = psutil.Process(job.pid).children()
    return found
