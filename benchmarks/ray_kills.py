"""Jobs on a Ray cluster of this machine whose workers, nodes, raylets and drivers are killed.

    python benchmarks/ray_kills.py [--jobs 16] [--kills 4] [--rows 600]

A job for each of `CASES`: in local folders and in an S3 server (moto) whose bucket keeps versions; from files of each
format, with and without ids of their own, two of a hundred of which are equal; to JSON lines and Parquet. It is run as
the command line runs it, and is killed so often: a worker, a whole node, what speaks for a node while its worker lives
on, or the driver, in turns. A driver that was killed is started again with the same command. Then the bytes of every
shard and the exit code are compared with those of ``runner=local`` in a local folder, every id is counted, and no
file or object of a shard may have been written twice.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from common.script import Measurement, finish, flags, tell
from common.texts import labelled

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from ray_cluster import RayCluster, until
from s3_server import S3Server, s3_server

from pipeline_kit.cli.app import main
from pipeline_kit.errors import JobError
from pipeline_kit.files.storage.base import Version
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.job.folder import SUCCESS
from pipeline_kit.job.store import folder_of

KINDS = ("worker", "node", "raylet", "driver")
SHARD, NODES = 20, 3
SECONDS = 900
BUCKET = "kills"
Rows = Sequence[Mapping[str, str]]


def json_lines(rows: Rows) -> bytes:
    """Write rows as lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_table(rows: Rows) -> bytes:
    """Write rows as CSV, with line ends in quotes."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id", "text"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    """Write rows as Parquet, in groups that end inside of shards."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([*rows]), file, row_group_size=50)
    return file.getvalue()


INPUTS: Mapping[str, Callable[[Rows], bytes]] = {
    "jsonl": json_lines,
    "csv": csv_table,
    "jsonl.gz": lambda rows: gzip.compress(json_lines(rows)),
    "parquet": parquet,
}
ALL = product(("s3", "folder"), INPUTS, ("jsonl", "parquet"), ("id", "null"))
CASES = [case for place, case in enumerate(ALL) if place.bit_count() % 2 == 0]
"""Where, from what, to what, and ``input.id``: half of all, among them each combination of any three."""


@dataclass
class Job:
    """A job as a command, and what is seen of it."""

    command: Sequence[str]
    output: str
    driver: subprocess.Popen[bytes] | None = None
    files: dict[str, Version] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """Start the driver, once more if it was killed."""
        argv = [sys.executable, "-m", "pipeline_kit", *self.command]
        self.driver = subprocess.Popen(argv, stderr=subprocess.PIPE)

    def shards(self) -> int:
        """Count the shards that are done; see that no file of one changed."""
        folder = folder_of(self.output)
        done = {number for _, number in folder.receipt_names()}
        for number, name, status in folder.files():
            if number in done and self.files.setdefault(name, status.version) != status.version:
                raise JobError(f"{self.output}/{name} was written twice")
        return len(done)


def all_rows(count: int) -> Rows:
    """Return so many rows, every third with a line end and quotes; every hundredth has the id of the row before."""
    texts = islice(cycle(text for text, _ in labelled("short")), count)
    rows = [{"id": f"r{place - (place % 100 == 1)}", "text": text} for place, text in enumerate(texts)]
    return [{**row, "text": f'{row["text"]}\n"so it is", he said'} if n % 3 == 0 else row for n, row in enumerate(rows)]


def write_input(folder: Path, bucket: str, rows: Rows) -> None:
    """Write the rows in each format, to three files each that end inside of shards; to a folder and a bucket."""
    size = len(rows) // 3 + SHARD // 3
    for form, encoded in INPUTS.items():
        (folder / form).mkdir(parents=True)
        for place in range(0, len(rows), size):
            path = folder / form / f"rows-{place:06d}.{form}"
            path.write_bytes(encoded(rows[place : place + size]))
            storage_of(bucket).create(f"{bucket}/in/{form}/{path.name}", path.read_bytes())


def kill(kind: str, job: Job, cluster: RayCluster) -> None:
    """End something at once."""
    if kind == "driver":
        assert job.driver is not None
        job.driver.kill()
        job.driver.wait()
        job.start()
    else:
        worker = random.choice(until(cluster.workers, SECONDS))
        raylet = psutil.Process(worker.info["ppid"])
        others = [process for process in raylet.children() if kind == "node"]
        for victim in [worker] if kind == "worker" else [raylet, *others]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        cluster.have(NODES)
    job.kills[kind] += 1


