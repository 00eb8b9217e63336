"""What passes between stages, and the stages themselves, in words."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from pipeline_kit.errors import shorten
from pipeline_kit.explain.arrays import to_numpy
from pipeline_kit.explain.trace import Value
from pipeline_kit.types import Encoding, ModelOutput, TokenBatch

__all__ = ["batch_values", "describe", "options_of", "output_values", "source_of"]

_SHOWN = 6
"""Numbers of a tensor that are shown."""


def describe(name: str, value: Any) -> Value:
    """Say of what type and shape a value is, and what is in it."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        dtype = str(value.dtype).removeprefix("torch.")
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        return Value(name, f"{dtype} {kind}", tuple(value.shape), dtype, _numbers(value))
    if isinstance(value, Encoding):
        return Value(name, "Encoding", (len(value.input_ids),), "", f"{len(value.input_ids)} ids")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        kinds = {type(item).__name__ for item in value}
        kind = f"list of {kinds.pop()}" if len(kinds) == 1 else "list"
        shown = ", ".join(_word(item) for item in value[:3]) + (", …" if len(value) > 3 else "")
        return Value(name, kind, (len(value),), "", shown)
    return Value(name, type(value).__name__, (), "", _word(value))


def batch_values(batch: TokenBatch) -> tuple[Value, ...]:
    """Describe a padded batch field by field."""
    found = [describe("input_ids", batch.input_ids), describe("attention_mask", batch.attention_mask)]
    if batch.token_type_ids is not None:
        found.append(describe("token_type_ids", batch.token_type_ids))
    found.append(Value("padding", "str", (), "", f"on the {batch.side}" if batch.padded else "none"))
    return tuple(found)


def output_values(output: ModelOutput) -> tuple[Value, ...]:
    """Describe the tensors a model gave."""
    return tuple(describe(name, tensor) for name, tensor in output.tensors.items())


def options_of(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Give the options of a stage, as far as the pipeline's description has them."""
    options = config.get("options")
    found = options.get(kind) if isinstance(options, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def source_of(stage: object) -> str:
    """Name the distribution, or the file, that a stage's class comes from."""
    module = type(stage).__module__
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        from pipeline_kit import __version__

        return f"pipeline-kit {__version__}"
    found = _distributions().get(top)
    if found:
        return f"{found[0]} {metadata.version(found[0])}"
    file = getattr(sys.modules.get(module), "__file__", None)
    return str(file or module)


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


def _word(value: Any) -> str:
    if isinstance(value, Encoding):
        return f"{len(value.input_ids)} ids"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return shorten("{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}", 120)
    if isinstance(value, list | tuple):
        return f"list of {len(value)}" if len(value) > 3 else shorten("[" + ", ".join(map(_word, value)) + "]", 120)
    return shorten(f"'{value}'" if isinstance(value, str) else str(value), 80)


def _numbers(value: Any) -> str:
    array = value if isinstance(value, np.ndarray) else to_numpy(value.reshape(-1)[:_SHOWN])
    flat = array.reshape(-1)[:_SHOWN].tolist()
    shown = " ".join(f"{item:.4f}" if isinstance(item, float) else str(item) for item in flat)
    size = int(np.prod(value.shape)) if len(value.shape) else 1
    return shown + (" …" if size > len(flat) else "")
