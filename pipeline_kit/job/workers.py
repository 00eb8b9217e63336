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
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.runner import Job, Runner
from pipeline_kit.job.shard import ShardResult, ShardTask
from pipeline_kit.job.worker import main

LOADING = "loading"
SECONDS_TO_LOAD = 600.0


@final
class WorkerPool(Runner):
    """Assigns shards to at most ``runner.workers`` processes, one shard at a time to each.

    All others load with the options that the first worker to load has pinned, and all shards have the schema of the
    first one, so the result is that of one process.
    """

    def __init__(self, job: Job, ledger: JobLedger) -> None:
        """Start no process before there is a shard for it."""
        super().__init__(job, ledger)
        self._timeout = job.config.runner.batch_timeout
        self._workers: list[WorkerProcess] = []
        self._pinned: Mapping[str, Any] | None = ledger.pinned

    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield shards as they are finished."""
        while len(self._workers) < self.job.config.runner.workers and (task := next(tasks, None)) is not None:
            self._workers.append(WorkerProcess(len(self._workers), task))
            self._start(self._workers[-1])
        while any(worker.task is not None for worker in self._workers):
            wait([worker.connection for worker in self._workers], timeout=self._patience())
            for worker in self._workers:
                while worker.connection.poll():
                    self._receive(worker)
            yield from self._finished(tasks)
            self._end_late()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _start(self, worker: WorkerProcess) -> None:
        """Send the config: to the first worker, and to the others once the first has made its choices."""
        if self._pinned is not None or worker.number == 0:
            worker.entered[LOADING] = (monotonic(), ())
            worker.send((self.job.config.data, self.job.plugins, self._pinned or {}, worker.number))

    def _receive(self, worker: WorkerProcess) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise worker.died() from error
        match message:
            case "loaded", pinned, description:
                worker.entered.clear()
                first = self._pinned is None
                if first:
                    self._pinned = pinned
                self.ledger.loaded(pinned, description)
                worker.send(worker.task)
                for other in self._workers if first else ():
                    if other is not worker:
                        self._start(other)
            case "stage", stage, rows:
                if rows:
                    worker.entered[stage] = (monotonic(), rows)
                else:
                    worker.entered.pop(stage, None)
            case "progress", stats:
                worker.live = stats
                self.ledger.advanced(RunStats.total(each.live for each in self._workers))
            case "shard", result:
                worker.live, worker.result = RunStats(), result
            case "failed", name, text, trace:
                raise _error(name, text, trace)

    def _finished(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield the results that came in, and hand out the next tasks.

        Until the job has a schema, a result waits for the results of earlier tasks, so that the first one decides it.
        """
        waiting = False
        for worker in sorted(self._workers, key=lambda worker: -1 if worker.task is None else worker.task.number):
            result, schema = worker.result, self.ledger.schema
            if result is None or worker.task is None:
                waiting = waiting or worker.task is not None
            elif schema is None and result.schema is not None and waiting:
                continue
            elif schema not in (None, result.schema):  # it was made before the first result had settled that
                worker.assign(replace(worker.task, schema=schema))
            else:
                worker.assign(next(tasks, None))
                yield result

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
                raise JobError(
                    f"worker {worker.number} did not load in {self._limit(LOADING):g} s; its process was ended. "
                    f"Loading may take {SECONDS_TO_LOAD:g} s, or runner.batch_timeout if that is more.\n"
                    "  A checkpoint that takes long to download: run once without runner.batch_timeout"
                )
            assert worker.task is not None, "only a worker with a shard enters stages"
            worker.end()
            alone, timed_out = worker.task.run_alone | set(rows), worker.task.timed_out
            if len(rows) == 1:
                alone -= set(rows)
                message = f"stage '{stage}' returned nothing for this row in {self._limit(stage):g} s "
                message += "(runner.batch_timeout); its process was ended"
                timed_out = {**timed_out, rows[0]: RowFailure(rows[0], stage, "StageTimeout", message)}
            task = replace(worker.task, run_alone=alone, timed_out=timed_out)
            self._workers[place] = fresh = WorkerProcess(worker.number, task)
            if len(rows) == 1:
                self.ledger.timed_out(timed_out[rows[0]], task)
            self._start(fresh)


def _error(name: str, message: str, trace: str) -> PipelineKitError:
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
    :ivar result: what it has made of it, until the pool yields it.
    :ivar entered: by stage, since when it works on which rows, ``time.monotonic()``.
    """

    def __init__(self, number: int, task: ShardTask) -> None:
        """Start the process; it loads nothing before it receives a config."""
        self.number = number
        self.task: ShardTask | None = task
        self.result: ShardResult | None = None
        self.live = RunStats()
        self.entered: dict[str, tuple[float, Sequence[int]]] = {}
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = f"pipeline-kit-worker-{number}"
        self.process = context.Process(target=main, args=(theirs,), daemon=True, name=name)
        with _without_interrupts():
            self.process.start()
        theirs.close()

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
        """End the process at once, whatever it does; it writes no file, so nothing is torn."""
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
