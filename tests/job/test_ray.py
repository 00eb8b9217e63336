"""``runner=ray`` on a cluster of several nodes on this machine: deaths of all kinds, and the bytes of one process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from echo_job import content_of, dead_of, write_rows
from fault_proxy import FaultProxy, fault_proxy
from harness import checkpoint, cli
from ray_cluster import RayCluster, until
from s3_server import S3Server, s3_server, s3_variables

from pipeline_kit.errors import JobError, UsageError
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.job import manifest
from pipeline_kit.job.ledger import JobWatcher
from pipeline_kit.job.ray import RayRunner
from pipeline_kit.job.ray_cluster import RemoteWorker
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.run import JobSummary, run_job

pytestmark = pytest.mark.storm

PLUGIN = Path(__file__).parents[1] / "faulty_stages.py"


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[S3Server, FaultProxy]]:
    """An S3 server, and the proxy before it that notes all requests."""
    with s3_server() as server, fault_proxy(server.address, lambda *_: None) as proxy, s3_variables(proxy.address):
        yield server, proxy


@pytest.fixture(scope="module")
def running(store: object) -> Iterator[RayCluster]:
    """A cluster whose nodes have the variables that lead to the store."""
    found = RayCluster()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def cluster(running: RayCluster) -> Iterator[RayCluster]:
    running.have(2)
    yield running
    running.bury()


KEYED = """
from dataclasses import dataclass

from pipeline_kit import Postprocessor, option


@dataclass
class Config:
    api_key: str = option("", "for a service")


class Keyed(Postprocessor):
    def __init__(self, config, context):
        self.config = config

    def __call__(self, examples, encodings, outputs):
        if any("poison" in str(example) for example in examples):
            raise ValueError(f"cannot swallow this with {self.config.api_key}")
        return [{"label": "A", "score": 0.5} for example in examples]


def register(registry):
    registry.postprocessor("keyed", __name__ + ":Keyed", Config)
"""


class Events(JobWatcher):
    """Keeps what became of workers; lets a worker whose node was given up go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[str, Mapping[str, Any]]] = []

    def event(self, name: str, text: str, fields: Mapping[str, Any]) -> None:
        self.seen.append((name, fields))
        if name == "worker_lost" and fields["shard"] == 4:
            (self.folder / "raylet.go").touch()
        if name == "refused":
            (self.folder / "both.go").touch()

    def workers(self, counts: Mapping[str, int]) -> None:
        if counts["workers"] == 2:
            (self.folder / "both.go").touch()


def texts(folder: Path, faults: Mapping[int, str], rows: int = 40) -> Path:
    found = [{"id": f"r{i}", "text": f"row {i} is " + "good " * (i % 5), "n": i} for i in range(rows)]
    for place, fault in faults.items():
        found[place]["text"] = fault
    return write_rows(folder / "in.jsonl", found)


def words(*more: str) -> list[str]:
    given = ["device=cpu", "output.rows_per_shard=5", "input.id=id", "input.carry=[n]"]
    return [f"checkpoint.path={checkpoint()}", *given, "tokenizer=faulty", "postprocessor=faulty", *more]


def on(cluster: RayCluster, *more: str) -> list[str]:
    return ["runner=ray", f"runner.address={cluster.address}", "runner.workers=2", *more]


def job(source: Path | str, out: Path | str, *more: str, watcher: JobWatcher | None = None) -> JobSummary:
    return run_job(*words(*more), output=f"{out}/", files=str(source), plugins=[str(PLUGIN)], watcher=watcher)


def test_deaths_of_all_kinds_leave_the_bytes_of_one_process(tmp_path: Path, cluster: RayCluster) -> None:
    """A worker, a node whose worker lives on, and a whole node die, each with a shard in hand."""
    cluster.have(3)
    whom = {11: "worker", 21: "raylet", 31: "node"}
    faults = {place: f"~die {name} {tmp_path / name}" for place, name in whom.items()}
    source = texts(tmp_path, {3: "~fail postprocessor", 32: "~fail postprocessor", **faults})
    free = ("job.max_failed_rows=null", "output.format=parquet")
    for name in whom.values():
        (tmp_path / name).touch()
    one = job(source, tmp_path / "one", *free)
    for name in whom.values():
        (tmp_path / name).unlink()
    events = Events(tmp_path)
    many = job(source, tmp_path / "many", *free, *on(cluster, "runner.speculate=false"), watcher=events)
    assert content_of(tmp_path / "many") == content_of(tmp_path / "one")
    assert (many.rows, many.dead, many.complete) == (one.rows, one.dead, True) == (40, 2, True)
    lost = {fields["shard"]: fields for name, fields in events.seen if name == "worker_lost"}
    assert {2, 4, 6} <= lost.keys()
    assert all(lost[number]["node"] and lost[number]["attempt"] == 1 for number in (2, 4, 6))
    assert events.seen[-1][0] == "workers"


