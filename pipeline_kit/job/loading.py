"""The config that a process builds its pipeline from: as the job's first load decided, with its part of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["shared_out", "with_settled"]


def with_settled(config: PipelineConfig, settled: Mapping[str, Any]) -> PipelineConfig:
    """Set the model's options that the job's first load settled, see `Model.settled`."""
    if not settled:
        return config
    return replace(config, model=replace(config.model, options=replace(config.model.options, **settled)))


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
