"""Text pipelines as three pluggable stages: tokenizer, model, postprocessor, composed from YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline_kit.contract.version import __version__

if TYPE_CHECKING:
    from pipeline_kit.compose.python import load, pipeline
    from pipeline_kit.contract.fields import read_fields, text_and_pair, text_of, texts_of
    from pipeline_kit.contract.options import option
    from pipeline_kit.contract.registry import Registry
    from pipeline_kit.contract.stages import Model, Postprocessor, StageContext, Tokenizer
    from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, RunStats, TokenBatch
    from pipeline_kit.errors import ExampleError, PipelineKitError, RowError, RowFailure, TransientError
    from pipeline_kit.explain.trace import Trace
    from pipeline_kit.job.run import run_job
    from pipeline_kit.runtime.pipeline import Pipeline
    from pipeline_kit.serve.app import serve_app

_HOMES = {
    "compose.python": ("load", "pipeline"),
    "contract.fields": ("read_fields", "text_and_pair", "text_of", "texts_of"),
    "contract.options": ("option",),
    "contract.registry": ("Registry",),
    "contract.stages": ("Model", "Postprocessor", "StageContext", "Tokenizer"),
    "contract.types": ("Encoding", "Example", "ModelOutput", "Result", "RowOutput", "RunStats", "TokenBatch"),
    "errors": ("ExampleError", "PipelineKitError", "RowError", "RowFailure", "TransientError"),
    "explain.trace": ("Trace",),
    "job.run": ("run_job",),
    "runtime.pipeline": ("Pipeline",),
    "serve.app": ("serve_app",),
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
    "pipeline",
    "read_fields",
    "run_job",
    "serve_app",
    "text_and_pair",
    "text_of",
    "texts_of",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package stays light."""
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f"pipeline_kit.{home}"), name)
            return value
    raise AttributeError(f"module 'pipeline_kit' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
