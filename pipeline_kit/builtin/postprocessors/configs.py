"""Options of the built-in postprocessors; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.config import option

__all__ = [
    "AnswersConfig",
    "ChoiceConfig",
    "ClassificationConfig",
    "EntitiesConfig",
    "FeaturesConfig",
    "FillMaskConfig",
    "GeneratedTextConfig",
    "LogitsConfig",
    "PoolingConfig",
    "RankingConfig",
    "ZeroShotConfig",
]


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


@dataclass
class EntitiesConfig:
    """Options of ``postprocessor=entities``."""

    aggregation: Literal["none", "simple", "first", "average", "max"] = option(
        "simple", "tokens to entities: none keeps each token; simple joins tokens of a label; the others score words"
    )
    ignore_labels: list[str] = option(["O"], "labels that are left out")


@dataclass
class AnswersConfig:
    """Options of ``postprocessor=answers``."""

    top_k: int = option(1, "how many answers a result lists, best first", minimum=1)
    max_answer_len: int = option(15, "tokens of the longest answer", minimum=1)
    handle_impossible_answer: bool = option(False, "let an empty answer win where the model finds none")
    align_to_words: bool = option(True, "widen an answer to whole words")


@dataclass
class FillMaskConfig:
    """Options of ``postprocessor=fill_mask``."""

    top_k: int = option(5, "how many tokens are listed for each mask, best first", minimum=1)
    targets: list[str] = option([], "only these are scored; empty: the whole vocabulary")


@dataclass
class ZeroShotConfig:
    """Options of ``postprocessor=zero_shot``."""

    labels: list[str] = option([], "the candidate labels, for examples that bring none of their own")
    multi_label: bool = option(False, "score each label by itself, so that several or none can be true")
    hypothesis_template: str = option("This example is {}.", "the sentence that {} makes of a label")


@dataclass
class RankingConfig:
    """Options of ``postprocessor=ranking``."""

    top_k: int | None = option(None, "how many documents a result lists, best first; null: all", minimum=1)
    function: Literal["auto", "sigmoid", "none"] = option(
        "auto", "logit to score; auto: what the checkpoint's sentence-transformers config names, else sigmoid"
    )


@dataclass
class ChoiceConfig:
    """Options of ``postprocessor=choice``."""


@dataclass
class GeneratedTextConfig:
    """Options of ``postprocessor=generated_text``."""
