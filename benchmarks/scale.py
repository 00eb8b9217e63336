"""What a job costs beyond its stages: the process that keeps the books, the books, a store, a cluster.

    python benchmarks/scale.py [parent driver ledger memory store ray] [--rows N] [--long-rows N] [--timed-rows N]
        [--shards N] [--books N]

``parent``: CPU of the process of a job with two workers, by row. ``driver``: the same with ``runner=ray``, by shard.
Their stages do nothing. ``ledger``: the books of many shards with a dead row each. ``memory``: how the process of a
long job from and to an S3 server grows after its first 100,000 rows, with the static checkpoint. ``store``: a job
from and to an S3 server against one in local folders, with the same. ``ray``: two workers of a cluster against two of
one machine, with the shipped transformer. These two need a machine where nothing else runs; the others count CPU time
and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import sha256
from itertools import count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from common.script import Measurement, finish, flags, tell
from common.texts import labelled

from pipeline_kit.bench.machine import paired_ratio
from pipeline_kit.bench.rounds import turns
from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, RowFailure
from pipeline_kit.files.read.plan import Stretch
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.job.ledger import JobLedger, JobWatcher
from pipeline_kit.job.manifest import Manifest
from pipeline_kit.job.ray_cluster import join
from pipeline_kit.job.receipt import Receipt, shard_name
from pipeline_kit.job.run import run_job
from pipeline_kit.job.shard import DeadLetter, ShardOffer, ShardResult
from pipeline_kit.job.store import folder_of
from pipeline_kit.runtime.config import JobConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ROWS, FEW_ROWS, TIMED_ROWS, SHARDS, BOOKS, FEW_BOOKS = 400_000, 4_000, 20_000, 2_000, 100_000, 2_000
LONG_ROWS, FIRST_ROWS = 1_000_000, 100_000
SHARD_ROWS, WORDS = 5, 5
PLUGIN = Path(__file__).parent / "common" / "empty_stages.py"
CHILD = (sys.executable, str(Path(__file__).resolve()), "--child")
EMPTY = ("tokenizer=empty", "model=empty", "postprocessor=empty", "device.threads=1")


class Moments(JobWatcher):
    """Notes the time and this process's CPU after each shard."""

    def __init__(self) -> None:
        """Begin without shards."""
        self._at: list[tuple[float, float]] = []

    def shard(self, receipt: Receipt) -> None:
        """Note one more shard."""
        self._at.append((time.monotonic(), cpu()))

    def after(self, shards: int) -> tuple[float, ...]:
        """Return the seconds and CPU seconds after this many shards."""
        return tuple(end - begin for begin, end in zip(self._at[shards - 1], self._at[-1], strict=True))


class Sizes(JobWatcher):
    """Notes the largest size of this process when the first rows are done, and the rows that there are now."""

    def __init__(self, first: int) -> None:
        """Wait for so many rows."""
        self._first, self._rows, self.at_first = first, 0, 0

    def shard(self, receipt: Receipt) -> None:
        """Count the rows of one more shard."""
        self._rows += receipt.rows
        if self._rows >= self._first and not self.at_first:
            self.at_first = peak()


def peak() -> int:
    """Return the largest size that this process had in memory, in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def cpu() -> float:
    """Return the CPU seconds of this process, all threads, not of its children."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rows_file(folder: Path, rows: int) -> Path:
    """Write so many short rows with ids."""
    path = folder / f"rows-{rows}.jsonl"
    texts = cycle(" ".join(text.split()[:WORDS]) for text, _ in labelled("short"))
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": f"r{n}", "text": text}) + "\n" for n, text in enumerate(islice(texts, rows)))
    return path


def job(source: str, output: str, *words: str, empty: bool = False, watcher: JobWatcher | None = None) -> Any:
    """Run a job; `empty` with stages that do nothing."""
    given, plugins = ((*EMPTY, *words), [str(PLUGIN)]) if empty else (words, [])
    return run_job(
        "device=cpu",
        "batching.deduplicate=false",
        *given,
        output=output,
        files=source,
        plugins=plugins,
        watcher=watcher,
    )