def measure(jobs: int, kills: int, rows: int) -> list[Measurement]:
    """Run the jobs."""
    random.seed(15)
    with tempfile.TemporaryDirectory() as work, s3_server() as server:
        places = {"folder": work, "s3": server.bucket(BUCKET)}
        write_input(Path(work) / "in", places["s3"], all_rows(rows))
        totals, seconds, cluster = Counter[str](), [], RayCluster()

        try:
            for number, (where, form, to, id) in enumerate(random.sample(CASES, jobs)):
                cluster.have(NODES)
                local, out = f"{work}/local-{number}", f"{places[where]}/job-{number}"
                code = main(command(work, form, to, id, local))
                options = ["runner=ray", f"runner.address={cluster.address}", "runner.workers=2", "runner.attempts=20"]
                job = Job([*command(places[where], form, to, id, out), *options], out)
                begun = time.monotonic()
                run(job, cluster, kills, rows // SHARD, number)
                seconds.append(time.monotonic() - begun)
                compare(job, local, code, rows)
                check_versions(server)
                totals += job.kills
                cluster.bury()
                tell(
                    f"job {number}, {where}, {form} to {to}, input.id={id}: {job.kills.total()} killed, "
                    f"{seconds[-1]:.0f} s, the bytes of the local job, exit code {code}"
                )
        finally:
            cluster.close()
    rows_shown = [[kind, totals[kind]] for kind in KINDS]
    rows_shown += [["jobs with the bytes of runner=local", jobs], ["longest job, s", round(max(seconds))]]
    title = f"{jobs} jobs of {rows:,} rows on a Ray cluster, {totals.total()} kills"
    return [{"name": "ray_kills", "title": title, "kind": "table", "columns": ["what", "count"], "rows": rows_shown}]


def command(place: str, form: str, to: str, id: str, out: str) -> list[str]:
    """Return the arguments of a job on the command line."""
    options = ["device=cpu", "model.linear=packed", "input.carry=[]", "job.max_failed_rows=null"]
    options += [f"input.id={id}", f"output.format={to}", f"output.rows_per_shard={SHARD}"]
    files = ["--input", f"{place}/in/{form}/*.{form}", "--output", f"{out}/"]
    return ["run", "--quiet", *files, *options]


def run(job: Job, cluster: RayCluster, kills: int, shards: int, first: int) -> None:
    """Run a job to its end and kill something after every few shards."""
    job.start()
    at = [shards * (place + 1) // (kills + 1) for place in range(kills)]
    end = time.monotonic() + SECONDS
    for place, number in enumerate(at):
        while job.shards() < number:
            assert job.driver is not None
            if job.driver.poll() is not None or time.monotonic() > end:
                raise JobError(f"the driver ended early: {job.driver.communicate()[1].decode()[-2000:]}")
            time.sleep(0.2)
        kill(KINDS[(first + place) % len(KINDS)], job, cluster)
    assert job.driver is not None
    job.driver.wait(SECONDS)
    job.shards()


def compare(job: Job, local: str, code: int, rows: int) -> None:
    """See that a job has the files of the local one, each id once, and its exit code."""
    here, there = content(job.output), content(local)
    if here != there:
        raise JobError(f"{sorted(name for name in {*here, *there} if here.get(name) != there.get(name))} differ")
    ids = Counter(id for name, data in here.items() for id in ids_of(name, data))
    if ids.total() != rows or len(ids) != rows:
        raise JobError(f"{rows} rows, but {ids.total()} ids, {len(ids)} of them different")
    assert job.driver is not None
    if job.driver.returncode != code or not folder_of(job.output).exists(SUCCESS):
        raise JobError(f"exit code {job.driver.returncode}, not {code}, or no {SUCCESS}")


def content(output: str) -> Mapping[str, bytes]:
    """Read all files of shards and dead letters."""
    folder = folder_of(output)
    return {name: folder.read(name) for _, name, _ in folder.files()}


def ids_of(name: str, data: bytes) -> list[Any]:
    """Return the ids in a shard or in dead letters."""
    if name.endswith(".parquet"):
        return list(pq.read_table(io.BytesIO(data))["id"].to_pylist())
    return [json.loads(line)["id"] for line in data.splitlines()]


def check_versions(server: S3Server) -> None:
    """See that no object of a shard was written again or deleted."""
    again = [key for key, count in server.versions(BUCKET).items() if "/part-" in key and count > 1]
    if again:
        raise JobError(f"{again} were written twice")


if __name__ == "__main__":
    parser = flags(__doc__)
    parser.add_argument("--jobs", metavar="N", type=int, default=len(CASES), help=f"default: {len(CASES)}, a case each")
    parser.add_argument("--kills", metavar="N", type=int, default=4, help="of each job; default: 4")
    parser.add_argument("--rows", metavar="N", type=int, default=600, help="default: 600")
    given = parser.parse_args()
    finish(given, "ray_kills", lambda: measure(given.jobs, given.kills, given.rows))
