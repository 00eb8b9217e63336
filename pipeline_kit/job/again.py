"""Runs the rows of a job that failed once more; those that give a result now leave the dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from pipeline_kit.errors import JobError, OutputError, UsageError
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.identity import differences, identity_of
from pipeline_kit.job.keeper import Keeper
from pipeline_kit.job.libraries import settle_libraries
from pipeline_kit.job.lock import locked
from pipeline_kit.job.manifest import read_manifest
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.run import Job, maker_of, plan_of
from pipeline_kit.job.shard import Work
from pipeline_kit.job.watcher import Watcher
from pipeline_kit.job_config import JobConfig
from pipeline_kit.records import Source, SourceRow
from pipeline_kit.stats import RunStats

__all__ = ["Retried", "retry_job"]

SAME = ("task", "input", "output")
"""Groups of options that say what a job's rows are and how they are written: these cannot change."""


@dataclass(frozen=True)
class Retried:
    """What became of the rows that were run again.

    :param done: how many have a result now; `dead` how many failed again.
    :param complete: whether the job is.
    :param changed: what differs from what the job was made with.
    """

    done: int
    dead: int
    complete: bool
    changed: list[str]
    stats: RunStats


def retry_job(job: Job, watcher: Watcher) -> Retried:
    """Run the dead letters of the job in ``job.path`` again, under ``job.config``.

    The results stand in files of their own beside the shard, ``part-00003.retry-1.jsonl``; a shard's receipt takes
    them up in one step.

    :raises UsageError: if there is no job, its input is another one, or what its rows are was changed.
    :raises OutputError: if the folder is in use, or the disk takes no more.
    """
    if not (job.path / "_manifest.json").exists():
        raise UsageError(f"{job.path}: holds no job; the folder is what was given to: pipeline-kit run --output")
    settle_libraries()
    plan = plan_of(job)
    folder = JobFolder.claim(job.path)
    with locked(folder.lock):
        manifest = read_manifest(folder.manifest)
        if manifest is None:
            raise UsageError(f"{job.path}: holds no job")
        changed = _checked(manifest.identity, job)
        keeper = Keeper(folder, manifest, JobConfig(None), watcher)
        before = sum(receipt.dead for receipt in keeper.done.values())
        if before:
            keeper.begin()
            with closing(maker_of(job, plan, keeper)) as maker:
                for shard in maker.finished(_works(folder, keeper, job.source)):
                    keeper.keep_again(shard)
        if keeper.whole and not keeper.complete:
            keeper.finish()
        dead = sum(receipt.dead for receipt in keeper.done.values())
        return Retried(before - dead, dead, keeper.complete, changed, keeper.stats)


def _checked(before: object, job: Job) -> list[str]:
    now = json.loads(json.dumps(identity_of(job.config, job.source.identity())))
    found = list(differences(before, now))
    fixed = ("input", *(f"config.{group}" for group in SAME))
    stopping = [line for line in found if line.startswith(tuple(f"{name}{end}" for name in fixed for end in ".[:"))]
    if stopping:
        listed = "\n  ".join(stopping[:8])
        raise UsageError(
            f"{job.path}: these cannot change when rows are run again:\n  {listed}\n"
            "to change them, run the whole job into another folder"
        )
    return found


def _works(folder: JobFolder, keeper: Keeper, source: Source) -> Iterator[Work]:
    """Give the rows that failed, by shard."""
    wanted = {number: _indices(folder, receipt) for number, receipt in sorted(keeper.done.items()) if receipt.dead}
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
        yield Work(number, found)


def _indices(folder: JobFolder, receipt: Receipt) -> set[int]:
    name = next((name for name in receipt.files if name.startswith("_dead/")), None)
    try:
        lines = (folder.path / str(name)).read_text(encoding="utf-8").splitlines()
        return {int(json.loads(line)["index"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder.path / str(name)}: cannot be read as dead letters: {error}") from error
