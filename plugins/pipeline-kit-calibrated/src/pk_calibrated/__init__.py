"""A postprocessor whose scores mean what they say: temperature scaling, abstention, margin and entropy."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_kit import Registry, option


@dataclass
class CalibratedConfig:
    """Options of ``postprocessor=calibrated``."""

    temperature: float = option(
        1.0, "logits are divided by it, over 1 lowers the scores; README: how to fit it", minimum=0.01, maximum=100.0
    )
    abstain_below: float = option(0.0, "a result whose score is below this abstains", minimum=0.0, maximum=1.0)
    abstain_label: str | None = option(None, "the label of a result that abstains, such as UNSURE; null: no label")


def register(registry: Registry) -> None:
    """Add ``postprocessor=calibrated`` and its presets."""
    registry.postprocessor(
        "calibrated",
        "pk_calibrated.stage:Calibrated",
        CalibratedConfig,
        gives={
            "label": "string",
            "score": "float64",
            "best": "string",
            "abstained": "bool",
            "margin": "float64",
            "entropy": "float64",
        },
        summary="label, calibrated score, margin and entropy; abstains when unsure",
    )
    registry.conf("pkg://pk_calibrated.conf")
