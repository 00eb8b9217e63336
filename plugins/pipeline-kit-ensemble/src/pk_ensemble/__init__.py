"""A model that averages what several checkpoints return."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_kit import Registry, option
from pipeline_kit.kit import REQUIRED, HfModelConfig


@dataclass(kw_only=True)
class EnsembleConfig(HfModelConfig):
    """Options of ``model=ensemble``: those of ``model=hf``, for each network, and the other checkpoints."""

    members: list[str] = option(
        REQUIRED, "the checkpoints beside checkpoint.path: folders, or hub ids such as org/name", least=1
    )


def register(registry: Registry) -> None:
    """Add ``model=ensemble`` and its presets."""
    registry.model(
        "ensemble",
        "pk_ensemble.stage:EnsembleModel",
        EnsembleConfig,
        summary="the mean of the logits of several checkpoints with one tokenizer and equal labels",
    )
    registry.conf("pkg://pk_ensemble.conf")
