"""A job, and where its shards are made: the interface of runners, and the runner of this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, islice, pairwise
from typing import Any, final

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.options import parse_options
from pipeline_kit.errors import Fault, OutputError, UsageError
from pipeline_kit.files.read.parts import PartIndex
from pipeline_kit.files.read.plan import Stretch
from pipeline_kit.files.read.source import Source, SourceRow
from pipeline_kit.files.write.formats import ShardFormat, shard_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.folder import PLAN, JobFolder
from pipeline_kit.job.kind import difference, machine_kind, uses_gpus
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.sealed import ANEW, LAYOUT, is_count, sealed, unsealed
from pipeline_kit.job.shard import ShardMaker, ShardOffer, ShardResult, ShardTask
from pipeline_kit.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Job:
    """What is to be done.

    :param build: makes the pipeline of a config, in this process.
    :param restart: begin anew; the folder that is there is renamed.
    :param retry: run the rows again that failed before.
    :param path: the folder, a path or a URL.
    :param plugins: files and modules of plugins that the user named, for the processes that share the job.
    :param verify: hash the files of every shard that is done, also where opening a job compares sizes alone.
    """

    config: PipelineConfig
    source: Source
    path: str
    build: Callable[[PipelineConfig], Pipeline]
    restart: bool = False
    retry: bool = False
    plugins: Sequence[str] = ()
    verify: bool = False

    @property
    def free(self) -> bool:
        """Whether any number of rows may fail."""
        return self.retry or self.config.job.max_failed_rows is None

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


_READERS = 16


def _plan_name(part: int) -> str:
    return f"{PLAN}/part-{part:05d}.idx"


def layout_of(config: PipelineConfig) -> Layout:
    """Return the columns of the output of a job."""
    return Layout.of(config.gives, carry=config.input.carry, kinds=dict(config.output.types))


class Runner(ABC):
    """Makes shards, in this process or in others: tasks in, results out in any order.

    A :class:`ShardMaker` makes a shard and writes it; what it offers waits for :meth:`JobLedger.agree`. Every
    pipeline is built with :func:`with_pinned_options` and what the ledger has pinned, and the first one is reported to
    :meth:`JobLedger.loaded` before any other is built. While the ledger has no schema, the first offer that it gets is
    that of the first task.
    """

    @classmethod
    def check(cls, job: Job) -> None:
        """Refuse a job that cannot be made here, before anything is written.

        :raises UsageError: if it cannot, with what to do.
        """
        return

    def __init__(self, job: Job, ledger: JobLedger, folder: JobFolder) -> None:
        """Make the shards of `job` in `folder`; report to `ledger` what is loaded and which rows timed out."""
        self.job, self.ledger, self.folder = job, ledger, folder
        self._maker: ShardMaker | None = None

    def batches(self, number: int, row: int) -> Iterator[Sequence[SourceRow] | Stretch]:
        """Go through the rows of each shard, from the shard `number` on; they are read here, from `row` on."""
        del number
        rows = self.job.source.rows(row)
        while batch := list(islice(rows, self.job.config.output.rows_per_shard)):
            yield batch

    def planned(self, indexes: Sequence[PartIndex], number: int) -> Iterator[Stretch]:
        """Divide the input by what was found in its parts; go through the shards from `number` on."""
        plan = self.job.source.plan(indexes, self.job.config.output.rows_per_shard)
        self.ledger.planned(plan.rows)
        return (plan[place] for place in range(number, len(plan)))

    @abstractmethod
    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield the result of every task; a task is taken when there is somebody to run it.

        :raises JobError: if it cannot continue.
        """

    def kept_indexes(self) -> dict[int, PartIndex]:
        """Read what earlier runs of this job found in the parts of the input; what is not as they wrote it is left out.

        :returns: by the number of the part.
        """
        there = {*self.folder.plans()}
        parts = [part for part in range(self.job.source.parts) if _plan_name(part) in there]
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(parts, pool.map(self._kept, parts), strict=True)
        return {part: index for part, index in found if index is not None}

    def _kept(self, part: int) -> PartIndex | None:
        try:
            line, _, body = self.folder.read(name := _plan_name(part)).partition(b"\n")
            head = unsealed(line, self.folder.at(name)) or {}
            sizes, rows, with_ids = head["sizes"], head["rows"], head["ids"]
            marks, ids, places = (body[start:end] for start, end in pairwise(accumulate(sizes, initial=0)))
        except (OSError, OutputError, KeyError, TypeError, ValueError):
            return None
        own = (head.get("job"), head.get("part"), head.get("data")) == (self.ledger.key, part, sha256(body).hexdigest())
        whole = is_count(rows) and sizes == [len(marks), 8 * rows * bool(with_ids), len(places)]
        if not own or not whole or sum(sizes) != len(body) or len(marks) % 16 or len(places) % 16:
            return None
        return PartIndex(rows, marks, ids if with_ids else None, places)

    def keep_index(self, part: int, index: PartIndex) -> None:
        """Write what was found in a part of the input, for a run that continues the job.

        :raises OutputError: if it cannot be written.
        """
        data = (index.marks, index.ids or b"", index.places)
        body, sizes = b"".join(data), [len(each) for each in data]
        head = {"layout": LAYOUT, "job": self.ledger.key, "part": part, "rows": index.rows, "sizes": sizes}
        head |= {"ids": index.ids is not None, "data": sha256(body).hexdigest()}
        self.folder.put_plan(_plan_name(part), sealed(head) + body)

    def run(self, task: ShardTask) -> ShardResult:
        """Make a shard in this process, whose pipeline is built when the first one needs it."""
        job, ledger = self.job, self.ledger
        if self._maker is None:
            kind = machine_kind(gpus=uses_gpus(job.config))
            self.check_machine(kind)
            pipeline = job.build(with_pinned_options(job.config, ledger.pinned or {}))
            ledger.loaded(pipeline.pinned_options, {**pipeline.description, "machine": kind})
            place = (job.source, job.layout, job.format, self.folder, ledger.key)
            self._maker = ShardMaker(pipeline, *place, free=job.free)
        made = self._maker.make(task, ledger.advanced)
        while isinstance(made, ShardOffer):
            made = self._maker.write(ledger.agree(made))
        return made

    def check_machine(self, kind: Mapping[str, Any]) -> None:
        """See that this machine is of the kind that the job began on; rows that failed are run again on any.

        :param kind: see :func:`pipeline_kit.job.kind.machine_kind`.
        :raises UsageError: if it is another kind, unless ``runner.mixed`` allows that.
        """
        began = self.ledger.machine
        found = None if began is None else difference(kind, began)
        if found is not None and not self.job.retry and self.job.config.runner.mixed == "refuse":
            raise UsageError(
                f"{self.folder.key}: the job began on another kind of machine: {found}\n"
                "  The last digits of numbers may differ between the two. Continue on a machine of the first kind; or "
                f"add runner.mixed=allow, which gives up equal bytes; or begin anew with {ANEW}"
            )

    def close(self) -> None:
        """End what is still running."""
        return


@final
class InProcessRunner(Runner):
    """Makes the shards in this process, in their order."""

    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield them one after the other."""
        return map(self.run, tasks)


def with_pinned_options(config: PipelineConfig, pinned: Mapping[str, Any]) -> PipelineConfig:
    """Decide where the user said "auto" as the job's first load did, see `Model.pinned_options`.

    `pinned` may come from a file: it chooses among the values that such an option has, and sets no other one.

    :raises OutputError: if it holds a value that the option does not have.
    """

    def changed(name: str, part: PipelineConfig) -> PipelineConfig:
        found = pinned.get(name, {}) if name else pinned
        return _with_pinned(part, found if isinstance(found, Mapping) else {})

    return config.mapped(changed)


def _with_pinned(config: PipelineConfig, pinned: Mapping[str, Any]) -> PipelineConfig:
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
