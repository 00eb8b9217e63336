"""Runs a job: what is done stays done, what is not is done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline_kit.job.crew import Crew
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.identity import identity_of
from pipeline_kit.job.in_process import InProcess
from pipeline_kit.job.keeper import Keeper
from pipeline_kit.job.libraries import settle_libraries
from pipeline_kit.job.lock import locked
from pipeline_kit.job.maker import Host, Maker, Plan
from pipeline_kit.job.manifest import Manifest, read_manifest, write_manifest
from pipeline_kit.job.stored import changed
from pipeline_kit.job.watcher import Watcher
from pipeline_kit.pipeline import Pipeline
from pipeline_kit.pipeline_config import PipelineConfig
from pipeline_kit.records import Source
from pipeline_kit.sinks import Layout, shard_format
from pipeline_kit.stats import RunStats

__all__ = ["Job", "JobSummary", "Watcher", "carry_out", "check_schema", "maker_of", "plan_of"]


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


def carry_out(job: Job, watcher: Watcher) -> JobSummary:
    """Run `job` from where it stands to its end.

    :raises UsageError: if the folder holds a job of which something differs; names what.
    :raises OutputError: if the folder cannot be used, is in use, or the disk takes no more.
    :raises JobError: if more rows failed than may, or a worker ended.
    """
    settle_libraries()
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
        keeper = Keeper(folder, manifest, job.config.job, watcher)
        watcher.resumed(keeper.reused)
        if not keeper.complete:
            keeper.begin()
            with closing(maker_of(job, plan, keeper)) as maker:
                for shard in maker.finished(keeper.missing(job.source, job.config.output.rows_per_shard)):
                    keeper.keep(shard)
            keeper.finish()
    return JobSummary(**keeper.counts(), reused=keeper.reused, stats=keeper.stats, seconds=keeper.seconds)


def plan_of(job: Job) -> Plan:
    """Settle the columns and the format of a job's shards.

    :raises UsageError: if the output's options contradict each other.
    """
    layout = job.layout
    return Plan(job.config, layout, shard_format(job.config.output, layout), job.plugins)


def check_schema(plan: Plan, manifest: Manifest, folder: JobFolder) -> None:
    """See that what the shards agreed on before is something that shards can be written by.

    :raises OutputError: if it is not.
    """
    try:
        if manifest.schema is not None:
            plan.format.encode([], dict(manifest.schema))
    except Exception as error:  # whatever a library makes of values that anyone may have written
        raise changed(folder.manifest, "the columns that it names cannot be written") from error


def maker_of(job: Job, plan: Plan, host: Host) -> Maker:
    """Choose where shards are made: here, unless there are workers, or one that must be ended when a stage hangs."""
    runner = job.config.runner
    if runner.workers > 1 or runner.batch_timeout is not None:
        return Crew(plan, host)
    return InProcess(plan, host, job.build)
