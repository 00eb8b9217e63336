"""The test kit's own stages: their options and registration; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.contract.options import option
from pipeline_kit.contract.registry import Registry


@dataclass
class WordTokenizerConfig:
    """Options of ``tokenizer=words``."""

    max_length: int | None = option(64, "tokens of an encoding, [CLS] and [SEP] included; null: no limit", minimum=4)
    overflow: Literal["truncate", "window"] = option("truncate", "a longer text: cut it, or split it into windows")
    overlap: int = option(1, "tokens that neighbouring windows share", minimum=0)
    vocab_size: int = option(97, "how many ids there are", minimum=4)
    padding_side: Literal["right", "left"] = option("right", "the side on which padding stands")

    def __post_init__(self) -> None:
        """Check that a window moves on."""
        if self.max_length is not None and self.overlap > self.max_length - 3:
            raise ValueError("overlap has to be at least 3 less than max_length, or windows would not move on")


@dataclass
class TinyModelConfig:
    """Options of ``model=tiny``."""

    hidden_size: int = option(8, "length of a token's vector", minimum=1)
    seed: int = option(0, "the same seed gives the same weights", minimum=0)


def register(registry: Registry) -> None:
    """Add the stages ``tokenizer=words`` and ``model=tiny``, for a ``register`` of your own or ``--plugin``."""
    registry.tokenizer(
        "words",
        "pipeline_kit.testing.stages:WordTokenizer",
        WordTokenizerConfig,
        summary="words hashed to ids, for tests",
    )
    registry.model(
        "tiny", "pipeline_kit.testing.stages:TinyModel", TinyModelConfig, summary="a few fixed weights, for tests"
    )