def in_child(part: str, **given: Any) -> dict[str, Any]:
    """Run a function of this file in a fresh process."""
    done = subprocess.run([*CHILD, part, "--given", json.dumps(given)], capture_output=True, text=True)
    if done.returncode != 0:
        raise JobError(f"{part} failed: {done.stderr.strip()[-1500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def parent_child(jobs: list[int], words: list[str]) -> dict[str, Any]:
    """Return the CPU seconds of this process for jobs of so many rows each, one after another."""
    used: list[float] = []
    with TemporaryDirectory() as folder:
        for rows in jobs:
            source, begun = rows_file(Path(folder), rows), cpu()
            job(str(source), f"{folder}/out-{len(used)}", "runner.workers=2", *words, empty=True)
            used.append(cpu() - begun)
    return {"used": used}


def parent(args: argparse.Namespace, work: Path) -> Measurement:
    """Take the CPU of the parent for many rows less that for few, after a job that imports what they need."""
    few, many = (50, 200) if args.quick else (FEW_ROWS, args.rows)
    shown = []
    for id in ("id",) if args.quick else ("null", "id"):
        tell(f"parent, input.id={id}")
        used = in_child("parent", jobs=[few, many] if args.quick else [few, few, many], words=[f"input.id={id}"])[
            "used"
        ]
        each = (used[-1] - used[-2]) / (many - few) * 1e6
        shown.append([f"input.id={id}", *(round(seconds, 3) for seconds in used[-2:]), round(each, 2)])
    title = "CPU of the parent, runner.workers=2, JSONL, stages that do nothing; goal: under 2 us a row"
    return table("parent", title, ("", f"{few:,} rows, s", f"{many:,} rows, s", "us a row"), shown)


def driver_child(address: str, shards: int) -> dict[str, Any]:
    """Return the seconds and CPU seconds of this process while most shards are made."""
    watcher, first = Moments(), min(100, shards // 4)
    words = ["runner=ray", f"runner.address={address}", "runner.workers=2", f"output.rows_per_shard={SHARD_ROWS}"]
    with TemporaryDirectory() as folder:
        source = rows_file(Path(folder), shards * SHARD_ROWS)
        job(str(source), f"{folder}/out", *words, empty=True, watcher=watcher)
    seconds, used = watcher.after(first)
    return {"shards": shards - first, "seconds": seconds, "cpu": used}


def idle_child(address: str, seconds: float) -> dict[str, Any]:
    """Return the CPU seconds of a process that has joined a cluster and waits."""
    join(address)
    begun = cpu()
    time.sleep(seconds)
    return {"cpu": cpu() - begun}


def cluster() -> Any:
    """Run a cluster of two nodes on this machine."""
    from ray_cluster import RayCluster

    running = RayCluster()
    running.have(2)
    return closing(running)


def driver(args: argparse.Namespace, work: Path) -> Measurement:
    """Take the CPU of the driver by shard, less that of one that has nothing to do."""
    shards = 8 if args.quick else args.shards
    tell(f"driver, {shards:,} shards")
    with cluster() as running:
        busy = in_child("driver", address=running.address, shards=shards)
        idle = in_child("idle", address=running.address, seconds=busy["seconds"])
    each = (busy["cpu"] - idle["cpu"]) / busy["shards"] * 1e3
    shown = [[busy["shards"], round(busy["seconds"], 1), *(round(x["cpu"], 2) for x in (busy, idle)), round(each, 3)]]
    title = f"CPU of the driver, runner=ray, 2 workers, shards of {SHARD_ROWS} rows; goal: under 2 ms a shard"
    return table("driver", title, ("shards", "seconds", "CPU s", "of an idle driver, s", "ms a shard"), shown)


def books_child(key: str, shards: int, memory: bool) -> dict[str, Any]:
    """Keep the books of shards with a dead row each, and open them again; count CPU seconds.

    :param memory: count the bytes that Python has, too: of books that are kept while nothing but them is written, and
        of those that are opened.
    """
    _, first, last = _books(key, shards)
    found: dict[str, Any] = {"first": first, "last": last, "bytes": ()}
    at, begun = time.perf_counter(), cpu()
    with _opened(key) as again:
        found |= {"opened": time.perf_counter() - at, "opened_cpu": cpu() - begun}
        if (again.done.count, again.done.dead) != (shards, shards):
            raise JobError(f"{again.done.count} shards of {shards} are there again")
    del again
    if memory:
        tracemalloc.start()
        with _opened(key) as again:
            found["bytes"] = tracemalloc.get_traced_memory()
        tracemalloc.clear_traces()
        del again
        again = _books(f"{key}-kept", shards, write=False)[0]
        for name in storage_of(key).files(f"{key}-kept/_ledger"):  # the store holds Python's bytes
            storage_of(key).delete(f"{key}-kept/_ledger/{name}")
        found["bytes"] += (tracemalloc.get_traced_memory()[0],)
    return found


@contextmanager
def _opened(key: str) -> Iterator[JobLedger]:
    folder = folder_of(key)
    folder.claim()
    with folder.locked(60):
        yield JobLedger(folder, Manifest({"input": [], "config": {}}), JobConfig(10**9), JobWatcher())


def _books(key: str, shards: int, *, write: bool = True) -> tuple[JobLedger, float, float]:
    """Take up so many shards; return the CPU seconds by shard in the first tenth and in the last."""
    tenth, at, rows = max(1, shards // 10), [], 10
    counts = dict.fromkeys(("truncated_rows", "windows", "batches", "tokens", "retries", "slots"), 1)
    folder = folder_of(key)
    stretches = (Stretch(n * rows, n * rows + 9, rows, 0, n * rows, None, {}) for n in range(shards))
    with _opened(key) as ledger:
        for task in ledger.missing(stretches):
            number, first = task.number, task.number * rows
            if number % tenth == 0:
                at.append(cpu())
            letter = DeadLetter(f"r{first}", first, RowFailure(first, "model", "ValueError", "no result"))
            ledger.agree(ShardOffer(number, rows, 1, letter, {"id": "string", "label": "string"}))
            contents = {f"{shard_name(number)}.jsonl": b"x", f"_dead/{shard_name(number)}.jsonl": letter.line.encode()}
            files = {name: sha256(data).hexdigest() for name, data in contents.items()}
            sizes = {name: len(data) for name, data in contents.items()}
            receipt = Receipt(ledger.key, number, first, first + 9, rows, rows - 1, 1, files, sizes, counts)
            if write:
                folder.write_shard(receipt, contents, None)
            ledger.keep(ShardResult(number, receipt, None, ledger.schema, RunStats(rows=rows, failed=1)))
        at.append(cpu())
    return ledger, (at[1] - at[0]) / tenth, (at[-1] - at[-2]) / tenth


@contextmanager
def s3() -> Iterator[None]:
    """Run an S3 server in a process of its own, with one bucket, and set the variables that lead to it."""
    pipe, command = subprocess.PIPE, [*CHILD, "s3", "--given", "{}"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        with mock.patch.dict(os.environ, json.loads(server.stdout.readline())):
            yield


def s3_child() -> dict[str, Any]:
    """Serve until stdin is closed."""
    from s3_server import s3_server

    with s3_server() as server:
        server.bucket("bench")
        print(json.dumps({name: value for name, value in os.environ.items() if name.startswith("AWS_")}), flush=True)
        sys.stdin.read()
    return {}


def ledger(args: argparse.Namespace, work: Path) -> list[Measurement]:
    """Keep large books in memory, smaller ones in a folder and by an S3 server."""
    shards, few = (40, 20) if args.quick else (args.books, FEW_BOOKS)
    times, sizes = [], []
    with s3():
        for where, key, number in (
            ("memory://", "memory://bench/books", shards),
            ("memory://", "memory://bench/books", shards // 10),
            ("a local folder", str(work / "books"), few),
            ("s3:// by moto", "s3://bench/books", few),
        ):
            tell(f"books of {number:,} shards, {where}")
            found = in_child("books", key=key, shards=number, memory=where == "memory://")
            each = [round(found[name] * 1e3, 3) for name in ("first", "last")]
            times.append([where, number, *each, round(found["opened"], 2), round(found["opened_cpu"], 2)])
            sizes += [[number, *(round(size / 2**20, 1) for size in found["bytes"])]] if found["bytes"] else []
    columns = ("where", "shards", "ms a shard, first tenth", "last tenth", "opened again, s", "its CPU s")
    title = "Books of shards with a dead row each: CPU of ledger and writing; goal: as long at the end, open in 10 s"
    more = ("shards", "opened again, MiB", "at most while opening, MiB", "at the end of the job, MiB")
    held = "Memory of the books in memory://, of Python (tracemalloc); goal: under 50 MiB"
    return [table("ledger/time", title, columns, times), table("ledger/memory", held, more, sizes)]


def against(
    args: argparse.Namespace, work: Path, name: str, title: str, sides: Mapping[str, Callable[[Path], float]]
) -> Measurement:
    """Let two sides take turns, after an uncounted round, and hold the second against the first."""
    names, seconds, rounds = list(sides), {name: list[float]() for name in sides}, 1 if args.quick else args.rounds
    for number in range(-1, rounds):
        for place in turns(2, max(0, number)):
            with TemporaryDirectory(dir=work) as folder:
                seconds[names[place]].append(round(sides[names[place]](Path(folder)), 3))
        tell(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {seconds[n][-1]} s" for n in names))
    seconds = {name: counted for name, (_, *counted) in seconds.items()}
    ratio = paired_ratio(*seconds.values())
    parts = ("", f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    shown = [[side, ", ".join(map(str, seconds[side])), part] for side, part in zip(names, parts, strict=True)]
    return table(name, title, ("side", "seconds, by round", "its time as a part of the other's"), shown)


def memory_child(source: str, output: str, first: int) -> dict[str, Any]:
    """Return the largest size of this process, in bytes, after the first rows of a job and at its end."""
    watcher = Sizes(first)
    done = job(source, output, "input.id=id", "checkpoint=tiny_static", watcher=watcher)
    return {"rows": done.rows, "first": watcher.at_first, "end": peak()}


def memory(args: argparse.Namespace, work: Path) -> Measurement:
    """Run a long job from an S3 server to it in one process; see how much it grows after its first rows."""
    rows, first = (2_000, 1_000) if args.quick else (args.long_rows, FIRST_ROWS)
    source = rows_file(work, rows)
    there = f"s3://bench/{source.name}"
    with s3():
        storage_of(there).create(there, source.read_bytes())
        tell(f"memory, {rows:,} rows")
        found = in_child("memory", source=there, output="s3://bench/long", first=first)
    sizes = [round(found[name] / 2**20, 1) for name in ("first", "end")]
    shown = [[found["rows"], *sizes, round(sizes[1] - sizes[0], 1)]]
    title = "Largest size of a job's process, s3:// by moto to s3://, short rows, input.id=id; goal: 50 MiB of growth"
    return table("memory", title, ("rows", f"after {first:,}, MiB", "at the end, MiB", "growth, MiB"), shown)


def store(args: argparse.Namespace, work: Path) -> Measurement:
    """Run a job from an S3 server to it, and one from a folder to a folder, by turns.

    With the static checkpoint, whose rows take the least time, so that the store's share is largest.
    """
    rows, numbers = 30 if args.quick else args.timed_rows, count()
    source = rows_file(work, rows)
    there, static = f"s3://bench/{source.name}", "checkpoint=tiny_static"
    with s3():
        storage_of(there).create(there, source.read_bytes())
        sides: dict[str, Callable[[Path], float]] = {
            "local folders": lambda folder: float(job(str(source), str(folder / "out"), static).seconds),
            "s3://": lambda _: float(job(there, f"s3://bench/out-{next(numbers)}", static).seconds),
        }
        title = f"s3:// by moto against local folders, {rows:,} short rows, after loading; goal: at most 1.08"
        return against(args, work, "store", title, sides)


def ray(args: argparse.Namespace, work: Path) -> Measurement:
    """Run a job on two workers of a cluster, and on two of this machine, by turns; the shipped checkpoint."""
    rows = 80 if args.quick else args.timed_rows
    source, words = rows_file(work, rows), ["runner.workers=2", f"output.rows_per_shard={max(1, rows // 40)}"]

    def seconds(folder: Path, *more: str) -> float:
        """Return the time of the second half of the shards: workers load during the first."""
        watcher = Moments()
        job(str(source), str(folder / "out"), *words, *more, watcher=watcher)
        return watcher.after(20)[0]

    with cluster() as running:
        there = ("runner=ray", f"runner.address={running.address}")
        sides = {"runner.workers=2": seconds, "runner=ray": lambda folder: seconds(folder, *there)}
        title = f"runner=ray against runner.workers=2, {rows:,} short rows, the second half; goal: at most 1.05"
        return against(args, work, "ray", title, sides)


def table(name: str, title: str, columns: tuple[str, ...], rows: list[list[Any]]) -> Measurement:
    """Return a table of figures."""
    return {"name": f"scale/{name}", "title": title, "kind": "figures", "columns": columns, "rows": rows}


MEASURES: dict[str, Any] = {function.__name__: function for function in (parent, driver, ledger, memory, store, ray)}
CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "parent": parent_child,
    "driver": driver_child,
    "idle": idle_child,
    "books": books_child,
    "memory": memory_child,
    "s3": s3_child,
}


def main() -> None:
    """Run the measurements that are named, or a part of one in this process."""
    parser = flags(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}; default: all")
    sizes = {"rows": (ROWS, "parent"), "timed-rows": (TIMED_ROWS, "store, ray"), "shards": (SHARDS, "driver")}
    sizes |= {"books": (BOOKS, "ledger"), "long-rows": (LONG_ROWS, "memory")}
    for name, (default, of) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"of {of}; default: {default}")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(CHILDREN[args.child](**args.given)))
        return
    if unknown := set(args.names) - {*MEASURES}:
        parser.error(f"'{min(unknown)}' is not one of {', '.join(MEASURES)}")

    def measure() -> list[Measurement]:
        with TemporaryDirectory(dir=args.work) as work:
            made = [MEASURES[name](args, Path(work)) for name in args.names or MEASURES]
        return [table for each in made for table in (each if isinstance(each, list) else [each])]

    finish(args, "scale", measure)


if __name__ == "__main__":
    main()
