"""What stages share: the shapes, errors, helpers and built-in classes that a stage of your own may build on.

Promised, as are :mod:`pipeline_kit`, :mod:`pipeline_kit.testing` and :mod:`pipeline_kit.graphs`: a name in ``__all__``
keeps its meaning, and a change of it is named in the changelog. Everything else in this package may change.

========================  ==============================================================================
options                   `REQUIRED`
what a stage gets         `Checkpoint`, `CheckpointConfig`, `resolve_checkpoint`, `read_json`, `read_modules`, `Device`,
                          `Side`
what a model may have     `TextWriter`, `Differentiable`; `HfModel` to wrap; `positions` of a checkpoint
what a tokenizer may use  `HfTokenizer` to wrap; `character_limits`, `slice_text` and `settle_overflow`: limits
what a postprocessor may  `merge_windows`, `merge_parts`, `window_weights`, `floats`, `check_labels`,
                          `score_function`, `TextReader`; `Classification` to wrap
what explain shows        `Panel`, `Seen`, `activation_panel`, `Target`
views of explain          `View`, `Block`: `Text`, `Marked`, `Values`, `Panel`; `marked_tokens`, `visible`; `RowTrace`
evaluators                `Evaluator`, `EvaluationContext`, `Verdict`, `Metrics`, `value_of`, `Labels`, `mean`,
                          `precision_recall`, `share`, `ScoreEvaluator`, `PairEvaluator`
policies and runners      `PaddingPolicy`, `BatchingPolicy`, `Runner` with `ShardTask` and `ShardResult`; the options to
                          extend: `PaddingConfig`, `BatchingConfig`, `DeviceConfig`, `RunnerConfig`; `collate`
storages                  `Storage` with `FileStatus`, `Version` and `WholeFile`; `Conflict`, `conflict`, `matches`
dialects of a server      `Dialect` with `Route`, `Call`, `Loose`, `Reply` and `Refused`
formats                   `StreamFormat` for files that are written, with `UnwritableRowsError`
rows and columns          `Source`, `InputConfig`, `Columns`, `read_records`, `ColumnType`, `VECTOR`, `VECTORS`
errors                    `Fault` in a `ConfigError`; `CheckpointError`, `DeviceError`, `InputError`, `StageError`,
                          `UsageError`; `did_you_mean` and `for_message` for their text
========================  ==============================================================================

Importing this module loads nothing else: each name is imported on first use, so that registering stages stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_kit.builtin.models.hf.stage import HfModel
    from pipeline_kit.builtin.models.options import Head, HfModelConfig
    from pipeline_kit.builtin.tasks.classification.stage import Classification, score_function
    from pipeline_kit.builtin.tasks.common.merge import check_labels, floats, merge_parts, merge_windows, window_weights
    from pipeline_kit.builtin.tasks.common.panels import activation_panel
    from pipeline_kit.builtin.tasks.options import ClassificationConfig
    from pipeline_kit.builtin.tokenizers.hf import HfTokenizer
    from pipeline_kit.builtin.tokenizers.limits import character_limits, positions, settle_overflow, slice_text
    from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
    from pipeline_kit.checkpoint.json import read_json
    from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
    from pipeline_kit.checkpoint.weights import read_modules
    from pipeline_kit.contract.column_types import VECTOR, VECTORS, ColumnType
    from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
    from pipeline_kit.contract.gradients import Differentiable, Target
    from pipeline_kit.contract.options import REQUIRED
    from pipeline_kit.contract.stages import (
        ENCODING_FIELDS,
        Panel,
        Seen,
        TextReader,
        TextWriter,
    )
    from pipeline_kit.contract.types import Checkpoint, Device, Side
    from pipeline_kit.errors import (
        CheckpointError,
        ConfigError,
        DeviceError,
        Fault,
        InputError,
        StageError,
        UsageError,
        did_you_mean,
        for_message,
    )
    from pipeline_kit.evaluate.labels import Labels
    from pipeline_kit.evaluate.numbers import PairEvaluator, ScoreEvaluator, mean, precision_recall, share
    from pipeline_kit.explain.blocks import Block, Marked, Text, Values
    from pipeline_kit.explain.formats import visible
    from pipeline_kit.explain.trace import RowTrace
    from pipeline_kit.explain.view import View, marked_tokens
    from pipeline_kit.files.read.columns import Columns
    from pipeline_kit.files.read.parts import InputConfig
    from pipeline_kit.files.read.paths import read_records
    from pipeline_kit.files.read.source import Source
    from pipeline_kit.files.storage.base import Conflict, FileStatus, Storage, Version, WholeFile, conflict, matches
    from pipeline_kit.files.write.base import StreamFormat, UnwritableRowsError
    from pipeline_kit.job.runner import Runner
    from pipeline_kit.job.shard import ShardResult, ShardTask
    from pipeline_kit.runtime.batching import BatchingPolicy
    from pipeline_kit.runtime.config import BatchingConfig, DeviceConfig, PaddingConfig, RunnerConfig
    from pipeline_kit.runtime.padding import PaddingPolicy, collate
    from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Reply, Route
    from pipeline_kit.serve.refused import Refused

_HOMES = {
    "builtin.models.hf.stage": "HfModel",
    "builtin.models.options": "Head HfModelConfig",
    "builtin.tasks.classification.stage": "Classification score_function",
    "builtin.tasks.common.merge": "check_labels floats merge_parts merge_windows window_weights",
    "builtin.tasks.common.panels": "activation_panel",
    "builtin.tokenizers.hf": "HfTokenizer",
    "builtin.tasks.options": "ClassificationConfig",
    "builtin.tokenizers.limits": "character_limits positions settle_overflow slice_text",
    "builtin.tokenizers.options": "HfTokenizerConfig",
    "checkpoint.json": "read_json",
    "checkpoint.resolve": "CheckpointConfig resolve_checkpoint",
    "checkpoint.weights": "read_modules",
    "contract.column_types": "VECTOR VECTORS ColumnType",
    "contract.evaluator": "EvaluationContext Evaluator Metrics Verdict value_of",
    "contract.gradients": "Differentiable Target",
    "contract.options": "REQUIRED",
    "contract.stages": "ENCODING_FIELDS Panel Seen TextReader TextWriter",
    "contract.types": "Checkpoint Device Side",
    "errors": "CheckpointError ConfigError DeviceError Fault InputError StageError UsageError did_you_mean for_message",
    "evaluate.labels": "Labels",
    "evaluate.numbers": "PairEvaluator ScoreEvaluator mean precision_recall share",
    "explain.blocks": "Block Marked Text Values",
    "explain.formats": "visible",
    "explain.trace": "RowTrace",
    "explain.view": "View marked_tokens",
    "files.read.columns": "Columns",
    "files.read.parts": "InputConfig",
    "files.read.paths": "read_records",
    "files.read.source": "Source",
    "files.storage.base": "Conflict FileStatus Storage Version WholeFile conflict matches",
    "files.write.base": "StreamFormat UnwritableRowsError",
    "job.runner": "Runner",
    "job.shard": "ShardResult ShardTask",
    "runtime.batching": "BatchingPolicy",
    "runtime.config": "BatchingConfig DeviceConfig PaddingConfig RunnerConfig",
    "runtime.padding": "PaddingPolicy collate",
    "serve.dialects.base": "Call Dialect Loose Reply Route",
    "serve.refused": "Refused",
}
"""The names, by the module below ``pipeline_kit`` that has them."""

__all__ = [
    "ENCODING_FIELDS",
    "REQUIRED",
    "VECTOR",
    "VECTORS",
    "BatchingConfig",
    "BatchingPolicy",
    "Block",
    "Call",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "Classification",
    "ClassificationConfig",
    "ColumnType",
    "Columns",
    "ConfigError",
    "Conflict",
    "Device",
    "DeviceConfig",
    "DeviceError",
    "Dialect",
    "Differentiable",
    "EvaluationContext",
    "Evaluator",
    "Fault",
    "FileStatus",
    "Head",
    "HfModel",
    "HfModelConfig",
    "HfTokenizer",
    "HfTokenizerConfig",
    "InputConfig",
    "InputError",
    "Labels",
    "Loose",
    "Marked",
    "Metrics",
    "PaddingConfig",
    "PaddingPolicy",
    "PairEvaluator",
    "Panel",
    "Refused",
    "Reply",
    "Route",
    "RowTrace",
    "Runner",
    "RunnerConfig",
    "ScoreEvaluator",
    "Seen",
    "ShardResult",
    "ShardTask",
    "Side",
    "Source",
    "StageError",
    "Storage",
    "StreamFormat",
    "Target",
    "Text",
    "TextReader",
    "TextWriter",
    "UnwritableRowsError",
    "UsageError",
    "Values",
    "Verdict",
    "Version",
    "View",
    "WholeFile",
    "activation_panel",
    "character_limits",
    "check_labels",
    "collate",
    "conflict",
    "did_you_mean",
    "floats",
    "for_message",
    "marked_tokens",
    "matches",
    "mean",
    "merge_parts",
    "merge_windows",
    "positions",
    "precision_recall",
    "read_json",
    "read_modules",
    "read_records",
    "resolve_checkpoint",
    "score_function",
    "settle_overflow",
    "share",
    "slice_text",
    "value_of",
    "visible",
    "window_weights",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    for home, names in _HOMES.items():
        if name in names.split():
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f"pipeline_kit.{home}"), name)
            return value
    raise AttributeError(f"module 'pipeline_kit.kit' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the promised names."""
    return list(__all__)
