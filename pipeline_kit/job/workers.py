"""Shards made by several processes, and by one that may be ended when a stage takes too long."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from time import monotonic
from typing import Any, final

from pipeline_kit import errors
from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, PipelineKitError, RowFailure
from pipeline_kit.files.read.parts import PartIndex
from pipeline_kit.files.read.plan import Stretch
from pipeline_kit.files.read.source import Source, SourceRow
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.runner import Job, Runner
from pipeline_kit.job.shard import ShardOffer, ShardResult, ShardTask, rows_of
from pipeline_kit.job.worker import WorkerSetup, main

LOADING = "loading"
SECONDS_TO_LOAD = 600.0


@final
class WorkerPool(Runner):
    """Assigns shards to at most ``runner.workers`` processes, one shard at a time to each.

    All others load with the options that the first worker to load has pinned, and all shards have the schema of the
    first one, so the result is that of one process.
    """

    def __init__(self, job: Job, ledger: JobLedger, folder: JobFolder) -> None:
        """Start no process before there is a shard for it."""
        super().__init__(job, ledger, folder)
        self._timeout = job.config.runner.batch_timeout
        self._workers: list[WorkerProcess] = []
        self._pinned: Mapping[str, Any] | None = ledger.pinned
        self._found: dict[int, PartIndex] = {}

    def batches(self, number: int, row: int) -> Iterator[Sequence[SourceRow] | Stretch]:
        """Let the workers index the input, each file one of them; they read the rows of their shards by themselves."""
        source = self.job.source
        if not source.splittable:
            return super().batches(number, row)
        return self.planned(self._indexes(source), number)

    def _indexes(self, source: Source) -> Sequence[PartIndex]:
        """Have each part gone through, as far as its rows are needed."""
        self._found = self.kept_indexes()
        parts, enough = (part for part in range(source.parts) if part not in self._found), source.rows_needed
        idle: list[WorkerProcess] = []
        whole, rows = 0, 0
        while True:
            while whole in self._found:
                rows, whole = rows + self._found[whole].rows, whole + 1
            while enough is None or rows < enough:
                if not idle and len(self._workers) == self.job.config.runner.workers:
                    break
                if (part := next(parts, None)) is None:
                    break
                worker = idle.pop() if idle else self._add()
                worker.send(("index", part))
            if len(idle) == len(self._workers):
                break
            for worker in self._ready():
                before = len(self._found)
                self._receive(worker)
                idle += [worker] if len(self._found) > before else []
        return [self._found[part] for part in range(whole)]

    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield shards as they are finished."""
        for number in range(self.job.config.runner.workers):
            if (task := next(tasks, None)) is None:
                break
            worker = self._workers[number] if number < len(self._workers) else self._add()
            worker.task = task
            self._start(worker)
        while any(worker.task is not None for worker in self._workers):
            for worker in self._ready():
                while worker.connection.poll():
                    self._receive(worker)
            self._agree()
            for worker in self._workers:
                if worker.result is not None:
                    result = worker.result
                    worker.assign(next(tasks, None))
                    yield result
            self._end_late()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _add(self) -> WorkerProcess:
        """Start a process, which loads nothing yet."""
        self._workers.append(WorkerProcess(self._setup(len(self._workers))))
        return self._workers[-1]

    def _setup(self, number: int) -> WorkerSetup:
        job = self.job
        names = job.source.names if job.source.splittable else ()
        return WorkerSetup(job.config.data, job.plugins, names, self.folder.key, self.ledger.key, job.free, number)

    def _ready(self) -> list[WorkerProcess]:
        """Wait until some workers have sent something, or one is late."""
        found = wait([worker.connection for worker in self._workers], timeout=self._patience())
        return [worker for worker in self._workers if worker.connection in found]

    def _start(self, worker: WorkerProcess) -> None:
        """Have the pipeline loaded: by the first worker, and by the others once the first has made its choices."""
        if self._pinned is not None or worker.number == 0:
            worker.entered[LOADING] = (monotonic(), ())
            worker.send(("load", self._pinned or {}))

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise worker.died() from error
        match message:
            case "loaded", pinned, description:
                self._loaded(worker, pinned, description)
            case "indexed", part, index:
                self._found[part] = index
                self.keep_index(part, index)
            case "stage", stage, rows:
                if rows:
                    worker.entered[stage] = (monotonic(), rows)
                else:
                    worker.entered.pop(stage, None)
            case "progress", stats:
                worker.live = stats
                self.ledger.advanced(RunStats.total(each.live for each in self._workers))
            case "made", ShardOffer() as offer:
                worker.offer = offer
            case "made", result:
                worker.live, worker.result = RunStats(), result
            case "failed", name, text, trace:
                raise error_of(name, text, trace)

    def _loaded(self, worker: WorkerProcess, pinned: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Send the first task; let the other workers load once the first has."""
        worker.entered.clear()
        first = self._pinned is None
        if first:
            self._pinned = pinned
        self.check_machine(description["machine"])
        self.ledger.loaded(pinned, description)
        worker.send(worker.task)
        for other in self._workers if first else ():
            if other is not worker and other.task is not None:
                self._start(other)

    def _agree(self) -> None:
        """Let shards be written that wait for it.

        Until the job has a schema, a shard waits for those of earlier tasks, so that the first one decides it.
        """
        waiting = False
        for worker in sorted(self._workers, key=lambda worker: -1 if worker.task is None else worker.task.number):
            offer = worker.offer
            if offer is None:
                waiting = waiting or (worker.task is not None and worker.result is None)
            elif not (waiting and self.ledger.schema is None and offer.schema is not None):
                worker.offer = None
                worker.send(("write", self.ledger.agree(offer)))

    def _patience(self) -> float | None:
        """Return how long nothing need be received before some stage has taken too long."""
        ends = [since + self._limit(stage) for worker in self._workers for stage, (since, _) in worker.entered.items()]
        return None if self._timeout is None or not ends else max(0.0, min(ends) - monotonic()) + 0.001

    def _limit(self, stage: str) -> float:
        """Return how many seconds a stage may take."""
        limit = self._timeout or 0.0
        return max(limit, SECONDS_TO_LOAD) if stage == LOADING else limit

    def _end_late(self) -> None:
        """End workers of which a stage takes too long; their shards are run again, the rows in question alone."""
        now = monotonic()
        for place, worker in enumerate(self._workers if self._timeout is not None else ()):
            late = next((item for item in worker.entered.items() if now - item[1][0] > self._limit(item[0])), None)
            if late is None:
                continue
            stage, (_, rows) = late
            if stage == LOADING:
                raise not_loaded(f"worker {worker.number}", self._limit(LOADING))
            assert worker.task is not None, "only a worker with a shard enters stages"
            worker.end()
            task, failure = after_timeout(worker.task, stage, rows, self._limit(stage))
            self._workers[place] = fresh = WorkerProcess(worker.setup, task)
            if failure is not None:
                self.ledger.timed_out(task.number, rows_of(task, self.job.source), failure)
            self._start(fresh)


def after_timeout(
    task: ShardTask, stage: str, rows: Sequence[int], seconds: float
) -> tuple[ShardTask, RowFailure | None]:
    """Return the task that is run after a stage took too long for `rows`: those alone; one alone is a failed row."""
    alone, timed_out, failure = task.run_alone | set(rows), task.timed_out, None
    if len(rows) == 1:
        alone -= set(rows)
        message = f"stage '{stage}' returned nothing for this row in {seconds:g} s "
        message += "(runner.batch_timeout); its process was ended"
        failure = RowFailure(rows[0], stage, "StageTimeout", message)
        timed_out = {**timed_out, rows[0]: failure}
    return replace(task, run_alone=alone, timed_out=timed_out), failure


def not_loaded(worker: str, seconds: float) -> JobError:
    """Return the error for a worker that did not load in time."""
    return JobError(
        f"{worker} did not load in {seconds:g} s; its process was ended. "
        f"Loading may take {SECONDS_TO_LOAD:g} s, or runner.batch_timeout if that is more.\n"
        "  A checkpoint that takes long to download: run once without runner.batch_timeout"
    )


def error_of(name: str, message: str, trace: str) -> PipelineKitError:
    """Return the error of a worker as one of this process."""
    kind: Any = getattr(errors, name, None)
    known = isinstance(kind, type) and issubclass(kind, PipelineKitError)
    error: PipelineKitError
    if known and kind.__init__ is PipelineKitError.__init__:
        error = kind(message)
    else:
        error = JobError(message if known else f"a worker failed: {name}: {message}")
        error.exit_code = getattr(kind, "exit_code", 1)
    error.add_note(trace)
    return error


SECONDS_TO_END = 2.0


@final
class WorkerProcess:
    """One worker.

    :ivar task: the shard that it makes or will make; None if there are no more.
    :ivar offer: what it has made of it, until the ledger agrees.
    :ivar result: what it has written, until the pool yields it.
    :ivar entered: by stage, since when it works on which rows, ``time.monotonic()``.
    """

    def __init__(self, setup: WorkerSetup, task: ShardTask | None = None) -> None:
        """Start the process; it loads nothing before the pool sends ``load``."""
        self.setup, self.number = setup, setup.number
        self.task: ShardTask | None = task
        self.offer: ShardOffer | None = None
        self.result: ShardResult | None = None
        self.live = RunStats()
        self.entered: dict[str, tuple[float, Sequence[int]]] = {}
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = f"pipeline-kit-worker-{setup.number}"
        self.process = context.Process(target=main, args=(theirs,), daemon=True, name=name)
        with _without_interrupts():
            self.process.start()
        theirs.close()
        self.send(setup)

    def send(self, message: Any) -> None:
        """Send a message to the worker.

        :raises JobError: if it is gone.
        """
        try:
            self.connection.send(message)
        except OSError as error:
            raise self.died() from error

    def assign(self, task: ShardTask | None) -> None:
        """Send the next task, in the place of the one that has a result; None if there are no more."""
        self.task, self.result = task, None
        if task is not None:
            self.send(task)

    def died(self) -> JobError:
        """Describe how the process ended."""
        self.process.join(SECONDS_TO_END)
        code = self.process.exitcode
        how = "closed its connection" if code is None else f"ended with exit code {code}"
        hint = "an extension module may have ended it"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                hint = (
                    "the system does that when memory runs out: fewer runner.workers or a smaller batching.max_tokens"
                )
        work = "" if self.task is None else f" while it made shard {self.task.number}"
        return JobError(
            f"worker {self.number} (process {self.process.pid}) {how}{work}; {hint}.\n"
            "  What is done is kept; run the same command again to continue"
        )

    def end(self) -> None:
        """End the process at once, whatever it does: files appear when they are whole, so nothing is torn."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process that ctrl-c does not reach before it can say so itself; this one gets it a moment later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
