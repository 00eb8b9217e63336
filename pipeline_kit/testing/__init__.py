"""Test kit for stages: conformance suites, and stages and checkpoints so small that tests build them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_kit.testing.checkpoints import tiny_checkpoint as tiny_checkpoint
    from pipeline_kit.testing.kit import TinyModelConfig as TinyModelConfig
    from pipeline_kit.testing.kit import WordTokenizerConfig as WordTokenizerConfig
    from pipeline_kit.testing.kit import register as register
    from pipeline_kit.testing.model_suite import ModelConformance as ModelConformance
    from pipeline_kit.testing.postprocessor_suite import PostprocessorConformance as PostprocessorConformance
    from pipeline_kit.testing.stages import TinyModel as TinyModel
    from pipeline_kit.testing.stages import WordTokenizer as WordTokenizer
    from pipeline_kit.testing.stages import tiny_pipeline as tiny_pipeline
    from pipeline_kit.testing.stages import tiny_stage_context as tiny_stage_context
    from pipeline_kit.testing.tokenizer_suite import TokenizerConformance as TokenizerConformance

_HOMES = {
    "ModelConformance": "model_suite",
    "PostprocessorConformance": "postprocessor_suite",
    "TinyModel": "stages",
    "TinyModelConfig": "kit",
    "TokenizerConformance": "tokenizer_suite",
    "WordTokenizer": "stages",
    "WordTokenizerConfig": "kit",
    "register": "kit",
    "tiny_checkpoint": "checkpoints",
    "tiny_pipeline": "stages",
    "tiny_stage_context": "stages",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the suite for tokenizers does not load torch."""
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"pipeline_kit.testing.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pipeline_kit.testing' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names."""
    return list(_HOMES)