def test_a_job_goes_on_after_its_driver_was_killed(tmp_path: Path, cluster: RayCluster) -> None:
    """The command line as users have it, killed in the middle of a shard; then a budget that is exact."""
    faults = {6: f"~die nobody {tmp_path / 'flag'}", 12: "~fail a", 16: "~fail b", 22: "~fail c"}
    source, out = texts(tmp_path, faults, 30), tmp_path / "out"
    options = [*words("job.max_failed_rows=2"), *on(cluster, "runner.workers=1"), "--plugin", str(PLUGIN)]
    argv = [sys.executable, "-m", "pipeline_kit", "run", "--input", str(source), "--output", f"{out}/", *options]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as driver:
        until(lambda: (tmp_path / "flag").exists() or driver.poll() is not None, 200)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, driver.stderr and driver.stderr.read()
    assert (out / "_receipts" / "part-00000.json").exists()
    again = subprocess.run(argv, capture_output=True, text=True)
    assert again.returncode == 1, again.stderr
    assert "job.max_failed_rows=2 allows no more" in again.stderr
    assert again.stdout == ""
    assert [row["id"] for row in dead_of(out)] == ["r12", "r16"]


def objects_of(server: S3Server, bucket: str) -> dict[str, bytes]:
    """Return the shards and dead letters of the job ``out``; see that none of its objects was written again."""
    written = {name: count for name, count in server.versions(bucket).items() if "/part-" in name}
    assert set(written.values()) == {1}, written
    found = {name.removeprefix("out/"): data for name, data in server.contents(bucket).items()}
    assert found["_SUCCESS"] == b""
    return {name: data for name, data in found.items() if name.startswith(("part-", "_dead/part-"))}


def test_a_job_in_a_store_survives_all_who_work_on_it(
    tmp_path: Path, store: tuple[S3Server, FaultProxy], cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies; a node whose worker goes on when its shard is there; the driver. The next run indexes nothing."""
    cluster.have(3)
    server, _ = store
    url = server.bucket("deaths")
    whom = {11: "worker", 21: "raylet", 36: "nobody"}
    faults = {place: f"~die {name} {tmp_path / name}" for place, name in whom.items()}
    source = texts(tmp_path, {3: "~fail postprocessor", 32: "~fail postprocessor", **faults})
    storage_of(url).create(f"{url}/in.jsonl", source.read_bytes())
    for name in whom.values():
        (tmp_path / name).touch()
    one = job(source, tmp_path / "one", "job.max_failed_rows=null")
    for name in whom.values():
        (tmp_path / name).unlink()
    options = ["job.max_failed_rows=null", *on(cluster, "runner.speculate=false")]
    argv = [sys.executable, "-m", "pipeline_kit", "run", "--input", f"{url}/in.jsonl", "--output", f"{url}/out/"]
    with subprocess.Popen([*argv, *words(*options), "--plugin", str(PLUGIN)], stderr=subprocess.PIPE) as driver:
        try:
            until(lambda: "out/_receipts/part-00004.json" in server.versions("deaths"), 200)
            (tmp_path / "raylet.go").touch()
            until((tmp_path / "nobody").exists)
        finally:
            driver.kill()
        assert driver.wait() == -signal.SIGKILL, driver.stderr and driver.stderr.read()
    called, call = list[str](), RemoteWorker.call

    def noted(worker: RemoteWorker, method: str, *args: Any) -> Any:
        called.append(method)
        return call(worker, method, *args)

    monkeypatch.setattr(RemoteWorker, "call", noted)
    again = job(f"{url}/in.jsonl", f"{url}/out", *options)
    assert objects_of(server, "deaths") == content_of(tmp_path / "one")
    assert (again.rows, again.dead) == (one.rows, one.dead) == (40, 2)
    assert "make" in called
    assert "index" not in called


class Gates(JobWatcher):
    """Lets the worker that is slow with shard 0 go on when another has made it, and waits until it has written."""

    def __init__(self, folder: Path, proxy: FaultProxy) -> None:
        self.folder, self.proxy = folder, proxy

    def shard(self, receipt: Receipt) -> None:
        if receipt.shard == 0:
            (self.folder / "zero.go").touch()
            until(lambda: ("GET", "/slow/out/_receipts/part-00000.json") in self.proxy.requests)


def test_a_slow_shard_is_taken_over_and_counts_once(
    tmp_path: Path, store: tuple[S3Server, FaultProxy], cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three workers stop, each in a shard; the third makes both, and writes the last after the late result."""
    cluster.have(3)
    server, proxy = store
    url = server.bucket("slow")
    faults = {1: "zero", 6: "one", 7: "late"}
    source = texts(tmp_path, {place: f"~die nobody {tmp_path / name}" for place, name in faults.items()}, 20)
    for name in faults.values():
        (tmp_path / name).touch()
    job(source, tmp_path / "local")
    for name in faults.values():
        (tmp_path / name).unlink()
    receive = RayRunner._receive

    def watched(runner: RayRunner, ref: Any) -> Any:
        found = receive(runner, ref)
        if (tmp_path / "zero.go").exists() and not any(0 in worker.tasks for worker in runner._workers):
            (tmp_path / "late.go").touch()
        return found

    monkeypatch.setattr(RayRunner, "_receive", watched)
    done = job(source, f"{url}/out", *on(cluster, "runner.workers=3"), watcher=Gates(tmp_path, proxy))
    assert not (tmp_path / "one.go").exists()
    assert objects_of(server, "slow") == content_of(tmp_path / "local")
    assert done.rows == done.written == done.stats.rows == 20


def test_a_stage_that_hangs_costs_its_own_row_alone(tmp_path: Path, cluster: RayCluster) -> None:
    options = on(cluster, "runner.batch_timeout=5", "job.max_failed_rows=null", "runner.workers=1")
    done = job(texts(tmp_path, {6: "~hang"}, 10), tmp_path / "out", *options)
    assert (done.rows, done.dead) == (10, 1)
    assert [(row["id"], row["error"]) for row in dead_of(tmp_path / "out")] == [("r6", "StageTimeout")]


def test_a_shard_that_costs_every_worker_is_named(tmp_path: Path, cluster: RayCluster) -> None:
    source = texts(tmp_path, {6: "~kill"}, 10)
    with pytest.raises(JobError, match=r"2 workers were lost: shard 1 \(runner.attempts=2\)"):
        job(source, tmp_path / "out", *on(cluster, "runner.attempts=2", "runner.workers=1"))


def test_what_differs_on_a_worker_is_refused(
    tmp_path: Path, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "LIBRARIES", ("torch", "numpy"))
    with pytest.raises(UsageError, match=r"versions\.numpy: [\d.]+ here, nothing there"):
        job(texts(tmp_path, {}, 10), tmp_path / "out", *on(cluster))
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["_lock"]


def test_what_workers_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*more: str, **given: Any) -> None:
        run_job(*words("runner=ray", *more), output=f"{tmp_path}/out/", plugins=[str(PLUGIN)], **given)

    source = texts(tmp_path, {}, 10)
    with pytest.raises(UsageError, match=r"write the rows to a file"):
        run(rows=["a text"])
    with pytest.raises(UsageError, match=re.escape("add runner.gpus_per_worker=1")):
        run("device=cuda", files=str(source))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'pipeline-kit[ray]'")):
        run(files=str(source))
    assert not (tmp_path / "out").exists()


