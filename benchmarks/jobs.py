"""A durable job of a million short rows: its memory, and its speed against a plain stream over the same rows.

    python benchmarks/jobs.py [--rows 1000000] [--timed-rows 20000] [--rounds 3]

Memory is that of a fresh process that runs one job over all rows: the peak while the first tenth of them goes through,
and while the rest does. Speed is measured in one process with one loaded pipeline, over fewer rows: a stream whose
results are let go, the same with each result written to one file as JSON, and the job, by turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common.remember import difference
from common.script import Measurement, finish, flags, tell
from common.texts import labelled

from pipeline_kit.bench.machine import paired_ratio
from pipeline_kit.bench.rounds import turns
from pipeline_kit.errors import StageError, UsageError
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.job.ledger import JobWatcher

if TYPE_CHECKING:
    from pipeline_kit.bench.rounds import Peak
    from pipeline_kit.job.receipt import Receipt
    from pipeline_kit.job.run import JobSummary
    from pipeline_kit.runtime.pipeline import Pipeline

ROWS, TIMED_ROWS = 1_000_000, 20_000
QUICK_ROWS, QUICK_SHARD = 400, 20
WARM_UP = 2000
WORDS = 5
"""Of a row, so that a million of them take minutes."""
STREAM, PLAIN, JOB = "pipe.stream", "pipe.stream into one JSONL file", "durable job"


def rows_file(folder: Path, rows: int) -> Path:
    """Return a JSONL file with so many short rows, the first words of sentences, written when it is not there yet."""
    path = folder / f"rows-of-{WORDS}-words-{rows}.jsonl"
    if not path.exists():
        texts = [" ".join(text.split()[:WORDS]) for text, _ in labelled("short")]
        with atomic_writer(path) as file:
            for text in islice(cycle(texts), rows):
                file.write(json.dumps({"text": text}) + "\n")
    return path


def run(source: Path, folder: Path, watcher: JobWatcher, shard: int | None, pipe: Pipeline | None = None) -> JobSummary:
    """Run a job from `source` into `folder`.

    :param shard: rows of a shard, None for the default.
    :param pipe: takes the place of the one that the job would load.
    """
    from pipeline_kit.compose.build import build
    from pipeline_kit.compose.compose import compose
    from pipeline_kit.compose.plugins import load_registry
    from pipeline_kit.files.read.source import Source
    from pipeline_kit.job.run import run_to_end
    from pipeline_kit.job.runner import Job

    words = ["device=cpu", "batching.deduplicate=false", *([] if shard is None else [f"output.rows_per_shard={shard}"])]
    config = compose(words, registry=load_registry())
    with Source.open([source], config.input, config.task.takes) as rows:
        job = Job(config, rows, str(folder), build if pipe is None else lambda _: pipe)
        summary = run_to_end(job, watcher)
    if summary.dead or summary.reused:
        raise StageError(f"{summary.dead} rows of the job failed, {summary.reused} were there before")
    return summary


class Peaks(JobWatcher):
    """Watches a job's memory, with a mark of its own for what comes after `first` rows."""

    def __init__(self, first: int, stack: ExitStack) -> None:
        """Begin with the first mark; `stack` ends what is still watched."""
        self._left, self._stack = first, stack
        self.marks: list[Peak] = []
        self._begin()

    def _begin(self) -> None:
        from pipeline_kit.bench.rounds import watch
        from pipeline_kit.contract.types import Device

        self._stack.close()
        self.marks.append(self._stack.enter_context(watch(Device())))

    def shard(self, receipt: Receipt) -> None:
        """Count the shard's rows, and begin the second mark when the first ones are done."""
        before, self._left = self._left, self._left - receipt.rows
        if before > 0 >= self._left:
            self._begin()


