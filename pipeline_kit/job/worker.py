"""A worker: a process with a pipeline of its own that makes shards for a job. It writes no file."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import RunStats
from pipeline_kit.files.write.formats import shard_format
from pipeline_kit.job.runner import layout_of, with_pinned_options
from pipeline_kit.job.shard import run_shard
from pipeline_kit.runtime.pipeline import Pipeline

PROGRESS_SECONDS = 0.2


def main(connection: Connection) -> None:
    """Serve a job until it sends None, or ends.

    The job sends the arguments of :func:`serve`, then one `ShardTask` at a time. The worker sends tuples, whose first
    item says what they are: ``loaded`` with the pinned options and the description, ``stage`` with a stage and its
    rows as it begins a call, and with no rows after it, ``progress`` with the stats so far, ``shard`` with a result,
    ``failed`` with an error's class, message and traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches all processes of a terminal; the job decides
    _end_with_the_job()
    try:
        serve(connection, *connection.recv())
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


def serve(
    connection: Connection, data: Mapping[str, Any], plugins: Sequence[str], pinned: Mapping[str, Any], number: int
) -> None:
    """Build the pipeline of the config `data`, then make shards."""
    from pipeline_kit.compose.build import build
    from pipeline_kit.compose.plugins import load_registry
    from pipeline_kit.compose.schema import parse_config

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

    config = parse_config(data, load_registry(plugins), [])
    pipeline: Pipeline = build(with_pinned_options(_with_worker_share(config, number), pinned))
    gc.freeze()  # what torch and the model are made of lives as long as the process
    send("loaded", pipeline.model.pinned_options, dict(pipeline.description))
    layout = layout_of(config)
    format = shard_format(config.output, layout)
    watch = None if config.runner.batch_timeout is None else lambda stage, rows: send("stage", stage, rows)
    while (task := connection.recv()) is not None:
        send("shard", run_shard(pipeline, task, layout, format, progress, watch))


def _with_worker_share(config: PipelineConfig, worker: int) -> PipelineConfig:
    """Return the config with this worker's GPU, one after another, and its part of the CPU's threads."""
    import torch

    device = config.device
    threads = max(1, (device.threads or torch.get_num_threads()) // config.runner.workers)
    index = device.index
    if index is None and device.name in ("auto", "cuda") and torch.cuda.is_available():
        index = worker % torch.cuda.device_count()
    return replace(config, device=replace(device, threads=threads, index=index))