def test_no_secret_is_in_the_state_of_the_cluster(tmp_path: Path, cluster: RayCluster) -> None:
    """The head keeps arguments of constructors, command lines and errors in its memory; nodes write logs."""
    secret = "canary8f3a1bd52c"
    (tmp_path / "keyed.py").write_text(KEYED)
    source = texts(tmp_path, {3: f"poison {secret}"}, 10)
    argv = [*words("postprocessor=keyed", f"postprocessor.api_key={secret}"), *on(cluster, "runner.workers=1")]
    argv += ["--plugin", str(PLUGIN), "--plugin", str(tmp_path / "keyed.py")]
    command = ["run", "--input", str(source), "--output", f"{tmp_path}/out/", *argv]
    done = subprocess.run([sys.executable, "-m", "pipeline_kit", *command], capture_output=True, text=True)
    assert done.returncode == 1, "a row fails, and none may"
    assert secret not in done.stdout + done.stderr
    assert cluster.holds(words=[secret, "RayWorker"]) == ["RayWorker"]


def test_doctor_compares_the_nodes_with_this_process(cluster: RayCluster) -> None:
    done = cli("doctor", "--ray", cluster.address)
    assert done.code == 0, done.out
    assert done.out.count("versions as here") == 1 + len(cluster.nodes())
    assert cli("doctor", "--ray", "127.0.0.1:1").code == 1


def test_kinds_of_machines_are_mixed_only_when_that_is_allowed(tmp_path: Path, cluster: RayCluster) -> None:
    """One of two nodes may use no vectors. A shard waits until both workers have loaded, or one was refused."""
    for node in cluster.nodes()[1:]:
        cluster.kill(node)
    cluster.bury()
    before = cluster.nodes()
    cluster.have(2, ATEN_CPU_CAPABILITY="default")
    (odd,) = (node for node in cluster.nodes() if node not in before)
    source = texts(tmp_path, {6: f"~die nobody {tmp_path / 'both'}"}, 40)
    events, resolved = Events(tmp_path), {}
    try:
        for mixed in ("refuse", "allow"):
            for name in ("both", "both.go"):
                (tmp_path / name).unlink(missing_ok=True)
            options = on(cluster, f"runner.mixed={mixed}", "runner.speculate=false")
            assert job(source, tmp_path / mixed, *options, watcher=events).rows == 40
            resolved[mixed] = json.loads((tmp_path / mixed / "_manifest.json").read_text())["resolved"]
    finally:
        cluster.kill(odd)
    assert [name for name, _ in events.seen].count("refused") == 1
    assert "other_machines" not in resolved["refuse"]
    kinds = [resolved["allow"]["machine"], *resolved["allow"]["other_machines"]]
    assert len({kind["kernels"] for kind in kinds}) == len(kinds) == 2
