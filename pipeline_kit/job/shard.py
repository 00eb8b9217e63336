"""One shard: rows in, the bytes of its files and its dead letters out. Nothing here touches a disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, final

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.types import Result, RowFailure, RunStats
from pipeline_kit.errors import Fault, OutputError, StageError
from pipeline_kit.files.read.source import SourceRow
from pipeline_kit.files.write.base import OutputValues, Schema, UnwritableRowsError
from pipeline_kit.files.write.formats import ShardFormat
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.folder import DeadLetter
from pipeline_kit.runtime.pipeline import Pipeline

TOLD_ROWS = 32
"""After how many rows it is told again how far a shard is."""

Agree = Callable[[Sequence[OutputValues]], Schema | None]
"""Returns the schema of all shards, settled from these rows if they are the first."""


class Listener:
    """Receives the events of one shard. The default methods do nothing."""

    def told(self, stats: RunStats) -> None:
        """Receive the progress of the shard."""

    def numbered(self, rows: Sequence[int]) -> None:
        """Receive the input's row numbers of the rows that the pipeline reads next; it counts them from 0."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to be made.

    :param alone: numbers of rows that are run one by one: in an earlier try one of them took too long.
    :param late: rows that took too long even alone, and what is said of them.
    """

    number: int
    rows: Sequence[SourceRow]
    alone: frozenset[int] = frozenset()
    late: Mapping[int, RowFailure] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardResult:
    """A shard that was made.

    :param files: the ending of each file's name, and its bytes.
    :param dead: the rows that failed, in input order; all others are in the files.
    :param stats: of this shard.
    """

    number: int
    first: int
    last: int
    rows: int
    files: Mapping[str, bytes]
    dead: Sequence[DeadLetter]
    stats: RunStats


@dataclass(frozen=True)
class _Done:
    """What became of the rows of a shard: each is in exactly one of the two lists, both in input order."""

    rows: list[tuple[SourceRow, OutputValues]]
    dead: list[DeadLetter]


def run_shard(
    pipeline: Pipeline, work: ShardTask, layout: Layout, format: ShardFormat, agree: Agree, listener: Listener
) -> ShardResult:
    """Run the pipeline on the rows of one shard, and encode what it returns.

    A shard is always run as a whole and by itself, so its batches, and with them the last bits of its numbers,
    are the same in a job that went through and in one that was resumed.
    """
    stats = RunStats()
    done = _results(pipeline, work, layout, stats, listener)
    schema = agree([row for _, row in done.rows])
    failed = len(done.dead)
    files, done = _encoded(done, format, schema)
    stats.failed += len(done.dead) - failed
    rows = work.rows
    return ShardResult(work.number, rows[0].index, rows[-1].index, len(rows), files, done.dead, stats)


def _results(pipeline: Pipeline, work: ShardTask, layout: Layout, stats: RunStats, listener: Listener) -> _Done:
    before: dict[int, Result | RowFailure] = dict(work.late)
    for row in work.rows:
        if isinstance(row.example, RowFailure):
            before[row.index] = row.example
    counted = len(before)
    for row in work.rows:
        if row.index in work.alone and row.index not in before:
            listener.numbered([row.index])
            before[row.index] = next(pipeline.outcomes([row.example], stats))  # type: ignore[list-item]
    together = [row for row in work.rows if row.index not in before]
    listener.numbered([row.index for row in together])
    outcomes = pipeline.outcomes([row.example for row in together], stats)  # type: ignore[misc]
    good: list[tuple[SourceRow, OutputValues]] = []
    dead: list[DeadLetter] = []
    for place, row in enumerate(work.rows):
        outcome = before[row.index] if row.index in before else next(outcomes)
        found = outcome if isinstance(outcome, RowFailure) else _row(row, outcome, layout, stats)
        if isinstance(found, RowFailure):
            dead.append(DeadLetter(row.id, row.index, found))
        else:
            good.append((row, found))
        if place % TOLD_ROWS == 0:
            listener.told(stats)
    stats.rows += counted
    stats.failed += counted
    return _Done(good, dead)


def _encoded(done: _Done, format: ShardFormat, schema: Schema | None) -> tuple[Mapping[str, bytes], _Done]:
    """Return the bytes of a shard's files; rows that the format cannot hold become dead letters."""
    try:
        return format.encode([row for _, row in done.rows], schema), done
    except UnwritableRowsError as error:
        refused = {failure.index: failure for failure in error.failures}
    kept = [pair for place, pair in enumerate(done.rows) if place not in refused]
    letters = [DeadLetter(done.rows[i][0].id, done.rows[i][0].index, failure) for i, failure in refused.items()]
    done = _Done(kept, sorted([*done.dead, *letters], key=lambda letter: letter.index))
    return format.encode([row for _, row in done.rows], schema), done


