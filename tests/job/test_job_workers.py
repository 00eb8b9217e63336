"""Jobs that several processes share: the same bytes, and no fault of a process that hangs or loses the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import warm
from echo_job import content_of, dead_of, lines_of, write_rows
from harness import checkpoint, cli

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills as POSIX has them")

PLUGIN = Path(__file__).parents[1] / "faulty_stages.py"
FAULTY = ("tokenizer=faulty", "postprocessor=faulty")


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
