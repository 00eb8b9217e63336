"""A model that runs a checkpoint's network on OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit import Registry, option
from pipeline_kit.kit import Head

Precision = Literal["float32", "bfloat16", "int8"]


@dataclass
class OpenVinoConfig:
    """Options of ``model=openvino``."""

    head: Head | None = option(None, "the head on top of the network; null: the one the task asks for")
    precision: Precision = option(
        "float32",
        "bfloat16: only where the processor has instructions for it; int8: weights and, within each token, "
        "what they are multiplied with",
    )
    cache_dir: str | None = option(
        None, "where exported graphs are kept; null: openvino in $XDG_CACHE_HOME/pipeline-kit or ~/.cache/pipeline-kit"
    )


def register(registry: Registry) -> None:
    """Add ``model=openvino`` and its presets."""
    registry.model(
        "openvino",
        "pk_openvino.stage:OpenVinoModel",
        OpenVinoConfig,
        summary="the checkpoint's network on OpenVINO, float32, bfloat16 or int8, exported once and cached",
    )
    registry.conf("pkg://pk_openvino.conf")
