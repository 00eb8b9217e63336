"""A context, and a whole pipeline, that need no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_kit.batching import BatchingPolicy
from pipeline_kit.padding import PaddingPolicy
from pipeline_kit.pipeline import Pipeline
from pipeline_kit.stages import ENCODING_FIELDS, Model, Postprocessor, StageContext, Tokenizer
from pipeline_kit.testing.kit import TinyModelConfig
from pipeline_kit.testing.tiny_model import TinyModel
from pipeline_kit.testing.words import WordTokenizer
from pipeline_kit.types import Checkpoint, Device

__all__ = ["tiny_pipeline", "tiny_stage_context"]


def tiny_stage_context(
    *,
    labels: Sequence[str] = ("NEGATIVE", "NEUTRAL", "POSITIVE"),
    head: str = "base",
    device: Device | None = None,
    requires: frozenset[str] = ENCODING_FIELDS,
    config: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> StageContext:
    """Give what a stage is built with, on a checkpoint whose folder does not exist.

    :param config: further keys of the checkpoint's ``config.json``, such as ``problem_type``.
    :param tokenizer: None gives a :class:`WordTokenizer`.
    """
    names = {str(i): label for i, label in enumerate(labels)}
    checkpoint = Checkpoint(Path("tiny-checkpoint"), "tiny-checkpoint", {"id2label": names, **(config or {})})
    return StageContext(checkpoint, device or Device(), head, requires, "", tokenizer or WordTokenizer())


def tiny_pipeline(
    postprocessor: Postprocessor,
    *,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
    context: StageContext | None = None,
    padding: PaddingPolicy | None = None,
    batching: BatchingPolicy | None = None,
) -> Pipeline:
    """Put a postprocessor behind a :class:`WordTokenizer` and a :class:`TinyModel`, or stages of your own.

    :param context: what the model is built with, if it is not given.
    """
    context = context or tiny_stage_context()
    tokenizer = tokenizer or WordTokenizer()
    model = model or TinyModel(TinyModelConfig(), context)
    padding = padding or PaddingPolicy("longest", tokenizer.padding_side, tokenizer.pad_token_id or 0)
    return Pipeline(tokenizer, model, postprocessor, padding, batching or BatchingPolicy(), context.device, {})
