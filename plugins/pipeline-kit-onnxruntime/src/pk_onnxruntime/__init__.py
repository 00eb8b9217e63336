"""A model that runs a checkpoint's network on ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit import Registry, option
from pipeline_kit.kit import Head

Precision = Literal["float32", "int8", "int8_blocks"]


@dataclass
class OnnxRuntimeConfig:
    """Options of ``model=onnxruntime``."""

    head: Head | None = option(None, "the head on top of the network; null: the one the task asks for")
    precision: Precision = option(
        "float32",
        "int8: fastest, activations are scaled by batch, so that an answer varies a little with its batch; "
        "int8_blocks: activations are scaled within each token, so that it does not",
    )
    cache_dir: str | None = option(
        None, "where exported graphs are kept; null: onnx in $XDG_CACHE_HOME/pipeline-kit or ~/.cache/pipeline-kit"
    )


def register(registry: Registry) -> None:
    """Add ``model=onnxruntime`` and its presets."""
    registry.model(
        "onnxruntime",
        "pk_onnxruntime.stage:OnnxRuntimeModel",
        OnnxRuntimeConfig,
        summary="the checkpoint's network on ONNX Runtime, float32 or int8, exported once and cached",
    )
    registry.conf("pkg://pk_onnxruntime.conf")
