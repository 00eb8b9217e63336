"""``runner=ray``: shards made by the actors of a cluster, which may die."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any, final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import JobError, PipelineKitError, UsageError
from pipeline_kit.files.read.parts import PartIndex
from pipeline_kit.files.read.plan import Stretch
from pipeline_kit.files.read.source import SourceRow
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.kind import difference, environment
from pipeline_kit.job.ledger import JobLedger
from pipeline_kit.job.ray_cluster import IDLE, LOADING, RemoteWorker, import_ray, join, reason_of
from pipeline_kit.job.ray_worker import WorkerFailure, WorkerReport, own_options
from pipeline_kit.job.runner import Job, Runner
from pipeline_kit.job.shard import ShardOffer, ShardResult, ShardTask, rows_of
from pipeline_kit.job.worker import WorkerSetup
from pipeline_kit.job.workers import SECONDS_TO_LOAD, after_timeout, error_of, not_loaded

LOOK_SECONDS, LOOK_SHARE = 2.0, 0.02
"""How often each worker is asked how far it is: the seconds, and at least so many for each worker there is."""
WAITING_SECONDS = 30.0
SECONDS_TO_ANSWER = 30.0
DEPTH = 2
"""How many shards a worker is given: one that it makes, and the next."""


@dataclass(frozen=True)
class _Call:
    """A call that has not returned."""

    worker: RemoteWorker
    method: str
    since: float


@final
class RayRunner(Runner):
    """Hands the numbers of shards to ``runner.workers`` actors, and keeps count of what they do.

    The first one that loads pins what it measured; all others load with that. The shards of a worker that died go to
    others. When nothing is left to hand out, idle workers make the oldest shards as well, and the first result counts:
    files are created once, so that a second writer changes nothing.
    """

    @classmethod
    def check(cls, job: Job) -> None:
        """See that workers can do what the config asks for.

        :raises UsageError: if not, with what to do.
        """
        import_ray()
        if not job.source.splittable:
            raise UsageError(
                "runner=ray: workers read the input themselves, and cannot read stdin, pipes or rows of Python; "
                "write the rows to a file, such as rows.jsonl, and pass that"
            )
        for name, part in job.config.parts.items():
            if part.device.name not in ("auto", "cpu") and not own_options(job.config).gpus_per_worker:
                where = f"steps.{name}.device" if name else "device"
                raise UsageError(f"{where}={part.device.name}: a worker has no GPU; add runner.gpus_per_worker=1")

    def __init__(self, job: Job, ledger: JobLedger, folder: JobFolder) -> None:
        """Start nothing before there is a shard."""
        super().__init__(job, ledger, folder)
        self._options = own_options(job.config)
        self._timeout = self._options.batch_timeout
        self._ray = import_ray()
        self._joined = False
        self._here: Mapping[str, Any] = {}
        self._workers: list[RemoteWorker] = []
        self._refused: list[RemoteWorker] = []
        self._calls: dict[Any, _Call] = {}
        self._parts: deque[int] = deque()
        self._indexes: dict[int, PartIndex] = {}
        self._again: deque[ShardTask] = deque()
        self._running: dict[int, list[RemoteWorker]] = {}
        self._begun: dict[int, float] = {}
        self._deaths: Counter[str] = Counter()
        self._counts = Counter({"lost": 0, "again": 0, "refused": 0, "speculated": 0})
        self._settled = False  # whether there is a schema, or is known to be none
        self._pinned: Mapping[str, Any] | None = ledger.pinned
        self._kind: Mapping[str, Any] | None = ledger.machine
        self._waiting_since = monotonic()

    def batches(self, number: int, row: int) -> Iterator[Sequence[SourceRow] | Stretch]:
        """Let the workers index the input, each file one of them; they read the rows of their shards by themselves."""
        source = self.job.source
        self._indexes = self.kept_indexes()
        if not self._enough:
            self._parts.extend(part for part in range(source.parts) if part not in self._indexes)
        self._start(min(self._options.workers, len(self._parts)))
        while self._parts or any(worker.part is not None for worker in self._workers):
            for worker in self._workers:
                if self._parts and worker.part is None and worker.report is not None:
                    worker.part = self._parts.popleft()
                    self._call(worker, "index", worker.part)
            self._wait()
            if self._enough:
                self._parts.clear()
        return self.planned(self._whole(), number)

    @property
    def _enough(self) -> bool:
        """Whether the first parts hold all rows that are read."""
        needed = self.job.source.rows_needed
        return needed is not None and sum(part.rows for part in self._whole()) >= needed

    def _whole(self) -> list[PartIndex]:
        """Return what was found in the first parts, up to one that is not there yet."""
        return [found for place, (part, found) in enumerate(sorted(self._indexes.items())) if place == part]

    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        """Yield shards as they are finished.

        :raises JobError: if a shard costs too many workers.
        """
        self._again.extend(islice(tasks, self._options.workers))
        self._start(len(self._again))
        while True:
            self._hand_out(tasks)
            if not (self._again or self._running):
                break
            yield from self._wait()
            try:
                self._agree()
            except JobError:
                yield from self._agreed()
                raise
        self._tell()
        if self._counts["lost"] or self._counts["refused"]:
            self.ledger.event("workers", f"ray: {_counted(self._counts)}", self._counts)

    def close(self) -> None:
        """End the workers, and leave the cluster."""
        for worker in (*self._workers, *self._refused):
            worker.end()
        self._workers.clear()
        self._calls.clear()
        if self._joined:
            self._ray.shutdown()

    def _start(self, count: int) -> None:
        """Begin to start workers, up to `count`."""
        if count > len(self._workers):
            if not self._here:
                self._here = environment(self.job.config)
                self._joined = join(self._options.address)
            for number in range(len(self._workers), count):
                self._workers.append(self._started(number))

    def _started(self, number: int) -> RemoteWorker:
        job, worker = self.job, RemoteWorker(number, self._options)
        key = self.ledger.key
        setup = WorkerSetup(job.config.data, job.plugins, job.source.names, self.folder.key, key, job.free, number)
        self._call(worker, "open", setup, os.getcwd())
        return worker

    def _call(self, worker: RemoteWorker, method: str, *args: Any) -> None:
        self._calls[worker.call(method, *args)] = _Call(worker, method, monotonic())

    def _hand_out(self, tasks: Iterator[ShardTask]) -> None:
        """Assign a shard to every worker, then a second one; to idle workers shards that others have."""
        loaded = [worker for worker in self._workers if worker.loaded]
        for depth in range(1, 1 + (DEPTH if self._settled else 1)):
            if depth > 1 and self._again:
                break  # a shard that was lost waits for a worker that is free, not behind another one's shard
            for worker in loaded:
                if len(worker.tasks) - len(worker.made) < depth:
                    task = self._again.popleft() if self._again else next(tasks, None)
                    if task is None:
                        break
                    self._make(worker, task)
        for worker in loaded if self._options.speculate and not self._again else ():
            if not worker.tasks and (task := self._slowest()) is not None:
                self._counts["speculated"] += 1
                self._make(worker, task)

    def _make(self, worker: RemoteWorker, task: ShardTask) -> None:
        self._running.setdefault(task.number, []).append(worker)
        self._begun.setdefault(task.number, monotonic())
        worker.tasks[task.number] = task
        self._call(worker, "make", task)

    def _slowest(self) -> ShardTask | None:
        """Return the shard that one worker alone has: one that it has not begun, else the oldest."""
        alone = [(number, found[0]) for number, found in self._running.items() if len(found) == 1]
        alone = [(number, worker) for number, worker in alone if number not in worker.made]
        if not alone:
            return None
        number, worker = min(alone, key=lambda item: (item[0] == item[1].head, self._begun[item[0]]))
        return worker.tasks[number]

    def _wait(self) -> list[ShardResult]:
        """Wait until a call returns, or workers are to be asked how far they are."""
        ready, _ = self._ray.wait([*self._calls], num_returns=1, timeout=self._patience())
        found = [result for ref in ready if (result := self._receive(ref)) is not None]
        self._look()
        return found

    def _receive(self, ref: Any) -> ShardResult | None:
        """Take what a call returned, or note that its worker was lost."""
        call = self._calls.pop(ref)
        worker = call.worker
        try:
            found = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._replace(worker, reason_of(error))
            return None
        if isinstance(found, WorkerFailure):
            raise self._failed(worker, found)
        match call.method, found:
            case "open", report:
                self._opened(worker, report)
            case "index", (part, index):
                worker.part, self._indexes[part] = None, index
                self.keep_index(part, index)
            case "load", (pinned, description):
                self._loaded(worker, pinned, description)
            case "status", (stats, entered):
                self._end_late(worker, stats, entered)
            case _, ShardOffer() as offer:
                worker.made.add(offer.number)
                worker.offers[offer.number] = offer
            case _, ShardResult() as result:
                del worker.tasks[result.number]
                worker.made.discard(result.number)
                self._settled = True
                if self._running.pop(result.number, None) is not None:
                    self._begun.pop(result.number)
                    return result
        return None

    def _opened(self, worker: RemoteWorker, report: WorkerReport) -> None:
        """Compare a worker with this process, and with the kind of machine that the job began on."""
        worker.report = report
        found = difference(self._here, report.environment)
        if found is not None:
            raise UsageError(
                f"runner=ray: {worker.place} has other files or versions than this process: {found}\n"
                "  All nodes need the same versions, plugins and checkpoint; nothing of the job was changed"
            )
        other = None if self._kind is None else difference(self._kind, report.kind)
        if other is None:
            self._kind = report.kind
        elif self._options.mixed == "refuse":
            text = f"{worker.place} is another kind of machine than the job began on, and is not used: {other}"
            self.ledger.event("refused", text, {"node": report.node, "difference": other})
            self._counts["refused"] += 1
            self._refused.append(worker)  # it stays, so that the next one is started elsewhere
            self._workers[self._workers.index(worker)] = self._started(worker.number)
            return
        if self._pinned is not None or not any(call.method == "load" for call in self._calls.values()):
            self._call(worker, "load", self._pinned or {})

    def _loaded(self, worker: RemoteWorker, pinned: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        worker.loaded, self._deaths[LOADING] = True, 0
        first = self._pinned is None
        if first:
            self._pinned = pinned
        assert worker.report is not None, "a worker is opened before it loads"
        self.ledger.loaded(pinned, {**description, "machine": worker.report.kind})
        for other in self._workers if first else ():
            if other is not worker and other.report is not None:
                self._call(other, "load", pinned)

    def _agree(self) -> None:
        """Let shards be written that wait for it.

        Until the job has a schema, a shard waits for those of earlier tasks, so that the first one decides it.
        """
        if not any(worker.offers for worker in self._workers):
            return
        waiting = False
        for number in sorted({*self._running, *(task.number for task in self._again)}):
            offered = [worker for worker in self._running.get(number, ()) if number in worker.offers]
            if not offered:
                waiting = True
                continue
            if waiting and self.ledger.schema is None and offered[0].offers[number].schema is not None:
                continue
            schema = self.ledger.agree(offered[0].offers[number])
            for worker in offered:
                del worker.offers[number]
                self._call(worker, "write", number, schema)

    def _agreed(self) -> Iterator[ShardResult]:
        """Yield the shards that are being written, before the job ends."""
        while writing := [ref for ref, call in self._calls.items() if call.method == "write"]:
            ready, _ = self._ray.wait(writing, num_returns=1, timeout=SECONDS_TO_ANSWER)
            if not ready:
                return
            yield from (result for ref in ready if (result := self._receive(ref)) is not None)

    def _replace(self, worker: RemoteWorker, why: str) -> None:
        """Assign the shards of a worker that is lost to others, and start another one.

        :raises JobError: if the shard that it was making has cost too many workers.
        """
        if worker not in self._workers:
            return
        self._forget(worker)
        what, lines, report = worker.work, worker.lines(), worker.report
        self._counts["lost"] += 1
        self._deaths[what] += 1
        attempt, most = self._deaths[what], self._options.attempts
        fields = {"node": report and report.node, "worker": worker.number, "shard": worker.head, "work": what}
        fields |= {"attempt": attempt, "reason": why, "lines": lines}
        text = f"{worker.place} was lost ({what}, attempt {attempt} of {most}): {why}"
        self.ledger.event("worker_lost", text, fields)
        if attempt >= most and what != IDLE:
            raise JobError(
                f"{attempt} workers were lost: {what} (runner.attempts={most}); the last was {worker.place}: {why}\n"
                + "".join(f"  | {line}\n" for line in lines.splitlines())
                + "  What is done is kept; run the same command again to continue"
            )

    def _forget(self, worker: RemoteWorker) -> None:
        """End a worker, put another one in its place, and its shards back."""
        worker.end()
        for ref in [ref for ref, call in self._calls.items() if call.worker is worker]:
            del self._calls[ref]
        if worker.part is not None:
            self._parts.appendleft(worker.part)
        for number, task in reversed(worker.tasks.items()):
            copies = self._running.get(number, [])
            if worker in copies:
                copies.remove(worker)
                if not copies:
                    del self._running[number], self._begun[number]
                    self._again.appendleft(task)
                    self._counts["again"] += 1
        self._workers[self._workers.index(worker)] = self._started(worker.number)

    def _patience(self) -> float:
        """Return how long nothing need be received before workers are asked how far they are."""
        looks = [worker.looked + self._interval for worker in self._workers if worker.tasks]
        return max(0.01, min(looks, default=monotonic() + LOOK_SECONDS) - monotonic())

    @property
    def _interval(self) -> float:
        seconds = max(LOOK_SECONDS, len(self._workers) * LOOK_SHARE)
        return seconds if self._timeout is None else min(seconds, self._timeout / 2)

    def _look(self) -> None:
        """Ask workers how far they are, and say so."""
        now = monotonic()
        asked = {call.worker for call in self._calls.values() if call.method == "status"}
        for worker in self._workers:
            if worker.tasks and now - worker.looked >= self._interval:
                if worker not in asked:
                    self._call(worker, "status")
                    worker.looked = now
                elif self._timeout is not None and now - worker.looked > max(self._timeout, SECONDS_TO_ANSWER):
                    self._replace(worker, f"it has not answered for {now - worker.looked:.0f} s (runner.batch_timeout)")
        for call in self._calls.values() if self._timeout is not None else ():
            if call.method == "load" and now - call.since > max(self._timeout or 0, SECONDS_TO_LOAD):
                raise not_loaded(call.worker.place, now - call.since)
        if any(worker.loaded for worker in self._workers):
            self._waiting_since = now
        elif now - self._waiting_since > WAITING_SECONDS:
            self._waiting_since = now
            self.ledger.event("waiting", self._lacking(), {"workers": len(self._workers)})
        self._tell()

    def _tell(self) -> None:
        alive, lost, again = sum(w.loaded for w in self._workers), self._counts["lost"], self._counts["again"]
        self.ledger.workers({"workers": alive, "running": len(self._running), "lost": lost, "again": again})

    def _end_late(
        self, worker: RemoteWorker, stats: RunStats, entered: Mapping[str, tuple[float, Sequence[int]]]
    ) -> None:
        """Take up how far a worker is; end it if a stage takes too long: its rows are run again, those alone."""
        worker.live, number = stats, worker.head
        self.ledger.advanced(RunStats.total(each.live for each in self._workers))
        late = [
            (stage, rows) for stage, (seconds, rows) in entered.items() if seconds > (self._timeout or float("inf"))
        ]
        if not late or number is None or worker not in self._workers:
            return
        task, failure = after_timeout(worker.tasks[number], *late[0], self._timeout or 0)
        worker.tasks[number] = task
        self._forget(worker)
        if failure is not None:
            self.ledger.timed_out(number, rows_of(task, self.job.source), failure)

    def _failed(self, worker: RemoteWorker, failure: WorkerFailure) -> PipelineKitError:
        """Return the error that a worker raised as one of this process."""
        text = f"{worker.place}: {failure.text}"
        if failure.name in ("CheckpointError", "InputError"):
            text += "\n  Paths of the checkpoint and of the input must be there on every node, or be URLs of a store"
        lines = worker.lines()
        return error_of(failure.name, text, f"{failure.trace}\n{lines}")

    def _lacking(self) -> str:
        """Describe what no worker could be started for."""
        total, options = self._ray.cluster_resources(), self._options
        gpus = f" and {options.gpus_per_worker:g} GPUs" if options.gpus_per_worker else ""
        return (
            f"no worker has loaded yet: each needs {options.cpus_per_worker} CPUs{gpus}; "
            f"the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs in all"
        )


def _counted(counts: Mapping[str, int]) -> str:
    found = (
        (counts["lost"], "worker", "lost"),
        (counts["again"], "shard", "given to another"),
        (counts["refused"], "worker", "not used, being of another kind"),
    )
    return ", ".join(f"{n:,} {noun}{'s were' if n > 1 else ' was'} {what}" for n, noun, what in found if n)