def _row(source: SourceRow, result: Result, layout: Layout, stats: RunStats) -> OutputValues | RowFailure:
    try:
        return layout.row(source.id, source.carried, result)
    except StageError as error:
        stats.failed += 1
        return RowFailure(source.index, "postprocessor", type(error).__name__, str(error))


@dataclass(frozen=True)
class JobPlan:
    """What every shard is made with.

    :param plugins: files and modules of plugins that the user named.
    """

    config: PipelineConfig
    layout: Layout
    format: ShardFormat
    plugins: Sequence[str] = ()


class ShardHost(Protocol):
    """The job, as what makes its shards sees it."""

    @property
    def settled(self) -> Mapping[str, Any] | None:
        """What an earlier load settled; None if there was none."""
        ...

    def loaded(self, settled: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Receive the choices of the model and the resolved config, once a pipeline is built."""
        ...

    @property
    def schema(self) -> Schema | None:
        """What all shards agree on; None if that is not settled, or if there is nothing."""
        ...

    def agree(self, schema: Schema) -> None:
        """Receive the schema of all shards, before any of them is finished."""
        ...

    def advanced(self, stats: RunStats) -> None:
        """Receive the progress of all running shards together."""
        ...

    def late(self, failure: RowFailure, work: ShardTask) -> None:
        """Note a row that timed out, before its shard is finished.

        :raises JobError: if no row more may fail.
        """
        ...


class ShardRunner(ABC):
    """Makes shards, in this process or in others."""

    @abstractmethod
    def finished(self, missing: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Make all shards of `missing`, taking them when they are needed; in any order.

        :raises JobError: if it cannot continue.
        """

    def close(self) -> None:
        """End what is still running."""
        return


def with_pinned_options(config: PipelineConfig, settled: Mapping[str, Any]) -> PipelineConfig:
    """Decide where the user said "auto" as the job's first load did, see `Model.settled`.

    `settled` may come from a file: it chooses among the values that such an option has, and sets no other one.

    :raises OutputError: if it holds a value that the option does not have.
    """
    options = config.model.options
    chosen = {name: value for name, value in settled.items() if getattr(options, name, None) == "auto"}
    if not chosen:
        return config
    faults: list[Fault] = []
    parse_options(type(options), {**vars(options), **chosen}, "model", faults)
    wrong = next((fault for fault in faults if fault.key.removeprefix("model.") in chosen), None)
    if wrong is not None:
        raise OutputError(f"the manifest of the job was changed by something else: {wrong}")
    return replace(config, model=replace(config.model, options=replace(options, **chosen)))


def with_worker_share(config: PipelineConfig, worker: int, workers: int) -> PipelineConfig:
    """Return a worker its GPU, one after another, and its part of the CPU's threads.

    :param worker: its number, from 0, of `workers` in all.
    """
    import torch

    device = config.device
    threads = max(1, (device.threads or torch.get_num_threads()) // workers)
    index = device.index
    if index is None and device.name in ("auto", "cuda") and torch.cuda.is_available():
        index = worker % torch.cuda.device_count()
    return replace(config, device=replace(device, threads=threads, index=index))


@final
class InProcessRunner(ShardRunner, Listener):
    """Builds the pipeline when the first shard needs it."""

    def __init__(self, plan: JobPlan, host: ShardHost, build: Callable[[PipelineConfig], Pipeline]) -> None:
        """Make shards by `plan` with what `build` builds."""
        self._plan, self._host, self._build = plan, host, build

    def finished(self, missing: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Make the shards in their order."""
        pipeline: Pipeline | None = None
        for work in missing:
            if pipeline is None:
                pipeline = self._build(with_pinned_options(self._plan.config, self._host.settled or {}))
                self._host.loaded(pipeline.model.settled, pipeline.description)
            yield run_shard(pipeline, work, self._plan.layout, self._plan.format, self._agree, self)

    def told(self, stats: RunStats) -> None:
        """Pass it on."""
        self._host.advanced(stats)

    def _agree(self, rows: Sequence[OutputValues]) -> Schema | None:
        if self._host.schema is None and (schema := self._plan.format.schema(rows)) is not None:
            self._host.agree(schema)
        return self._host.schema
