"""Options of the built-in postprocessors; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.config import option

__all__ = ["ClassificationConfig", "FeaturesConfig", "LogitsConfig", "PoolingConfig"]


@dataclass
class ClassificationConfig:
    """Options of ``postprocessor=classification``."""

    function: Literal["auto", "softmax", "sigmoid", "none"] = option(
        "auto", "logits to scores; auto: by the checkpoint's problem_type and number of labels, as in transformers"
    )
    top_k: int | None = option(1, "how many labels a result lists, best first; null: all", minimum=1)
    thresholds: dict[str, float] = option(
        {}, "label: score it must reach to be chosen or listed; if none does, label is null"
    )
    merge: Literal["mean", "max"] = option("mean", "windows of a long text: mean, weighted by their tokens, or max")


@dataclass
class PoolingConfig:
    """Options of ``postprocessor=pooling``."""

    pooling: Literal["auto", "mean", "cls", "max", "last", "weighted_mean"] = option(
        "auto", "token vectors to one; auto: as the folder's modules.json says, else mean; cls is the first token"
    )
    normalize: bool | None = option(
        None, "scale each vector to length 1; null: as the folder's modules.json says, else true"
    )


@dataclass
class FeaturesConfig:
    """Options of ``postprocessor=features``."""

    special_tokens: bool = option(True, "keep the vectors of special tokens such as [CLS]")


@dataclass
class LogitsConfig:
    """Options of ``postprocessor=logits``."""
