"""Runs a job: what is done stays done, what is not is done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.errors import JobError, shorten
from pipeline_kit.job import dead_letters
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.identity import identity_of
from pipeline_kit.job.lock import locked
from pipeline_kit.job.manifest import Manifest, read_manifest, write_manifest
from pipeline_kit.job.receipt import Receipt, read_receipt, sha256, write_receipt
from pipeline_kit.job.shard import Done, encode, results_of
from pipeline_kit.pipeline import Pipeline
from pipeline_kit.pipeline_config import PipelineConfig
from pipeline_kit.records import Source, SourceRow
from pipeline_kit.sinks import Layout, Schema, ShardFormat, shard_format
from pipeline_kit.stats import RunStats

__all__ = ["Job", "JobSummary", "Watcher", "run_job"]


class Watcher(Protocol):
    """Is told how a job goes on."""

    def resumed(self, rows: int) -> None:
        """Hear how many rows were done before."""
        ...

    def loaded(self, pipeline: Pipeline) -> None:
        """Hear that the model is there."""
        ...

    def advanced(self, stats: RunStats) -> None:
        """Hear that one more row went through."""
        ...

    def shard(self, receipt: Receipt) -> None:
        """Hear that a shard is done."""
        ...


@dataclass(frozen=True)
class JobSummary:
    """What a job holds when it is done.

    :param reused: how many of the rows were there before.
    """

    rows: int
    written: int
    dead: int
    shards: int
    reused: int
    stats: RunStats


@dataclass(frozen=True)
class Job:
    """What is to be done.

    :param build: makes the pipeline of a config.
    """

    config: PipelineConfig
    source: Source
    path: Path
    build: Callable[[PipelineConfig], Pipeline]
    restart: bool = False

    @property
    def layout(self) -> Layout:
        """The columns of the output."""
        options = self.config.output
        carry = self.config.input.carry
        return Layout.of(self.config.task.gives, self.config.postprocessor.name, carry=carry, kinds=dict(options.types))


def run_job(job: Job, watcher: Watcher) -> JobSummary:
    """Run `job` from where it stands to its end.

    :raises UsageError: if the folder holds a job of which something differs; names what.
    :raises OutputError: if the folder cannot be used, is in use, or the disk takes no more.
    :raises JobError: if more rows failed than may.
    """
    layout = job.layout
    format = shard_format(job.config.output, layout)
    job.source.check()
    if job.restart and job.path.exists():
        JobFolder.claim(job.path).set_aside()
    folder = JobFolder.claim(job.path)
    with locked(folder.lock):
        return _Run(job, folder, layout, format, watcher).to_the_end()


class _Run:
    """A job while its folder is locked."""

    def __init__(self, job: Job, folder: JobFolder, layout: Layout, format: ShardFormat, watcher: Watcher) -> None:
        self._job, self._folder, self._layout, self._format, self._watcher = job, folder, layout, format, watcher
        self._stats = RunStats()
        folder.clean()
        self._pipeline: Pipeline | None = None
        identity = identity_of(job.config, job.source.identity())
        found = read_manifest(folder.manifest)
        if found is not None:
            found.check_same(identity, folder.path)
        self._manifest = found or Manifest(identity)
        if found is None:
            write_manifest(folder.manifest, self._manifest)
        receipts = (read_receipt(folder.receipt(number), folder.path) for number in folder.receipts())
        self._done = {receipt.shard: receipt for receipt in receipts if receipt is not None}

    def to_the_end(self) -> JobSummary:
        """Do the shards that are missing, in order."""
        reused = sum(receipt.rows for receipt in self._done.values())
        self._watcher.resumed(reused)
        if not (self._manifest.done and len(self._done) == self._manifest.counts.get("shards")):
            self._folder.success.unlink(missing_ok=True)
            for number, rows in self._missing():
                self._do(number, rows)
            self._finish()
        counts = self._counts()
        return JobSummary(counts["rows"], counts["written"], counts["dead"], counts["shards"], reused, self._stats)

    def _missing(self) -> Iterator[tuple[int, list[SourceRow]]]:
        """Give the shards that have no receipt, with their rows."""
        size = self._job.config.output.rows_per_shard
        number = 0
        while number in self._done and self._done[number].rows == size:
            number += 1
        rows = self._job.source.rows(self._done[number - 1].last + 1 if number else 0)
        while batch := list(islice(rows, size)):
            if number not in self._done:
                yield number, batch
            number += 1

    def _do(self, number: int, rows: list[SourceRow]) -> None:
        pipeline = self._loaded()
        before = _numbers(self._stats)
        done = results_of(pipeline, rows, self._layout, self._stats, self._watcher.advanced)
        schema = self._schema(done)
        failed = len(done.dead)
        files, done = encode(done, self._format, schema)
        self._stats.failed += len(done.dead) - failed
        self._check_budget(done, len(rows))
        counts = {name: value - before.get(name, 0.0) for name, value in _numbers(self._stats).items()}
        receipt = Receipt(number, rows[0].index, rows[-1].index, len(rows), len(done.rows), len(done.dead), {}, counts)
        receipt = replace(receipt, files=self._write(number, files, done))
        write_receipt(self._folder.receipt(number), receipt)
        self._done[number] = receipt
        self._watcher.shard(receipt)

    def _loaded(self) -> Pipeline:
        """Build the pipeline when the first shard needs it, to decide as the job's first load did."""
        if self._pipeline is None:
            self._pipeline = self._job.build(_with_settled(self._job.config, self._manifest.settled))
            if not self._manifest.settled and self._pipeline.model.settled:
                self._manifest = replace(self._manifest, settled=dict(self._pipeline.model.settled))
                write_manifest(self._folder.manifest, self._manifest)
            self._watcher.loaded(self._pipeline)
        return self._pipeline

    def _schema(self, done: Done) -> Schema | None:
        """Give what all shards agree on; the first one to be done settles it, before it is written."""
        if self._manifest.schema is None:
            schema = self._format.schema([row for _, row in done.rows])
            if schema is None:
                return None
            self._manifest = replace(self._manifest, schema=schema)
            write_manifest(self._folder.manifest, self._manifest)
        return dict(self._manifest.schema or {})

    def _write(self, number: int, files: Mapping[str, bytes], done: Done) -> dict[str, str]:
        contents = {self._folder.shard(number, suffix): content for suffix, content in files.items()}
        dead = self._folder.dead(number)
        if done.dead:
            contents[dead] = dead_letters.lines(done.dead)
        else:
            dead.unlink(missing_ok=True)  # one of an earlier try that was not finished
        for path, content in contents.items():
            with atomic_writer(path) as file:
                file.write(content)
        return {path.relative_to(self._folder.path).as_posix(): sha256(path) for path in contents}

    def _check_budget(self, done: Done, rows: int) -> None:
        if not done.dead:
            return
        failed = sum(receipt.dead for receipt in self._done.values()) + len(done.dead)
        total = sum(receipt.rows for receipt in self._done.values()) + rows
        options = self._job.config.job
        if not options.allows(failed, total):
            first = done.dead[0]
            reason = f"{first.failure.stage}: {first.failure.error}: {shorten(first.failure.message)}"
            raise JobError(
                f"row {shorten(first.id, 80)} failed: {reason}\n"
                f"  {failed:,} of {total:,} rows failed, job.max_failed_rows={options.max_failed_rows} allows no more; "
                "what is done is kept.\n"
                "  To go on, run the same command with job.max_failed_rows=N, '1%' or null: failed rows are kept aside"
            )

    def _finish(self) -> None:
        for number in [number for number in self._folder.receipts() if number not in self._done]:
            self._folder.receipt(number).unlink()  # broken, and beyond the last shard that the input has
        self._manifest = replace(self._manifest, done=True, counts=self._counts())
        write_manifest(self._folder.manifest, self._manifest)
        with atomic_writer(self._folder.success):
            pass

    def _counts(self) -> dict[str, int]:
        receipts = self._done.values()
        return {
            "rows": sum(receipt.rows for receipt in receipts),
            "written": sum(receipt.written for receipt in receipts),
            "dead": sum(receipt.dead for receipt in receipts),
            "shards": len(receipts),
        }


def _with_settled(config: PipelineConfig, settled: Mapping[str, Any]) -> PipelineConfig:
    if not settled:
        return config
    return replace(config, model=replace(config.model, options=replace(config.model.options, **settled)))


def _numbers(stats: RunStats) -> dict[str, float]:
    seconds = {f"seconds.{stage}": value for stage, value in sorted(stats.seconds.items())}
    names = ("truncated_rows", "windows", "batches", "tokens", "slots")
    return {**{name: getattr(stats, name) for name in names}, **seconds}
