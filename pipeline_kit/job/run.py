"""Runs a job: what is done stays done, what is not is done once; rows that failed can be run once more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from pipeline_kit.compose.build import build
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.python import JobOptions, composed
from pipeline_kit.compose.schema import carry_all
from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, UsageError
from pipeline_kit.files.atomic import refuse_overlap
from pipeline_kit.files.read.paths import expand_patterns
from pipeline_kit.files.read.source import Source, SourceRow
from pipeline_kit.files.storage.retries import use_storage
from pipeline_kit.job.folder import DEAD, MANIFEST, JobFolder
from pipeline_kit.job.ledger import JobLedger, JobWatcher
from pipeline_kit.job.manifest import Manifest, identity_of, read_manifest
from pipeline_kit.job.receipt import Receipt
from pipeline_kit.job.runner import InProcessRunner, Job, Runner
from pipeline_kit.job.sealed import changed, is_count
from pipeline_kit.job.shard import ShardTask
from pipeline_kit.job.store import folder_of
from pipeline_kit.job.workers import WorkerPool
from pipeline_kit.runtime.config import JobConfig

SAME = ("input", "config.task", "config.input", "config.output")
"""What a job's rows are and how they are written: these cannot change when rows are run again."""


@dataclass(frozen=True)
class JobSummary:
    """What a job holds when it is done.

    :param folder: where it is.
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
    folder: str
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
    folder = folder_of(job.path)
    if job.retry and not folder.exists(MANIFEST):
        raise UsageError(
            f"{job.path}: holds no job; --retry, in Python retry=True, runs rows again that failed in an earlier run "
            "into this folder"
        )
    limit_library_caches()
    _ = job.format  # options that contradict each other are found out before anything is touched
    job.source.check()
    runner_class = job.config.policies["runner"].load()
    if isinstance(runner_class, type) and issubclass(runner_class, Runner):
        runner_class.check(job)
    lease = job.config.job.lease
    if job.restart:
        folder = folder.restarted(lease)
    folder.claim()
    with folder.locked(lease):
        manifest, changes = _open_manifest(job, folder)
        budget = JobConfig(None) if job.retry else job.config.job
        ledger = JobLedger(folder, manifest, budget, watcher, verify=job.verify)
        failed: Mapping[int, set[int]] = {}
        if job.retry:
            failed = {number: _failed_rows(folder, ledger.receipt(number)) for number in ledger.done.failed()}
        else:
            watcher.resumed(ledger.reused)
        if failed or not (job.retry or ledger.complete):
            ledger.begin()
            with closing(runner_class(job, ledger, folder)) as runner:
                rows = () if job.retry else runner.batches(*ledger.start)
                tasks = _retry_tasks(ledger, failed, job) if job.retry else ledger.missing(rows)
                for shard in runner.shards(tasks):
                    ledger.keep(shard)
        if not ledger.complete and (ledger.whole or not job.retry):
            ledger.finish()
        return JobSummary(
            **ledger.counts(),
            folder=folder.key,
            reused=ledger.reused - sum(map(len, failed.values())),
            stats=ledger.stats,
            seconds=ledger.seconds,
            complete=ledger.complete,
            changes=changes,
        )


def _open_manifest(job: Job, folder: JobFolder) -> tuple[Manifest, Sequence[str]]:
    """Read the manifest, or make that of a new job; list what a retry changes."""
    manifest, identity, changes = read_manifest(folder), identity_of(job.config, job.source.identity()), []
    if manifest is None:
        manifest = Manifest(identity)
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
        manifest.check_same(identity, folder.key)
    try:
        if manifest.schema is not None:
            job.format.encode([], dict(manifest.schema))
    except Exception as error:  # whatever a library makes of values that anyone may have written
        raise changed(folder.at(MANIFEST), "the columns that it names cannot be written") from error
    return manifest, changes


def local_runner(job: Job, ledger: JobLedger, folder: JobFolder) -> Runner:
    """Make shards here, unless there are workers, or one that must be ended when a stage hangs; ``runner=local``."""
    runner = job.config.runner
    return (WorkerPool if runner.workers > 1 or runner.batch_timeout is not None else InProcessRunner)(
        job, ledger, folder
    )


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
        yield ShardTask(number, found, ledger.schema, ledger.receipt(number))


def _failed_rows(folder: JobFolder, receipt: Receipt) -> set[int]:
    """Read which rows of a shard failed.

    :raises OutputError: if the dead letters are not those that the receipt counts.
    """
    name = next((name for name in receipt.files if name.startswith(DEAD)), DEAD)
    path = folder.at(name)
    try:
        found = [json.loads(line)["index"] for line in folder.read(name).splitlines()]
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
    # See prepare_process, whose 256 are for one text at a time: a job has batches.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


def limit_library_caches() -> None:
    """Set the environment variables that the libraries read once, before anything is computed.

    What a user has set is left alone; so is a process in which torch has computed before.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def run_job(
    *overrides: str | Mapping[str, Any],
    output: str | Path,
    files: str | Path | Sequence[str | Path] | None = None,
    rows: Iterable[Any] | None = None,
    restart: bool = False,
    retry: bool = False,
    verify: bool = False,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = "config",
    plugins: Sequence[str] = (),
    watcher: JobWatcher | None = None,
    **options: Unpack[JobOptions],
) -> JobSummary:
    """Run a job into the folder `output`, or take it up where it stands.

    With ``runner.workers`` over 1 a script must guard its own code with ``if __name__ == "__main__":``, since each
    worker is a new Python that imports it.

    What is run is described as for ``load``: ``run_job("input.id=review_id", output="labels/", files="reviews.csv",
    task="ner", job={"max_failed_rows": "1%"})``.

    :param files: files, patterns or saved datasets; or pass `rows`.
    :param rows: texts, mappings, or a ``datasets.Dataset``; a job over rows that can be gone through only once cannot
        be resumed.
    :param restart: begin anew; the folder that is there is renamed.
    :param retry: run the rows again that failed before; options may differ then, task, input and output may not.
    :param verify: hash every file that is there, also in a store, where sizes are compared otherwise.
    :param watcher: receives the progress of the job.
    :raises PipelineKitError: as the command line does; what is done is kept.
    """
    if restart and retry:
        raise UsageError("restart=True begins anew, retry=True runs rows again that failed; pass one of the two")
    if (files is None) == (rows is None):
        raise UsageError("pass files=... or rows=..., one of the two")
    if not os.fspath(output):
        raise UsageError("output='' names no folder; pass the folder that the job writes, such as output='labels/'")
    chosen = composed((*overrides, options), load_registry(plugins), config, config_dir, config_name)
    use_storage(chosen.storage)
    names = [str(name) for name in ([files] if isinstance(files, str | Path) else files or ())]
    refuse_overlap([("output", output)], expand_patterns(names))
    takes = chosen.task.takes
    with Source.open(names, chosen.input, takes) if rows is None else Source.of(rows, chosen.input, takes) as opened:
        chosen, source = carry_all(chosen, opened, identified=True)
        job = Job(chosen, source, str(output), build, restart, retry, plugins, verify)
        return run_to_end(job, watcher or JobWatcher())
