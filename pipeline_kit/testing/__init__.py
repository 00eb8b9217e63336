"""Test kit for stages: conformance suites, and stages and checkpoints so small that tests build them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_kit.testing.checkpoints import tiny_checkpoint
    from pipeline_kit.testing.kit import TinyModelConfig, WordTokenizerConfig, register
    from pipeline_kit.testing.model_suite import ModelConformance
    from pipeline_kit.testing.postprocessor_suite import PostprocessorConformance
    from pipeline_kit.testing.stages import TinyModel, WordTokenizer, tiny_pipeline, tiny_stage_context
    from pipeline_kit.testing.tokenizer_suite import TokenizerConformance

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

__all__ = [
    "ModelConformance",
    "PostprocessorConformance",
    "TinyModel",
    "TinyModelConfig",
    "TokenizerConformance",
    "WordTokenizer",
    "WordTokenizerConfig",
    "register",
    "tiny_checkpoint",
    "tiny_pipeline",
    "tiny_stage_context",
]


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
    return list(__all__)
