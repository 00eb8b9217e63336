"""Test kit for stages: conformance suites, and stages and checkpoints so small that tests build them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_kit.testing.checkpoints import ARCHITECTURES, tiny_checkpoint, tiny_translator
    from pipeline_kit.testing.format_suite import DeviceConformance, InputFormatConformance, OutputFormatConformance
    from pipeline_kit.testing.graph_suite import (
        GRAPH_CASES,
        GRAPH_HEADS,
        GraphContexts,
        GraphModelSuite,
        assert_answers_of_hf,
    )
    from pipeline_kit.testing.kit import TinyModelConfig, WordTokenizerConfig, register
    from pipeline_kit.testing.model_suite import ModelConformance
    from pipeline_kit.testing.policy_suite import BatchingConformance, PaddingConformance, RunnerConformance
    from pipeline_kit.testing.postprocessor_suite import PostprocessorConformance
    from pipeline_kit.testing.stages import (
        TinyModel,
        WordTokenizer,
        checkpoint_context,
        tiny_pipeline,
        tiny_stage_context,
    )
    from pipeline_kit.testing.storage_suite import StorageSuite
    from pipeline_kit.testing.suite import compose_config
    from pipeline_kit.testing.tokenizer_suite import TokenizerConformance

_HOMES = {
    "checkpoints": "ARCHITECTURES tiny_checkpoint tiny_translator",
    "format_suite": "DeviceConformance InputFormatConformance OutputFormatConformance",
    "graph_suite": "GRAPH_CASES GRAPH_HEADS GraphContexts GraphModelSuite assert_answers_of_hf",
    "kit": "TinyModelConfig WordTokenizerConfig register",
    "model_suite": "ModelConformance",
    "policy_suite": "BatchingConformance PaddingConformance RunnerConformance",
    "postprocessor_suite": "PostprocessorConformance",
    "stages": "TinyModel WordTokenizer checkpoint_context tiny_pipeline tiny_stage_context",
    "storage_suite": "StorageSuite",
    "suite": "compose_config",
    "tokenizer_suite": "TokenizerConformance",
}
"""The names, by the module of this package that has them."""

__all__ = [
    "ARCHITECTURES",
    "GRAPH_CASES",
    "GRAPH_HEADS",
    "BatchingConformance",
    "DeviceConformance",
    "GraphContexts",
    "GraphModelSuite",
    "InputFormatConformance",
    "ModelConformance",
    "OutputFormatConformance",
    "PaddingConformance",
    "PostprocessorConformance",
    "RunnerConformance",
    "StorageSuite",
    "TinyModel",
    "TinyModelConfig",
    "TokenizerConformance",
    "WordTokenizer",
    "WordTokenizerConfig",
    "assert_answers_of_hf",
    "checkpoint_context",
    "compose_config",
    "register",
    "tiny_checkpoint",
    "tiny_pipeline",
    "tiny_stage_context",
    "tiny_translator",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the suite for tokenizers does not load torch."""
    for home, names in _HOMES.items():
        if name in names.split():
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f"pipeline_kit.testing.{home}"), name)
            return value
    raise AttributeError(f"module 'pipeline_kit.testing' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
