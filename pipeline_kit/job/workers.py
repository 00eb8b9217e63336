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
from pipeline_kit.contract.types import RowFailure, RunStats
from pipeline_kit.errors import JobError, PipelineKitError
from pipeline_kit.job import worker
from pipeline_kit.job.shard import JobPlan, ShardHost, ShardResult, ShardRunner, ShardTask
from pipeline_kit.job.worker import Agreed, Loaded, Progress, Proposed, ShardDone, StageStarted, Start, WorkerFailed

LOADING = "loading"
SECONDS_TO_LOAD = 600.0


@final
class WorkerPool(ShardRunner):
    """Hands out shards to workers, one at a time to each.

    The first worker that has loaded settles how the others load, and the first shard settles what all agree on,
    so the result is that of one process.
    """

    def __init__(self, plan: JobPlan, host: ShardHost) -> None:
        """Make shards by `plan`, with as many workers as ``runner.workers`` says, or as there are shards."""
        self._plan, self._host = plan, host
        self._runner = plan.config.runner
        self._hands: list[WorkerProcess] = []
        self._settled: Mapping[str, Any] | None = host.settled
        self._missing: Iterator[ShardTask] = iter(())

    def finished(self, missing: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield shards as they are finished."""
        self._missing = missing
        while len(self._hands) < self._runner.workers and (work := next(self._missing, None)) is not None:
            hand = WorkerProcess(len(self._hands))
            hand.work = work
            self._hands.append(hand)
            self._start(hand)
        while any(hand.work is not None for hand in self._hands):
            wait([hand.connection for hand in self._hands], timeout=self._patience())
            for hand in list(self._hands):
                while hand.connection.poll():
                    made = self._hear(hand)
                    if made is not None:
                        yield made
            self._settle_schema()
            self._end_late()

    def close(self) -> None:
        """End the workers."""
        for hand in self._hands:
            hand.end()
        self._hands.clear()

    def _start(self, hand: WorkerProcess) -> None:
        """Send the config: to the first worker, and to the others once the first has made its choices."""
        if hand.started or (self._settled is None and hand.number > 0):
            return
        hand.started = True
        hand.entered[LOADING] = (monotonic(), ())
        plan, runner = self._plan, self._runner
        hand.send(
            Start(
                plan.config.data,
                plan.plugins,
                self._settled or {},
                plan.layout,
                plan.format,
                hand.number,
                runner.workers,
                runner.batch_timeout is not None,
            )
        )

    def _hear(self, hand: WorkerProcess) -> ShardResult | None:
        try:
            message = hand.connection.recv()
        except (EOFError, OSError) as error:
            raise hand.died() from error
        match message:
            case Loaded():
                self._loaded(hand, message)
            case StageStarted():
                if message.rows:
                    hand.entered[message.stage] = (monotonic(), message.rows)
                else:
                    hand.entered.pop(message.stage, None)
            case Progress():
                hand.live = message.stats
                self._host.advanced(RunStats.total(each.live for each in self._hands))
            case Proposed():
                hand.proposed = message.schema
            case ShardDone():
                hand.live = RunStats()
                hand.work = next(self._missing, None)
                if hand.work is not None:
                    hand.send(hand.work)
                return message.shard
            case WorkerFailed():
                raise _error(message)
        return None

    def _loaded(self, hand: WorkerProcess, message: Loaded) -> None:
        hand.entered.pop(LOADING, None)
        first = self._settled is None
        if first:
            self._settled = message.settled
        self._host.loaded(message.settled, message.description)
        hand.send(hand.work)
        if first:
            for other in self._hands:
                self._start(other)

    def _settle_schema(self) -> None:
        """Let the first of the shards that are being made settle what all agree on, then tell those that wait."""
        waiting = [hand for hand in self._hands if hand.proposed is not None]
        if not waiting:
            return
        if self._host.schema is None:
            first = min((hand for hand in self._hands if hand.work is not None), key=lambda hand: hand.work.number)  # type: ignore[union-attr]
            if first.proposed is None:
                return
            self._host.agree(first.proposed)
        assert self._host.schema is not None
        for hand in waiting:
            hand.proposed = None
            hand.send(Agreed(self._host.schema))

    def _patience(self) -> float | None:
        """Return how long nothing need be heard before some stage has taken too long."""
        if self._runner.batch_timeout is None:
            return None
        ends = [since + self._limit(stage) for hand in self._hands for stage, (since, _) in hand.entered.items()]
        return max(0.0, min(ends) - monotonic()) + 0.001 if ends else None

    def _limit(self, stage: str) -> float:
        """Return how many seconds a stage may take."""
        limit = self._runner.batch_timeout
        assert limit is not None, "asked only where there is one"
        return max(limit, SECONDS_TO_LOAD) if stage == LOADING else limit

    def _end_late(self) -> None:
        """End workers of which a stage takes too long; their shards are made again, the rows in question alone."""
        if self._runner.batch_timeout is None:
            return
        now = monotonic()
        for place, hand in enumerate(self._hands):
            late = next((item for item in hand.entered.items() if now - item[1][0] > self._limit(item[0])), None)
            if late is None:
                continue
            if late[0] == LOADING:
                raise JobError(
                    f"worker {hand.number} did not load in {self._limit(LOADING):g} s; its process was ended. Loading "
                    f"may take {SECONDS_TO_LOAD:g} s, or runner.batch_timeout if that is more.\n"
                    "  A checkpoint that takes long to download: run once without runner.batch_timeout"
                )
            assert hand.work is not None, "only a worker with a shard enters stages"
            stage, (_, rows) = late
            work = _suspected(hand.work, stage, rows, self._limit(stage))
            hand.end()
            fresh = self._hands[place] = WorkerProcess(hand.number)
            fresh.work = work
            for row in work.late.keys() - hand.work.late.keys():
                self._host.late(work.late[row], work)
            self._start(fresh)


def _suspected(work: ShardTask, stage: str, rows: Any, limit: float) -> ShardTask:
    """Narrow down which row takes too long: those that a stage was given together are next run alone."""
    if len(rows) > 1:
        return replace(work, alone=work.alone | set(rows))
    told = f"stage '{stage}' returned nothing for this row in {limit:g} s (runner.batch_timeout); its process was ended"
    failure = RowFailure(rows[0], stage, "StageTimeout", told)
    return replace(work, alone=work.alone - set(rows), late={**work.late, rows[0]: failure})


def _error(broke: WorkerFailed) -> PipelineKitError:
    """Return the error of a worker as one of this process."""
    kind: Any = getattr(errors, broke.error, None)
    ours = isinstance(kind, type) and issubclass(kind, PipelineKitError) and kind.__init__ is PipelineKitError.__init__
    error: PipelineKitError
    if ours:
        error = kind(broke.message)
    else:
        known = isinstance(kind, type) and issubclass(kind, PipelineKitError)
        error = JobError(broke.message if known else f"a worker failed: {broke.error}: {broke.message}")
        error.exit_code = getattr(kind, "exit_code", 1)
    error.add_note(broke.trace)
    return error


SECONDS_TO_END = 2.0


@final
class WorkerProcess:
    """One worker.

    :ivar work: the shard that it makes or will make; None if it waits for one.
    :ivar started: whether it was told what to build.
    :ivar entered: by stage, since when it works on which rows, ``time.monotonic()``.
    :ivar proposed: what all shards could agree on, while it waits to hear what they do; None otherwise.
    """

    def __init__(self, number: int) -> None:
        """Start the process; it loads nothing before it is told what."""
        self.number = number
        self.work: ShardTask | None = None
        self.started = False
        self.live = RunStats()
        self.entered: dict[str, tuple[float, Sequence[int]]] = {}
        self.proposed: Any = None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = f"pipeline-kit-worker-{number}"
        self.process = context.Process(target=worker.main, args=(theirs,), daemon=True, name=name)
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
        work = "" if self.work is None else f" while it made shard {self.work.number}"
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
