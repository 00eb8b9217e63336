"""A job, and where its shards are made: the interface of runners, and the runner of this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import Fault, OutputError
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.write.formats import ShardFormat, shard_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.shard import ShardResult, ShardTask, run_shard
from pipeline_kit.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Job:
    """What is to be done.

    :param build: makes the pipeline of a config, in this process.
    :param restart: begin anew; the folder that is there is renamed.
    :param retry: run the rows again that failed before.
    :param plugins: files and modules of plugins that the user named, for the processes that share the job.
    """

    config: PipelineConfig
    source: Source
    path: Path
    build: Callable[[PipelineConfig], Pipeline]
    restart: bool = False
    retry: bool = False
    plugins: Sequence[str] = ()

    @cached_property
    def layout(self) -> Layout:
        """The columns of the output."""
        return layout_of(self.config)

    @cached_property
    def format(self) -> ShardFormat:
        """How shards are written.

        :raises UsageError: if the output's options contradict each other.
        """
        return shard_format(self.config.output, self.layout)


def layout_of(config: PipelineConfig) -> Layout:
    """Return the columns of the output of a job."""
    gives, name = config.task.gives, config.postprocessor.name
    return Layout.of(gives, name, carry=config.input.carry, kinds=dict(config.output.types))


class Runner(ABC):
    """Makes shards, in this process or in others: tasks in, results out in any order. Only the ledger writes files.

    Every pipeline is built with :func:`with_pinned_options` and what the ledger has pinned, and the first one is
    reported to :meth:`JobLedger.loaded` before any other is built. While the ledger has no schema, the first result
    to be yielded is that of the first task, and a later one that was made by another schema is run again.
    """

    def __init__(self, job: Job, ledger: JobLedger) -> None:
        """Make the shards of `job`; report to `ledger` what is loaded, how far it is, and which rows timed out."""
        self.job, self.ledger = job, ledger

    @abstractmethod
    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield the result of every task; a task is taken when there is somebody to run it.

        :raises JobError: if it cannot continue.
        """

    def close(self) -> None:
        """End what is still running."""
        return


@final
class InProcessRunner(Runner):
    """Builds the pipeline when the first shard needs it."""

    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Make the shards in their order."""
        job, ledger = self.job, self.ledger
        pipeline: Pipeline | None = None
        for task in tasks:
            if pipeline is None:
                pipeline = job.build(with_pinned_options(job.config, ledger.pinned or {}))
                ledger.loaded(pipeline.model.pinned_options, pipeline.description)
            yield run_shard(pipeline, task, job.layout, job.format, ledger.advanced)


def with_pinned_options(config: PipelineConfig, pinned: Mapping[str, Any]) -> PipelineConfig:
    """Decide where the user said "auto" as the job's first load did, see `Model.pinned_options`.

    `pinned` may come from a file: it chooses among the values that such an option has, and sets no other one.

    :raises OutputError: if it holds a value that the option does not have.
    """
    options = config.model.options
    chosen = {name: value for name, value in pinned.items() if getattr(options, name, None) == "auto"}
    if not chosen:
        return config
    faults: list[Fault] = []
    parse_options(type(options), {**vars(options), **chosen}, "model", faults)
    wrong = next((fault for fault in faults if fault.key.removeprefix("model.") in chosen), None)
    if wrong is not None:
        raise OutputError(f"the manifest of the job was changed by something else: {wrong}")
    return replace(config, model=replace(config.model, options=replace(options, **chosen)))
