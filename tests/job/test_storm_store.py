"""Whole jobs from a store to it, with requests that fail, and killed: a folder's bytes, and nothing written twice."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import warm
from echo_job import content_of
from fault_proxy import fault_proxy, share_of_requests
from harness import checkpoint, cli
from s3_server import S3Server, s3_server, s3_variables

from pipeline_kit.files.storage import retries
from pipeline_kit.files.storage.local import storage_of

pytestmark = pytest.mark.storm

SHARE, SEEDS = 0.2, range(10)
FAULTY = Path(__file__).parents[1] / "faulty_stages.py"
HASTY = """
from pipeline_kit.files.storage import retries
retries.FIRST_DELAY = 0.001

def register(registry):
    pass
"""
STEP = 7
"""How many requests further each run gets that is killed."""
ONCE = re.compile(r"out/(part-|_dead/part-|_receipts/part-|_plan/|_ledger/)")
"""What is written once, by whom ever; the books are written anew, and the lock and the probe are removed."""


class Expected(NamedTuple):
    """The files of a job in a local folder, and what a retry makes of them."""

    before: dict[str, bytes]
    after: dict[str, bytes]


class Bench:
    """The input of all jobs, on this machine and in a store, and what a job makes of it in a local folder."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self.folder, self.server = folder, server
        self.hasty = folder / "hasty.py"
        self.hasty.write_text(HASTY)
        server.bucket("input")
        for number, rows in enumerate((9, 6)):
            path = folder / f"in-{number}.jsonl"
            texts = [f"row {n} of {number}" + " ~fail" * (n == 2) + " 😀" * (n % 3) for n in range(rows)]
            path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
            storage_of("s3://input").create(f"s3://input/{path.name}", path.read_bytes())
        self.expected = {format: self._expected(format) for format in ("jsonl", "parquet")}

    def words(self, source: str, out: str, format: str, *more: str) -> list[object]:
        """Return the command."""
        words = ("--plugin", FAULTY, "--plugin", self.hasty, "tokenizer=faulty", "postprocessor=faulty", "device=cpu")
        options = ("output.rows_per_shard=4", "job.max_failed_rows=null", f"output.format={format}")
        where = ("--input", f"{source}/in-*.jsonl", "--output", f"{out}/", f"checkpoint.path={checkpoint()}")
        return ["run", "--quiet", *where, *words, *options, *more]

    def run(self, source: str, out: str, format: str, *more: str) -> int:
        """Run the command; return its exit code."""
        done = cli(*self.words(source, out, format, *more))
        assert done.code in (0, 1), done.err
        return done.code

    def there(self, bucket: str) -> dict[str, bytes]:
        """Return the shards and dead letters of the job in a bucket."""
        found = {key.removeprefix("out/"): data for key, data in self.server.contents(bucket).items()}
        return {key: data for key, data in found.items() if key.startswith(("part-", "_dead/part-"))}

    def twice(self, bucket: str) -> dict[str, int]:
        """Return what was written more than once, and may not be."""
        return {key: count for key, count in self.server.versions(bucket).items() if ONCE.match(key) and count != 1}

    def _expected(self, format: str) -> Expected:
        out = self.folder / f"out-{format}"
        assert self.run(str(self.folder), str(out), format) == 1
        before = content_of(out)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAULTS_MENDED", "1")
            assert self.run(str(self.folder), str(out), format, "--retry") == 0
        return Expected(before, content_of(out))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        patch.setattr(retries, "FIRST_DELAY", retries.FIRST_DELAY)  # the plugin changes it
        yield Bench(tmp_path_factory.mktemp("storm"), server)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fifth_of_all_requests_may_fail(bench: Bench, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Two of the jobs have two workers; of half of them the failed rows are run again."""
    name, format, workers = f"storm-{seed}", ("jsonl", "parquet")[seed % 3 == 0], 1 + (seed % 5 == 0)
    bench.server.bucket(name)
    expected = bench.expected[format]
    with fault_proxy(bench.server.address, share_of_requests(SHARE, seed)) as proxy, s3_variables(proxy.address):

        def run(*more: str) -> Any:
            return bench.run("s3://input", f"s3://{name}/out", format, f"runner.workers={workers}", *more)

        assert run() == 1
        assert bench.there(name) == expected.before
        if seed % 2 == 0:
            monkeypatch.setenv("FAULTS_MENDED", "1")
            assert run("--retry") == 0
            assert bench.there(name) == expected.before | expected.after, "what a store holds is not removed"
    assert "out/_SUCCESS" in bench.server.contents(name)
    assert not bench.twice(name)
    total = sum(proxy.seen.values())
    assert 0.1 < 1 - proxy.seen["none"] / total < 0.3, proxy.seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills as POSIX has them")
def test_the_command_may_be_killed_at_any_request(bench: Bench) -> None:
    """By SIGKILL, before the store has the request or after; each run gets some requests further than the last."""
    bench.server.bucket("killed")
    process, seen, last = list[warm.Process](), 0, 0

    def choose(method: str, path: str, conditional: bool) -> str | None:
        nonlocal seen
        seen += 1
        if seen != last:
            return "cut" if seen > last else None
        os.kill(process[-1].pid, signal.SIGKILL)
        return ("cut", "lost")[last // STEP % 2]

    with fault_proxy(bench.server.address, choose) as proxy, s3_variables(proxy.address):
        for more, variables, code in ((), {}, 1), (("--retry",), {"FAULTS_MENDED": "1"}, 0):
            kills, last = -1, 1
            while not process or process[-1].returncode != code:
                kills, last, seen = kills + 1, last + STEP, 0
                words = bench.words("s3://input", "s3://killed/out", "jsonl", *more)
                process.append(warm.start("-m", "pipeline_kit", *words, **variables))
                assert process[-1].wait().returncode in (-signal.SIGKILL, code), process[-1].err
            assert kills > 4
            expected = bench.expected["jsonl"]
            assert bench.there("killed") == (expected.before | expected.after if more else expected.before)
    assert "out/_SUCCESS" in bench.server.contents("killed")
    assert not bench.twice("killed")
