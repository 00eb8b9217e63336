"""Options of the built-in models; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.config import option

__all__ = ["GenerateModelConfig", "GenerationHead", "Head", "HfModelConfig", "StaticModelConfig"]

Head = Literal[
    "base",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "multiple-choice",
]
"""The heads that ``model=hf`` puts on a network."""

GenerationHead = Literal["causal-lm", "seq2seq-lm"]
"""The heads that ``model=generate`` writes text with."""


@dataclass
class HfModelConfig:
    """Options of ``model=hf``."""

    head: Head | None = option(None, "the head on top of the network; null: the one the task asks for")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = option(
        None, "the attention kernel; null: sdpa where the architecture has it, else eager"
    )


@dataclass
class StaticModelConfig:
    """Options of ``model=static``."""

    head: Literal["base", "sequence-classification"] | None = option(
        None, "the head on top of the embeddings; null: the one the task asks for"
    )


@dataclass
class GenerateModelConfig:
    """Options of ``model=generate``."""

    head: GenerationHead | None = option(None, "the head that writes; null: the one the task asks for")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = option(
        None, "the attention kernel; null: sdpa where the architecture has it, else eager"
    )