def child(source: Path, rows: int, shard: int | None) -> None:
    """Run the job over all `rows` of `source`; print its two peaks in bytes, and how many rows it wrote."""
    with TemporaryDirectory(dir=source.parent) as folder, ExitStack() as stack:
        peaks = Peaks(rows // 10, stack)
        summary = run(source, Path(folder) / "job", peaks, shard)
        stack.close()
        found = {"first": peaks.marks[0].peak, "rest": peaks.marks[-1].peak, "written": summary.written}
        print(json.dumps({**found, "marks": len(peaks.marks)}))


def memory(args: argparse.Namespace, rows: int, shard: int | None) -> Measurement:
    """Run the large job in a process of its own."""
    source = rows_file(args.work, rows)
    tell(f"a job of {rows:,} rows, for its memory")
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(source), "--rows", str(rows)]
    done = subprocess.run(
        [*command, *([] if shard is None else ["--shard", str(shard)])], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise StageError(f"the job of {rows} rows failed: {done.stderr.strip()[-400:]}")
    found = json.loads(done.stdout)
    if (found["written"], found["marks"]) != (rows, 2):
        raise StageError(f"the job wrote {found['written']} of {rows} rows; were there fewer than two shards?")
    growth = (found["rest"] - found["first"]) / 1e6
    shown = [(f"the first {rows // 10:,}", found["first"]), (f"the rest of {rows:,}", found["rest"])]
    return {
        "name": "job/memory",
        "title": "Peak memory of a durable job, the shipped checkpoint, short sentences",
        "kind": "figures",
        "columns": ("rows", "resident at most, MiB"),
        "rows": [[name, round(value / 2**20, 1)] for name, value in shown],
        "value": {"median": growth, "min": growth, "max": growth},
    }


def speed(args: argparse.Namespace, rows: int, shard: int | None) -> list[Measurement]:
    """Let stream, plain file and job take turns, after an uncounted pass of each over a few rows."""
    import pipeline_kit as pk

    pipe = pk.load("device=cpu", "batching.deduplicate=false")
    sides: dict[str, Callable[[Path, Path], object]] = {
        STREAM: lambda source, folder: deque(pipe.stream(_texts(source)), maxlen=0),
        PLAIN: lambda source, folder: _write_plain(pipe, source, folder / "plain.jsonl"),
        JOB: lambda source, folder: run(source, folder / "job", JobWatcher(), shard, pipe),
    }
    names, seconds = list(sides), {name: list[float]() for name in sides}
    few, source = rows_file(args.work, min(WARM_UP, rows)), rows_file(args.work, rows)
    agree: dict[str, Any] = {}
    for number in range(-1, args.rounds):  # the first is not counted
        for place in turns(len(names), max(0, number)):
            with TemporaryDirectory(dir=args.work) as folder:
                gc.collect()
                start = time.perf_counter()
                sides[names[place]](few if number < 0 else source, Path(folder))
                taken = time.perf_counter() - start
                if number < 0 and names[place] == JOB:
                    agree = _difference(pipe, few, Path(folder) / "job")
            if number >= 0:
                seconds[names[place]].append(round(taken, 3))
        if number >= 0:
            tell(f"round {number + 1} of {args.rounds}: " + ", ".join(f"{n} {seconds[n][-1]} s" for n in names))
    return [_held(rows, seconds, STREAM, "job/stream", agree), _held(rows, seconds, PLAIN, "job/plain", agree)]


def _held(rows: int, seconds: dict[str, list[float]], other: str, name: str, agree: dict[str, Any]) -> Measurement:
    """Hold the job against another side: its time as a part of the other's."""
    ratio = paired_ratio(seconds[other], seconds[JOB])
    shown = f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
    return {
        "name": name,
        "title": f"A durable job against {other}, {rows:,} short sentences, the shipped checkpoint",
        "kind": "figures",
        "columns": ("side", "seconds, by round", "median", "rows/s", "the job's time as a part of it"),
        "rows": [_line(side, seconds[side], rows, shown if side == other else "") for side in (JOB, other)],
        "value": ratio,
        "results": agree,
    }


def _line(side: str, seconds: Sequence[float], rows: int, part: str) -> list[Any]:
    middle = sorted(seconds)[len(seconds) // 2]
    return [side, ", ".join(map(str, seconds)), middle, round(rows / max(middle, 1e-9), 1), part]


def _texts(source: Path) -> Iterator[str]:
    with source.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _write_plain(pipe: Pipeline, source: Path, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, result in enumerate(pipe.stream(_texts(source))):
            file.write(json.dumps({"id": str(number), **result}, ensure_ascii=False) + "\n")


def _difference(pipe: Pipeline, source: Path, folder: Path) -> dict[str, Any]:
    """Hold what a job wrote against what the stream returns."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    written = [{key: value for key, value in json.loads(line).items() if key != "id"} for line in lines]
    return difference(list(pipe.stream(_texts(source))), written)


def main() -> None:
    """Run the comparison, or its large job."""
    parser = flags(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of the large job; default: {ROWS}")
    parser.add_argument(
        "--timed-rows", type=int, default=TIMED_ROWS, help=f"rows that are timed; default: {TIMED_ROWS}"
    )
    parser.add_argument("--shard", type=int, help="rows of a shard; default: that of a job")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.rows, args.shard)
        return

    def measure() -> list[Measurement]:
        rows, timed, shard = (
            (QUICK_ROWS,) * 2 + (QUICK_SHARD,) if args.quick else (args.rows, args.timed_rows, args.shard)
        )
        if min(rows, timed) < 10:
            raise UsageError(f"--rows {rows} and --timed-rows {timed}: at least 10")
        return [memory(args, rows, shard), *speed(args, timed, shard)]

    finish(args, "jobs", measure)


if __name__ == "__main__":
    main()
