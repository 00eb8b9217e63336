"""A worker: a process with a pipeline of its own that makes shards for a job. It writes no file."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.files.write.base import OutputValues, Schema
from pipeline_kit.files.write.formats import ShardFormat
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.job.shard import Listener, ShardResult, run_shard, with_pinned_options, with_worker_share
from pipeline_kit.runtime.pipeline import Pipeline

TOLD_SECONDS = 0.2


def main(connection: Connection) -> None:
    """Serve a job until it says that there is no more, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches all processes of a terminal; the job decides
    _end_with_the_job()
    try:
        _Worker(connection).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:
        connection.send(WorkerFailed(type(error).__name__, str(error), traceback.format_exc()))


def _end_with_the_job() -> None:
    """End this process when the job's is killed, whatever a stage is doing."""
    job = multiprocessing.parent_process()
    assert job is not None, "a worker is started by a job"

    def watch() -> None:
        wait([job.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="pipeline-kit-parent").start()


@final
class _Worker(Listener):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._schema: Schema | None = None
        self._numbers: Sequence[int] = ()
        self._told = 0.0

    def serve(self) -> None:
        start: Start = self._connection.recv()
        pipeline = self._built(start)
        self._send(Loaded(pipeline.model.settled, dict(pipeline.description)))

        def agree(rows: Sequence[OutputValues]) -> Schema | None:
            if self._schema is None and (schema := start.format.schema(rows)) is not None:
                self._send(Proposed(schema))
                answer: Agreed = self._connection.recv()
                self._schema = answer.schema
            return self._schema

        while (work := self._connection.recv()) is not None:
            self._send(ShardDone(run_shard(pipeline, work, start.layout, start.format, agree, self)))

    def told(self, stats: RunStats) -> None:
        if monotonic() - self._told > TOLD_SECONDS:
            self._told = monotonic()
            self._send(Progress(stats))

    def numbered(self, rows: Sequence[int]) -> None:
        self._numbers = rows

    def _entered(self, stage: str, rows: Sequence[int]) -> None:
        numbers = self._numbers
        self._send(StageStarted(stage, [numbers[row] for row in rows]))

    def _built(self, start: Start) -> Pipeline:
        from pipeline_kit.compose.build import build
        from pipeline_kit.compose.plugins import load_registry
        from pipeline_kit.compose.schema import parse_config

        config = parse_config(start.data, load_registry(start.plugins), [])
        pipeline = build(with_pinned_options(with_worker_share(config, start.worker, start.workers), start.settled))
        gc.freeze()  # what torch and the model are made of lives as long as the process
        if not start.told:
            return pipeline
        return replace(pipeline, calls=replace(pipeline.calls, watch=self._entered))

    def _send(self, message: Any) -> None:
        with self._sending:
            self._connection.send(message)


@dataclass(frozen=True, slots=True)
class Start:
    """To a worker, first: what to build. A worker then gets a ``Work`` at a time, and None at the end.

    :param data: the config as plain data.
    :param told: whether it says what stage works on which rows.
    """

    data: Mapping[str, Any]
    plugins: Sequence[str]
    settled: Mapping[str, Any]
    layout: Layout
    format: ShardFormat
    worker: int
    workers: int
    told: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """The pipeline is built."""

    settled: Mapping[str, Any]
    description: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins a call on these rows, numbered as in the input; with none: the call has ended."""

    stage: str
    rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the shard is."""

    stats: RunStats


@dataclass(frozen=True, slots=True)
class Proposed:
    """What all shards could agree on, going by this one; the worker waits for :class:`Agreed`."""

    schema: Schema


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all shards do agree on."""

    schema: Schema


@dataclass(frozen=True, slots=True)
class ShardDone:
    """The shard is made."""

    shard: ShardResult


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The worker cannot continue: the error's class, its message, and where it was raised."""

    error: str
    message: str
    trace: str
