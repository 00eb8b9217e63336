"""A plugin whose stages do nothing, so that what is measured is the job alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.stages import Model, Postprocessor, StageContext, Tokenizer
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, Side, TokenBatch

ROW: Result = {"label": "A", "score": 0.5}


@dataclass
class NoOptions:
    """No options."""


class EmptyTokenizer(Tokenizer):
    """Two ids for each row."""

    pad_token_id = 0
    padding_side: Side = "right"
    max_length = 8

    def __init__(self, config: NoOptions, context: StageContext) -> None:
        """Load nothing."""

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """Return the same ids for each row."""
        return [Encoding([5, 6], example=place) for place in range(len(examples))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return nothing."""
        return ""


class EmptyModel(Model):
    """Zeros for each row."""

    safe_padding_sides = frozenset({"left", "right"})

    def __init__(self, config: NoOptions, context: StageContext) -> None:
        """Load nothing."""

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Return zeros."""
        return ModelOutput({"logits": torch.zeros(len(batch.input_ids), 2)})


class EmptyPostprocessor(Postprocessor):
    """The same label for each row."""

    def __init__(self, config: NoOptions, context: StageContext) -> None:
        """Load nothing."""

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Return one label."""
        return [ROW] * len(examples)


def register(registry: Registry) -> None:
    """Register all three as ``empty``."""
    registry.tokenizer("empty", f"{__name__}:EmptyTokenizer", NoOptions, summary="does nothing")
    registry.model("empty", f"{__name__}:EmptyModel", NoOptions, summary="does nothing")
    registry.postprocessor("empty", f"{__name__}:EmptyPostprocessor", NoOptions, summary="does nothing")
