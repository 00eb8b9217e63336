"""A tokenizer and a model that run a text classifier of scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_kit import Registry, option


@dataclass
class SklearnTokenizerConfig:
    """Options of ``tokenizer=sklearn``."""

    max_length: int | None = option(
        None, "terms of a text that are counted, from its beginning; null: all of them", minimum=1, maximum=2**24
    )


@dataclass
class SklearnModelConfig:
    """Options of ``model=sklearn``, of which there are none."""


def register(registry: Registry) -> None:
    """Add ``tokenizer=sklearn``, ``model=sklearn``, and ``checkpoint=sklearn``, which brings both."""
    registry.tokenizer(
        "sklearn",
        "pk_sklearn.stage:SklearnTokenizer",
        SklearnTokenizerConfig,
        summary="the terms that a scikit-learn vectorizer counts, as ids of its vocabulary",
    )
    registry.model(
        "sklearn",
        "pk_sklearn.stage:SklearnModel",
        SklearnModelConfig,
        summary="a scikit-learn text classifier from a skops file; needs tokenizer=sklearn",
    )
    registry.conf("pkg://pk_sklearn.conf")
