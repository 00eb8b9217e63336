"""One worker of ``runner=ray``: an actor that builds the pipeline of a job and makes shards; and where it runs."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import hidden
from pipeline_kit.files.read.parts import PartIndex
from pipeline_kit.job.kind import environment, machine_kind
from pipeline_kit.job.shard import ShardMaker, ShardOffer, ShardResult, ShardTask
from pipeline_kit.job.worker import WorkerSetup
from pipeline_kit.runtime.config import RayRunnerConfig

R = TypeVar("R")


@dataclass(frozen=True)
class WorkerReport:
    """What a worker is before it loads anything.

    :param node: Ray's id of its node; `host` is the name of the machine.
    :param log: the file that its stderr goes to, on its machine.
    :param environment: see :func:`pipeline_kit.job.kind.environment`.
    :param kind: see :func:`pipeline_kit.job.kind.machine_kind`.
    """

    node: str
    host: str
    pid: int
    log: str
    environment: Mapping[str, Any]
    kind: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"process {self.pid} on {self.host} (node {self.node[:12]})"


@dataclass(frozen=True)
class WorkerFailure:
    """An error that a worker raised, as text without secrets: Ray keeps what an actor raises."""

    name: str
    text: str
    trace: str


def _returned(method: Callable[..., R]) -> Callable[..., R | WorkerFailure]:
    """Return a failure where `method` raises."""

    @wraps(method)
    def call(*args: Any) -> R | WorkerFailure:
        try:
            return method(*args)
        except BaseException as error:
            return WorkerFailure(type(error).__name__, hidden(str(error)), hidden(traceback.format_exc()))

    return call


class RayWorker:
    """The class of the actor. Nothing is passed to its constructor, because the head of a cluster keeps that.

    Calls of `open`, `load` and `make` are run one after another, all others beside them, one after another too.
    """

    def __init__(self) -> None:
        self._makers: dict[int, ShardMaker] = {}
        self._live = RunStats()
        self._entered: dict[str, tuple[float, Sequence[int]]] = {}
        self._lock = threading.Lock()

    @_returned
    def open(self, setup: WorkerSetup, folder: str) -> WorkerReport:
        """Take the job, and describe this worker.

        :param folder: that paths are relative to, if this machine has it.
        """
        from pipeline_kit.job.run import limit_library_caches

        limit_library_caches()
        with suppress(OSError):
            os.chdir(folder)
        self._setup = setup
        self._config = _with_own_device(setup.parsed())
        self._source = setup.source(self._config)
        gpus = bool(own_options(self._config).gpus_per_worker)
        node, host, log = node_id(), socket.gethostname(), ""
        with suppress(OSError):
            log = os.readlink("/proc/self/fd/2")
        return WorkerReport(node, host, os.getpid(), log, environment(self._config), machine_kind(gpus=gpus))

    @_returned
    def index(self, part: int) -> tuple[int, PartIndex]:
        """Go through a part of the input once, for the plan of the shards."""
        return part, self._source.index(part)

    @_returned
    def load(self, pinned: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Build the pipeline; return the options that it pinned, and its description."""
        pipeline, self._maker = self._setup.maker(self._config, self._source, pinned)
        return pipeline.pinned_options, dict(pipeline.description)

    @_returned
    def make(self, task: ShardTask) -> ShardOffer | ShardResult:
        """Make a shard."""
        watched = self._config.runner.batch_timeout is not None
        maker = copy(self._maker)  # it holds the shard that it made last, and there may be two of them
        try:
            made = maker.make(task, self._progress, self._watch if watched else None)
        finally:
            self._live, self._entered = RunStats(), {}
        if isinstance(made, ShardOffer):
            self._makers[task.number] = maker
        return made

    @_returned
    def write(self, number: int, schema: Any) -> ShardOffer | ShardResult:
        """Write the shard that was made and offered."""
        made = self._makers[number].write(schema)
        if isinstance(made, ShardResult):
            del self._makers[number]
        return made

    @_returned
    def status(self) -> tuple[RunStats, Mapping[str, tuple[float, Sequence[int]]]]:
        """Return the counts of the shard in hand, and for how many seconds each stage has been at which rows."""
        now = monotonic()
        with self._lock:
            entered = {stage: (now - since, rows) for stage, (since, rows) in self._entered.items()}
        return self._live, entered

    def _progress(self, stats: RunStats) -> None:
        self._live = replace(stats, seconds=dict(stats.seconds))

    def _watch(self, stage: str, rows: Sequence[int]) -> None:
        with self._lock:
            if rows:
                self._entered[stage] = (monotonic(), rows)
            else:
                self._entered.pop(stage, None)


def own_options(config: PipelineConfig) -> RayRunnerConfig:
    """Return the options of the runner."""
    options = config.runner
    assert isinstance(options, RayRunnerConfig), "runner=ray is registered with them"
    return options


def _with_own_device(config: PipelineConfig) -> PipelineConfig:
    """Return the config with the CPUs and GPUs that Ray reserves for one worker."""
    options = own_options(config)

    def own(_: str, part: PipelineConfig) -> PipelineConfig:
        device = part.device
        name = "cpu" if device.name == "auto" and not options.gpus_per_worker else device.name
        return replace(part, device=replace(device, name=name, threads=device.threads or options.cpus_per_worker))

    return config.mapped(own)


def node_id() -> str:
    """Return Ray's id of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


LAST_BYTES, LAST_LINES = 4000, 5


def last_lines(path: str) -> str:
    """Return the last lines of a log, without secrets; nothing if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return ""
    return hidden("\n".join([line for line in lines if line.strip()][-LAST_LINES:]))
