"""The process of a worker: builds the pipeline of a job, and makes shards."""

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
from typing import Any

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import RunStats
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage.retries import use_storage
from pipeline_kit.files.write.formats import shard_format
from pipeline_kit.job.kind import machine_kind, uses_gpus
from pipeline_kit.job.runner import layout_of, with_pinned_options
from pipeline_kit.job.shard import ShardMaker, ShardTask
from pipeline_kit.job.store import folder_of
from pipeline_kit.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class WorkerSetup:
    """What a process needs to share a job: plain data alone.

    :param data: the job's config, composed.
    :param plugins: files and modules of plugins that the user named.
    :param names: of the input's files; none if the rows come with the tasks.
    :param folder: where it writes.
    :param job: the job's key.
    :param free: whether any number of rows may fail.
    :param number: of the worker, from 0.
    """

    data: Mapping[str, Any]
    plugins: Sequence[str]
    names: Sequence[str]
    folder: str
    job: str
    free: bool
    number: int

    def parsed(self) -> PipelineConfig:
        """Return the config, with the plugins loaded that it needs."""
        from pipeline_kit.compose.plugins import load_needed, load_registry
        from pipeline_kit.compose.schema import parse_config

        config = parse_config(self.data, load_needed(load_registry(self.plugins), self.data), [])
        use_storage(config.storage)
        return config

    def config(self) -> PipelineConfig:
        """Return the config with this worker's share of the machine."""
        return _with_worker_share(self.parsed(), self.number)

    def source(self, config: PipelineConfig) -> Source:
        """Open the input.

        :raises InputError: if a file is not there.
        """
        takes = config.task.takes
        return Source.open(self.names, config.input, takes) if self.names else Source.of([], config.input, takes)

    def maker(self, config: PipelineConfig, source: Source, pinned: Mapping[str, Any]) -> tuple[Pipeline, ShardMaker]:
        """Build the pipeline, and what makes shards with it."""
        from pipeline_kit.compose.build import build

        pipeline = build(with_pinned_options(config, pinned))
        gc.freeze()  # what torch and the model are made of lives as long as the process
        layout = layout_of(config)
        place = (source, layout, shard_format(config.output, layout), folder_of(self.folder), self.job)
        return pipeline, ShardMaker(pipeline, *place, free=self.free)


PROGRESS_SECONDS = 0.2


def main(connection: Connection) -> None:
    """Serve a job until it sends None, or ends.

    The job sends the setup; ``index`` with the number of a part; ``load`` with pinned options; then one `ShardTask` at
    a time, and ``write`` with the schema after each offer. The worker sends ``indexed`` with what it found in a part;
    ``loaded`` with the pinned options and the description; ``stage`` with a stage and its rows as it begins a call, and
    with no rows after it; ``progress`` with the stats so far; ``made`` with an offer or a result; ``failed`` with an
    error's class, message and traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches all processes of a terminal; the job decides
    _end_with_the_job()
    try:
        serve(connection, connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:
        connection.send(("failed", type(error).__name__, str(error), traceback.format_exc()))


def _end_with_the_job() -> None:
    """End this process when the job's is killed, whatever a stage is doing."""
    job = multiprocessing.parent_process()
    assert job is not None, "a worker is started by a job"

    def watch() -> None:
        wait([job.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="pipeline-kit-parent").start()


def serve(connection: Connection, setup: WorkerSetup) -> None:
    """Do what the job sends."""
    sending = threading.Lock()  # a stage may run on a second thread
    reported = 0.0

    def send(*message: Any) -> None:
        with sending:
            connection.send(message)

    def progress(stats: RunStats) -> None:
        nonlocal reported
        if monotonic() - reported > PROGRESS_SECONDS:
            reported = monotonic()
            send("progress", stats)

    config = setup.config()
    source, maker = setup.source(config), None
    watch = None if config.runner.batch_timeout is None else lambda stage, rows: send("stage", stage, rows)
    while (message := connection.recv()) is not None:
        match message:
            case "index", part:
                send("indexed", part, source.index(part))
            case "load", pinned:
                pipeline, maker = setup.maker(config, source, pinned)
                kind = machine_kind(gpus=uses_gpus(config))
                send("loaded", pipeline.pinned_options, {**pipeline.description, "machine": kind})
            case ShardTask() as task if maker is not None:
                send("made", maker.make(task, progress, watch))
            case "write", schema if maker is not None:
                send("made", maker.write(schema))


def _with_worker_share(config: PipelineConfig, worker: int) -> PipelineConfig:
    """Return the config with this worker's GPU, one after another, and its part of the CPU's threads."""
    import torch

    def shared(_: str, part: PipelineConfig) -> PipelineConfig:
        device = part.device
        threads = max(1, (device.threads or torch.get_num_threads()) // config.runner.workers)
        index = device.index
        if index is None and device.name in ("auto", "cuda") and torch.cuda.is_available():
            index = worker % torch.cuda.device_count()
        return replace(part, device=replace(device, threads=threads, index=index))

    return config.mapped(shared)
