"""Runs a job: what is done stays done, what is not is done once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import RunStats
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.write.formats import shard_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.manifest import Manifest, identity_of, read_manifest, write_manifest
from pipeline_kit.job.sealed import changed, locked
from pipeline_kit.job.shard import InProcessRunner, JobPlan, ShardHost, ShardRunner
from pipeline_kit.job.watcher import JobWatcher
from pipeline_kit.job.workers import WorkerPool
from pipeline_kit.runtime.pipeline import Pipeline


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


@dataclass(frozen=True)
class Job:
    """What is to be done.

    :param build: makes the pipeline of a config, in this process.
    :param plugins: files and modules of plugins that the user named, for the processes that share the job.
    """

    config: PipelineConfig
    source: Source
    path: Path
    build: Callable[[PipelineConfig], Pipeline]
    restart: bool = False
    plugins: Sequence[str] = ()

    @property
    def layout(self) -> Layout:
        """The columns of the output."""
        options = self.config.output
        carry = self.config.input.carry
        return Layout.of(self.config.task.gives, self.config.postprocessor.name, carry=carry, kinds=dict(options.types))


def run_to_end(job: Job, watcher: JobWatcher) -> JobSummary:
    """Run `job` from where it stands to its end.

    :raises UsageError: if the folder holds a job of which something differs; names what.
    :raises OutputError: if the folder cannot be used, is in use, or the disk takes no more.
    :raises JobError: if more rows failed than may, or a worker ended.
    """
    limit_library_caches()
    plan = plan_of(job)
    job.source.check()
    if job.restart and job.path.exists():
        old = JobFolder.claim(job.path)
        with locked(old.lock):
            old.set_aside()
    folder = JobFolder.claim(job.path)
    with locked(folder.lock):
        identity = identity_of(job.config, job.source.identity())
        manifest = read_manifest(folder.manifest)
        if manifest is None:
            manifest = Manifest(identity)
            write_manifest(folder.manifest, manifest)
        else:
            manifest.check_same(identity, folder.path)
            check_schema(plan, manifest, folder)
        keeper = JobLedger(folder, manifest, job.config.job, watcher)
        watcher.resumed(keeper.reused)
        if not keeper.complete:
            keeper.begin()
            with closing(maker_of(job, plan, keeper)) as maker:
                for shard in maker.finished(keeper.missing(job.source, job.config.output.rows_per_shard)):
                    keeper.keep(shard)
            keeper.finish()
    return JobSummary(**keeper.counts(), reused=keeper.reused, stats=keeper.stats, seconds=keeper.seconds)


def plan_of(job: Job) -> JobPlan:
    """Settle the columns and the format of a job's shards.

    :raises UsageError: if the output's options contradict each other.
    """
    layout = job.layout
    return JobPlan(job.config, layout, shard_format(job.config.output, layout), job.plugins)


def check_schema(plan: JobPlan, manifest: Manifest, folder: JobFolder) -> None:
    """See that what the shards agreed on before is something that shards can be written by.

    :raises OutputError: if it is not.
    """
    try:
        if manifest.schema is not None:
            plan.format.encode([], dict(manifest.schema))
    except Exception as error:  # whatever a library makes of values that anyone may have written
        raise changed(folder.manifest, "the columns that it names cannot be written") from error


def maker_of(job: Job, plan: JobPlan, host: ShardHost) -> ShardRunner:
    """Choose where shards are made: here, unless there are workers, or one that must be ended when a stage hangs."""
    runner = job.config.runner
    if runner.workers > 1 or runner.batch_timeout is not None:
        return WorkerPool(plan, host)
    return InProcessRunner(plan, host, job.build)


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
