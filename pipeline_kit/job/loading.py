"""The config that a process builds its pipeline from: as the job's first load decided, with its part of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline_kit.config import check
from pipeline_kit.errors import Fault, OutputError
from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["shared_out", "with_settled"]


def with_settled(config: PipelineConfig, settled: Mapping[str, Any]) -> PipelineConfig:
    """Decide where the user said "auto" as the job's first load did, see `Model.settled`.

    `settled` may come from a file: it chooses among the values that such an option has, and sets no other one.

    :raises OutputError: if it holds a value that the option does not have.
    """
    options = config.model.options
    chosen = {name: value for name, value in settled.items() if getattr(options, name, None) == "auto"}
    if not chosen:
        return config
    faults: list[Fault] = []
    check(type(options), {**vars(options), **chosen}, "model", faults)
    wrong = next((fault for fault in faults if fault.key.removeprefix("model.") in chosen), None)
    if wrong is not None:
        raise OutputError(f"the manifest of the job was changed by something else: {wrong}")
    return replace(config, model=replace(config.model, options=replace(options, **chosen)))


def shared_out(config: PipelineConfig, worker: int, workers: int) -> PipelineConfig:
    """Give a worker its GPU, one after another, and its part of the CPU's threads.

    :param worker: its number, from 0, of `workers` in all.
    """
    import torch

    device = config.device
    threads = max(1, (device.threads or torch.get_num_threads()) // workers)
    index = device.index
    if index is None and device.name in ("auto", "cuda") and torch.cuda.is_available():
        index = worker % torch.cuda.device_count()
    return replace(config, device=replace(device, threads=threads, index=index))
