"""Text pipelines as three pluggable stages: tokenizer, model, postprocessor, composed from YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pipeline_kit.build import load
    from pipeline_kit.config import option
    from pipeline_kit.errors import ExampleError, PipelineKitError, RowError, TransientError
    from pipeline_kit.explain.trace import Trace
    from pipeline_kit.fields import read_fields, text_and_pair, text_of, texts_of
    from pipeline_kit.job.api import run_job
    from pipeline_kit.pipeline import Pipeline
    from pipeline_kit.registry import Registry
    from pipeline_kit.stages import Model, Postprocessor, StageContext, Tokenizer
    from pipeline_kit.stats import RunStats
    from pipeline_kit.types import Encoding, Example, ModelOutput, Result, RowFailure, RowOutput, TokenBatch

_HOMES = {
    "Encoding": "types",
    "Example": "types",
    "ExampleError": "errors",
    "Model": "stages",
    "ModelOutput": "types",
    "Pipeline": "pipeline",
    "PipelineKitError": "errors",
    "Postprocessor": "stages",
    "Registry": "registry",
    "Result": "types",
    "RowError": "errors",
    "RowFailure": "types",
    "RowOutput": "types",
    "RunStats": "stats",
    "StageContext": "stages",
    "TokenBatch": "types",
    "Tokenizer": "stages",
    "Trace": "explain.trace",
    "TransientError": "errors",
    "load": "build",
    "option": "config",
    "read_fields": "fields",
    "run_job": "job.api",
    "text_and_pair": "fields",
    "text_of": "fields",
    "texts_of": "fields",
}

__all__ = [
    "Encoding",
    "Example",
    "ExampleError",
    "Model",
    "ModelOutput",
    "Pipeline",
    "PipelineKitError",
    "Postprocessor",
    "Registry",
    "Result",
    "RowError",
    "RowFailure",
    "RowOutput",
    "RunStats",
    "StageContext",
    "TokenBatch",
    "Tokenizer",
    "Trace",
    "TransientError",
    "__version__",
    "load",
    "option",
    "read_fields",
    "run_job",
    "text_and_pair",
    "text_of",
    "texts_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package stays light."""
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"pipeline_kit.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pipeline_kit' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
