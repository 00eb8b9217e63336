"""Runs the rows of a job that failed once more; those that give a result now leave the dead letters."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing

from pipeline_kit.errors import JobError, UsageError
from pipeline_kit.files.read.source import Source, SourceRow
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.manifest import Manifest, identity_of, read_manifest
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.run import Job, JobSummary, check_schema, limit_library_caches, maker_of, plan_of
from pipeline_kit.job.sealed import changed, is_count, locked, opened
from pipeline_kit.job.shard import ShardTask
from pipeline_kit.job.watcher import JobWatcher
from pipeline_kit.runtime.config import JobConfig

SAME = ("task", "input", "output")
"""Groups of options that say what a job's rows are and how they are written: these cannot change."""


def retry_job(job: Job, watcher: JobWatcher) -> JobSummary:
    """Run the dead letters of the job in ``job.path`` again, under ``job.config``.

    The results stand in files of their own beside the shard, ``part-00003.retry-1.jsonl``; a shard's receipt takes
    them up in one step. The summary counts the rows that were not run again as reused.

    :raises UsageError: if there is no job, its input is another one, or what its rows are was changed.
    :raises OutputError: if the folder is in use or was changed by something else, or the disk takes no more.
    """
    if not os.path.lexists(job.path / "_manifest.json"):
        raise UsageError(
            f"{job.path}: holds no job; --retry runs rows again that failed in an earlier run into this folder"
        )
    limit_library_caches()
    plan = plan_of(job)
    job.source.check()
    folder = JobFolder.claim(job.path)
    with locked(folder.lock):
        manifest = read_manifest(folder.manifest)
        if manifest is None:
            raise UsageError(f"{job.path}: holds no job")
        changes = _checked(manifest, job)
        check_schema(plan, manifest, folder)
        keeper = JobLedger(folder, manifest, JobConfig(None), watcher)
        failed = {number: _indices(folder, found) for number, found in sorted(keeper.done.items()) if found.dead}
        before = sum(map(len, failed.values()))
        if failed:
            keeper.begin()
            with closing(maker_of(job, plan, keeper)) as maker:
                for shard in maker.finished(_works(folder, failed, job.source)):
                    keeper.keep_again(shard)
        if keeper.whole and not keeper.complete:
            keeper.finish()
        reused = keeper.reused - before
        return JobSummary(
            **keeper.counts(),
            reused=reused,
            stats=keeper.stats,
            seconds=keeper.seconds,
            complete=keeper.complete,
            changes=changes,
        )


def _checked(manifest: Manifest, job: Job) -> list[str]:
    found = manifest.changes(identity_of(job.config, job.source.identity()), job.path)
    fixed = ("input", *(f"config.{group}" for group in SAME))
    stopping = [line for line in found if line.startswith(tuple(f"{name}{end}" for name in fixed for end in ".[:"))]
    if stopping:
        listed = "\n  ".join(stopping[:8])
        raise UsageError(
            f"{job.path}: these cannot change when rows are run again:\n  {listed}\n"
            "to change them, run the whole job into another folder"
        )
    return found


def _works(folder: JobFolder, wanted: Mapping[int, set[int]], source: Source) -> Iterator[ShardTask]:
    """Yield the rows that failed, by shard."""
    rows = source.rows(min(min(indices) for indices in wanted.values()))
    row = next(rows, None)
    for number, indices in wanted.items():
        found: list[SourceRow] = []
        while row is not None and row.index <= max(indices):
            if row.index in indices:
                found.append(row)
            row = next(rows, None)
        if len(found) != len(indices):
            raise JobError(f"{folder.path}: shard {number} names rows that failed and that the input does not have")
        yield ShardTask(number, found)


def _indices(folder: JobFolder, receipt: Receipt) -> set[int]:
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
