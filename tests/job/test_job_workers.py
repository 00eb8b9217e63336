"""Jobs that several processes share: the same bytes, and no fault of a process that hangs or loses the job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from echo_job import content_of, dead_of, lines_of, write_rows

from pipeline_kit.testing import tiny_checkpoint

PLUGIN = Path(__file__).parents[1] / "faulty_stages.py"
FAULTY = ("tokenizer=faulty", "postprocessor=faulty")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("workers") / "bert")


def texts(path: Path, *faults: str, rows: int = 20) -> Path:
    found = [{"id": f"r{i}", "text": f"row {i} is " + "good " * (i % 5), "n": i} for i in range(rows)]
    for place, fault in enumerate(faults):
        found[3 + 5 * place]["text"] = fault
    return write_rows(path, found)


def command(checkpoint: Path, source: Path, out: Path, *words: str) -> list[str]:
    given = (f"checkpoint.path={checkpoint}", "device=cpu", "output.rows_per_shard=5", "input.id=id", "input.carry=[n]")
    start = [sys.executable, "-m", "pipeline_kit", "run", "--plugin", str(PLUGIN), "--input", str(source)]
    return [*start, "--output", f"{out}/", *given, *words]


def run(*given: Any, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*given), capture_output=True, text=True, timeout=240, env=os.environ | env)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_two_workers_write_the_bytes_of_one(checkpoint: Path, tmp_path: Path, format: str) -> None:
    source = texts(tmp_path / "in.jsonl", "", rows=23)
    words = (f"output.format={format}", "job.max_failed_rows=null")
    one = run(checkpoint, source, tmp_path / "one", *words)
    two = run(checkpoint, source, tmp_path / "two", *words, "runner.workers=2")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert len(content_of(tmp_path / "one")) == 5
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
    again = run(checkpoint, source, tmp_path / "two", *words, "runner.workers=3")
    assert again.returncode == 0
    assert "nothing was left to do" in again.stderr


def test_a_stage_that_hangs_costs_its_own_rows_alone(checkpoint: Path, tmp_path: Path) -> None:
    source = texts(tmp_path / "in.jsonl", "~hang here", "~hang in the tokenizer")
    out = tmp_path / "out"
    words = (*FAULTY, "runner.batch_timeout=3", "job.max_failed_rows=null", "runner.workers=2")
    done = run(checkpoint, source, out, *words)
    assert done.returncode == 1, done.stderr
    assert [(row["id"], row["stage"], row["error"]) for row in dead_of(out)] == [
        ("r3", "postprocessor", "StageTimeout"),
        ("r8", "tokenizer", "StageTimeout"),
    ]
    assert "runner.batch_timeout" in dead_of(out)[0]["message"]
    assert sorted(row["n"] for row in lines_of(out)) == [i for i in range(20) if i not in (3, 8)]
    clean = run(checkpoint, texts(tmp_path / "clean.jsonl"), tmp_path / "clean", *FAULTY)
    assert clean.returncode == 0
    expected = {row["n"]: row["score"] for row in lines_of(tmp_path / "clean")}
    assert all(abs(row["score"] - expected[row["n"]]) < 1e-3 for row in lines_of(out))


def test_a_hanging_row_stops_a_job_that_allows_none_to_fail(checkpoint: Path, tmp_path: Path) -> None:
    source = texts(tmp_path / "in.jsonl", "~hang here")
    done = run(checkpoint, source, tmp_path / "out", *FAULTY, "runner.batch_timeout=3")
    assert done.returncode == 1
    assert "row r3 failed: postprocessor: StageTimeout" in done.stderr
    assert "job.max_failed_rows=0" in done.stderr


@pytest.mark.parametrize(("fault", "said"), [("~kill", "was ended by SIGKILL"), ("~exit", "ended with exit code 7")])
def test_a_worker_that_dies_ends_the_job_with_its_exit_code(
    checkpoint: Path, tmp_path: Path, fault: str, said: str
) -> None:
    source, out = texts(tmp_path / "in.jsonl", "", "", "", fault), tmp_path / "out"
    words = (*FAULTY, "runner.workers=2", "job.max_failed_rows=null")
    done = run(checkpoint, source, out, *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "while it made shard 3" in done.stderr
    assert "run the same command again to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "_SUCCESS").exists()


def test_after_a_worker_died_the_job_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    source, out = texts(tmp_path / "in.jsonl"), tmp_path / "out"
    process = subprocess.Popen(
        command(checkpoint, source, out, "runner.workers=2", "runner.batch_timeout=60"),
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = _workers(process.pid, 2)[1]
    worker.kill()
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert "was ended by SIGKILL" in told
    again = run(checkpoint, source, out, "runner.workers=2")
    assert again.returncode == 0, again.stderr
    assert [row["n"] for row in lines_of(out)] == list(range(20))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_job(checkpoint: Path, tmp_path: Path, how: signal.Signals) -> None:
    source = texts(tmp_path / "in.jsonl", "~hang here", "~hang here")
    process = subprocess.Popen(
        command(checkpoint, source, tmp_path / "out", *FAULTY, "runner.workers=2"), stderr=subprocess.PIPE, text=True
    )
    workers = _workers(process.pid, 2)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    if how != signal.SIGKILL:
        assert "run the same command again to continue" in told
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_a_fault_of_the_config_that_shows_at_load_is_told_as_ever(checkpoint: Path, tmp_path: Path) -> None:
    source = texts(tmp_path / "in.jsonl")
    words = ("padding=max_length", "padding.max_length=9999")
    here = run(checkpoint, source, tmp_path / "here", *words)
    there = run(checkpoint, source, tmp_path / "there", *words, "runner.workers=2")
    assert (here.returncode, there.returncode) == (2, 2)
    assert here.stderr.splitlines()[:2] == there.stderr.splitlines()[:2]


def test_workers_are_refused_where_there_is_no_job(checkpoint: Path) -> None:
    words = ["--text", "a", f"checkpoint.path={checkpoint}", "runner.workers=2"]
    done = subprocess.run([sys.executable, "-m", "pipeline_kit", "run", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "runner.workers" in done.stderr
    assert "--output DIR" in done.stderr


def _workers(job: int, count: int) -> list[psutil.Process]:
    """Wait until the job has so many workers that have loaded a model."""
    found: list[psutil.Process] = []
    for _ in range(1200):
        found = [child for child in psutil.Process(job).children() if "spawn_main" in " ".join(child.cmdline())]
        if len(found) >= count and all(child.memory_info().rss > 150 * 2**20 for child in found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {count} workers: {json.dumps([str(child) for child in found])}")
