"""R1: a job that is killed at any instant and run again gives every row exactly once, with the same bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import warm
from echo_job import content_of, dead_of, lines_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills as POSIX has them")

SEED = 20261124
HOW_MANY = [pytest.param((5, 20), id="some"), pytest.param((20, 400), id="storm", marks=pytest.mark.storm)]


def written_ids(out: Path, format: str) -> list[str]:
    """The ids in the shards, in order."""
    ids: list[str] = []
    for path in sorted(out.glob("part-*")):
        if path.suffix == ".jsonl":
            ids += [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
        elif path.suffix == ".csv":
            ids += [row["id"] for row in csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))]
        elif path.suffix == ".parquet":
            ids += pq.read_table(path, columns=["id"])["id"].to_pylist()
        elif path.suffix == ".npy":
            assert len(np.load(path)) == pq.read_table(path.with_suffix(".parquet")).num_rows
    return ids


def expected_ids(source: Path, format: str) -> list[str]:
    """The id of each row of the input, in order; worked out here from the bytes alone."""
    data = source.read_bytes()
    lines = (gzip.decompress(data) if source.suffix == ".gz" else data).splitlines()
    ids = []
    for number, line in enumerate(lines, start=1):
        keyed = format in ("csv", "npy") and line.endswith(b"}")
        ids.append(json.loads(line)["key"] if keyed else f"{source.name}:{number}")
    return ids


@pytest.fixture(scope="module", params=HOW_MANY)
def killer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    jobs, kills = request.param
    argv = (Path(__file__).parents[1] / "job_killer.py", tmp_path_factory.mktemp("killed"), SEED, jobs, kills)
    done = warm.start(*argv).wait(timeout=1000)
    assert done.returncode == 0, done.err[-4000:]
    return {**json.loads(done.out), "asked": request.param}


@pytest.fixture
def jobs(killer: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = killer["jobs"]
    return found


def test_there_were_enough_jobs_and_kills(killer: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
    assert len(jobs) >= killer["asked"][0]
    assert sum(job["kills"] for job in jobs) >= killer["asked"][1]
    assert {job["format"] for job in jobs} == {"jsonl", "csv", "parquet", "steps", "npy"}


def test_every_row_is_there_exactly_once_in_order(jobs: list[dict[str, Any]]) -> None:
    failed = 0
    for job in jobs:
        out, expected = Path(job["out"]), expected_ids(Path(job["source"]), job["format"])
        written, dead = written_ids(out, job["format"]), [letter["id"] for letter in dead_of(out)]
        assert sorted([*written, *dead]) == sorted(expected)
        assert len(set(expected)) == len(expected)
        place = {id: index for index, id in enumerate(expected)}
        assert [place[id] for id in written] == sorted(place[id] for id in written)
        assert [place[id] for id in dead] == sorted(place[id] for id in dead)
        failed += len(dead)
    assert failed >= len(jobs), "the seed gives poison rows to most jobs"


def test_the_bytes_are_those_of_an_undisturbed_run_and_nothing_is_left_over(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        out, whole = Path(job["out"]), Path(job["whole"])
        assert content_of(out) == content_of(whole)
        names = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
        assert names == sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
        assert not [name for name in names if name.endswith(".tmp")]
        counts = [json.loads((folder / "_manifest.json").read_bytes())["counts"] for folder in (out, whole)]
        assert counts[0] == counts[1]
        assert counts[0]["rows"] == counts[0]["written"] + counts[0]["dead"]


def test_a_kill_before_each_kind_of_write_sync_and_rename_was_survived(killer: dict[str, Any]) -> None:
    """What was compared after each is in job_killer.py; two shards of two files and dead letters take this many."""
    assert killer["steps"] > (40 if killer["asked"][0] > 5 else 10)


def test_the_command_is_killed_three_times_and_comes_to_its_end(tmp_path: Path) -> None:
    """The real command with the shipped checkpoint: once before its first shard, and twice amid its shards."""
    texts = tmp_path / "in.txt"
    texts.write_text("".join(f"film {i} was {'good' if i % 3 else 'dull'}\n" for i in range(200)))
    out, whole = tmp_path / "out", tmp_path / "whole"
    argv = ["-m", "pipeline_kit", "run", "--input", str(texts), "--quiet"]
    argv += ["device=cpu", "model.linear=eager", "output.rows_per_shard=4"]
    for shards in (0, 1, 12):
        process = warm.start(*argv, "--output", out)
        while process.poll() is None and not (out / "_lock").exists():
            time.sleep(0.001)
        while process.poll() is None and len(receipts(out)) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait().returncode == -signal.SIGKILL, process.err
        assert len(receipts(out)) >= shards
        assert not (out / "_SUCCESS").exists()
    for folder in (out, whole):
        assert warm.run(*argv, "--output", folder).returncode == 0
    assert content_of(out) == content_of(whole)
    assert [row["id"] for row in lines_of(out)] == [f"in.txt:{i + 1}" for i in range(200)]
    assert not list(out.rglob("*.tmp"))


def receipts(out: Path) -> list[Path]:
    return list(out.glob("_receipts/*.json"))
