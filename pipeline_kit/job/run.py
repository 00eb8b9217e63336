"""Runs a job: what is done stays done, what is not is done once; rows that failed can be run once more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, UsageError
from pipeline_kit.files.read.source import SourceRow
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.manifest import Manifest, identity_of, read_manifest, write_manifest
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.runner import InProcessRunner, Job, Runner
from pipeline_kit.job.sealed import changed, is_count, locked, opened
from pipeline_kit.job.shard import ShardTask
from pipeline_kit.job.watcher import JobWatcher
from pipeline_kit.job.workers import WorkerPool
from pipeline_kit.runtime.config import JobConfig

SAME = ("input", "config.task", "config.input", "config.output")
"""What a job's rows are and how they are written: these cannot change when rows are run again."""


@dataclass(frozen=True)
class JobSummary:
    """What a job holds when it is done.

    :param reused: how many of the rows were there before.
    :param stats: of what was done now.
    :param seconds: that took, from when the model was loaded.
    :param complete: whether all rows of the input are there.
    :param changes: what differs from the options that the job began with; only when rows were run again.
    """

    rows: int
    written: int
    dead: int
    shards: int
    reused: int
    stats: RunStats
    seconds: float
    complete: bool = True
    changes: Sequence[str] = ()


def run_to_end(job: Job, watcher: JobWatcher) -> JobSummary:
    """Run `job` from where it stands to its end; with `job.retry`, run the rows again that failed before.

    Results of a retry stand in files of their own beside the shard, ``part-00003.retry-1.jsonl``. The summary counts
    the rows that were not run again as reused.

    :raises UsageError: if the folder holds a job of which something differs; names what. On a retry, if there is no
        job, its input is another one, or what its rows are was changed.
    :raises OutputError: if the folder cannot be used, is in use, or the disk takes no more.
    :raises JobError: if more rows failed than may, or a worker ended.
    """
    if job.retry and not os.path.lexists(job.path / "_manifest.json"):
        raise UsageError(
            f"{job.path}: holds no job; --retry runs rows again that failed in an earlier run into this folder"
        )
    limit_library_caches()
    _ = job.format  # options that contradict each other are found out before anything is touched
    job.source.check()
    if job.restart and job.path.exists():
        old = JobFolder.claim(job.path)
        with locked(old.lock):
            old.rename_away()
    folder = JobFolder.claim(job.path)
    with locked(folder.lock):
        manifest, changes = _open_manifest(job, folder)
        ledger = JobLedger(folder, manifest, JobConfig(None) if job.retry else job.config.job, watcher)
        failed: Mapping[int, set[int]] = {}
        if job.retry:
            failed = {
                number: _failed_rows(folder, found) for number, found in sorted(ledger.done.items()) if found.dead
            }
        else:
            watcher.resumed(ledger.reused)
        if failed or not (job.retry or ledger.complete):
            missing = ledger.missing(job.source, job.config.output.rows_per_shard)
            ledger.begin()
            with closing(_runner_of(job, ledger)) as runner:
                for shard in runner.shards(_retry_tasks(ledger, failed, job) if job.retry else missing):
                    ledger.keep(shard)
        if not ledger.complete and (ledger.whole or not job.retry):
            ledger.finish()
        return JobSummary(
            **ledger.counts(),
            reused=ledger.reused - sum(map(len, failed.values())),
            stats=ledger.stats,
            seconds=ledger.seconds,
            complete=ledger.complete,
            changes=changes,
        )


def _open_manifest(job: Job, folder: JobFolder) -> tuple[Manifest, Sequence[str]]:
    """Read the manifest, or write that of a new job; list what a retry changes."""
    manifest, identity, changes = read_manifest(folder.manifest), identity_of(job.config, job.source.identity()), []
    if manifest is None:
        manifest = Manifest(identity)
        write_manifest(folder.manifest, manifest)
    elif job.retry:
        changes = manifest.changes(identity, job.path)
        stopping = [line for line in changes if line.startswith(tuple(name + end for name in SAME for end in ".[:"))]
        if stopping:
            listed = "\n  ".join(stopping[:8])
            raise UsageError(
                f"{job.path}: these cannot change when rows are run again:\n  {listed}\n"
                "to change them, run the whole job into another folder"
            )
    else:
        manifest.check_same(identity, folder.path)
    try:
        if manifest.schema is not None:
            job.format.encode([], dict(manifest.schema))
    except Exception as error:  # whatever a library makes of values that anyone may have written
        raise changed(folder.manifest, "the columns that it names cannot be written") from error
    return manifest, changes


def _runner_of(job: Job, ledger: JobLedger) -> Runner:
    """Choose where shards are made: here, unless there are workers, or one that must be ended when a stage hangs."""
    runner = job.config.runner
    return (WorkerPool if runner.workers > 1 or runner.batch_timeout is not None else InProcessRunner)(job, ledger)


def _retry_tasks(ledger: JobLedger, wanted: Mapping[int, set[int]], job: Job) -> Iterator[ShardTask]:
    """Yield the rows that failed, by shard."""
    rows = job.source.rows(min(min(indices) for indices in wanted.values()))
    row = next(rows, None)
    for number, indices in wanted.items():
        found: list[SourceRow] = []
        while row is not None and row.index <= max(indices):
            if row.index in indices:
                found.append(row)
            row = next(rows, None)
        if len(found) != len(indices):
            raise JobError(f"{job.path}: shard {number} names rows that failed and that the input does not have")
        yield ShardTask(number, found, ledger.schema)


def _failed_rows(folder: JobFolder, receipt: Receipt) -> set[int]:
    """Read which rows of a shard failed.

    :raises OutputError: if the dead letters are not those that the receipt counts.
    """
    path = folder.path / next((name for name in receipt.files if name.startswith("_dead/")), "_dead")
    try:
        with opened(path) as file:
            found = [json.loads(line)["index"] for line in file.read().splitlines()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise changed(path, "it cannot be read as dead letters") from error
    if not all(is_count(index) and receipt.first <= index <= receipt.last for index in found):
        raise changed(path, "it names a row that is not of this shard")
    if not len(found) == len(set(found)) == receipt.dead:
        raise changed(path, f"it names {len(found):,} rows, and the receipt counts {receipt.dead:,}")
    return set(found)


_SETTINGS = {
    # Intel's MKL multiplies layers that are not packed. STRICT makes it add in one order on any number of threads, so
    # that workers write the bytes of one process; see "Conditional Numerical Reproducibility" in its developer guide.
    "MKL_CBWR": "AUTO,STRICT",
    # oneDNN, and torch's layer over it, keep what they compile for each size of a batch, 1,024 at the most: some
    # hundred MB after a million rows. A job meets sizes in no order, so few of them serve as well: measured, 64 cost
    # no time in batches. (One text at a time they do, which is why nothing is set outside of jobs.)
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


def limit_library_caches() -> None:
    """Set the environment variables that the libraries read once, before anything is computed.

    What a user has set is left alone; so is a process in which torch has computed before.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
