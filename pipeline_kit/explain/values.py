"""What passes between stages, and the stages themselves, in words."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.stages import Model
from pipeline_kit.contract.types import Encoding, TokenBatch
from pipeline_kit.errors import for_message
from pipeline_kit.explain.formats import aligned, numbers
from pipeline_kit.explain.trace import Layer, Value

_SHOWN = 6
"""Numbers of a tensor that are shown."""


def describe_value(name: str, value: Any) -> Value:
    """Describe type, shape and content of a value."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        dtype = str(value.dtype).removeprefix("torch.")
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        return Value(name, f"{dtype} {kind}", tuple(value.shape), dtype, numbers(value, _SHOWN))
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
    found = [describe_value("input_ids", batch.input_ids), describe_value("attention_mask", batch.attention_mask)]
    if batch.token_type_ids is not None:
        found.append(describe_value("token_type_ids", batch.token_type_ids))
    found.append(Value("padding", "str", (), "", f"on the {batch.side}" if batch.has_padding else "none"))
    return tuple(found)


def stage_source(stage: object) -> str:
    """Name the distribution, or the file, that a stage's class comes from."""
    module = type(stage).__module__
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        from pipeline_kit.version import __version__

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
        return aligned(value)
    if isinstance(value, Mapping):
        return for_message("{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}", 120)
    if isinstance(value, list | tuple):
        return f"list of {len(value)}" if len(value) > 3 else for_message("[" + ", ".join(map(_word, value)) + "]", 120)
    return for_message(f"'{value}'" if isinstance(value, str) else str(value), 80)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Copy a tensor to the CPU; floats as float32, which holds every value of the shorter ones."""
    found: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    return found.copy()


SeenLayers = Sequence[tuple[str, Any]]


def layer_of(name: str, states: Any, batch: TokenBatch) -> Layer:
    """Describe the hidden states of one layer.

    :param states: a tensor ``[B, T, H]``; of a search with n beams ``[B * n, T, H]``, where only the first beam of
        each row is kept, since all of them are the same in the pass that is watched.
    """
    import torch

    rows, width = batch.input_ids.shape
    if states.shape[0] > rows and states.shape[0] % rows == 0:
        states = states[:: states.shape[0] // rows]
    norms = torch.linalg.vector_norm(states.float(), dim=-1)
    if norms.dim() == 2 and norms.shape[1] > width:  # a network that fills its rows up itself
        norms = norms[:, :width]
    return Layer(name, tuple(states.shape), str(states.dtype).removeprefix("torch."), to_numpy(norms))


def attention_arrays(model: Model, batch: TokenBatch, ran: SeenLayers) -> tuple[dict[str, NDArray[Any]], str]:
    """Ask `model` for the attention of `batch`, by a run of its own, and compare that run to the one that counts.

    :param ran: the hidden states of the run that made the result.
    :returns: the maps, and a note that says how far the two runs' hidden states are apart.
    """
    with model.capture_layers() as again:
        maps: Mapping[str, Any] = model.attentions(batch)
    if not maps:
        return {}, "the model does not report its attention"
    found = {name: to_numpy(weights) for name, weights in maps.items()}
    difference = _difference(ran, again, batch)
    if difference is None:
        return found, "attention comes from a second run, which could not be compared with the one that made the result"
    return found, (
        "attention comes from a second run; its hidden states differ by "
        f"{difference:.1e} at the most from those that made the result"
    )


def _difference(ran: SeenLayers, again: SeenLayers, batch: TokenBatch) -> float | None:
    """Return the largest difference of two runs' hidden states, padding left out; None if they cannot be compared."""
    if not ran or [name for name, _ in ran] != [name for name, _ in again]:
        return None
    largest = 0.0
    rows = batch.input_ids.shape[0]
    for (_, first), (_, second) in zip(ran, again, strict=True):
        first, second = (states[:: max(1, states.shape[0] // rows)] for states in (first, second))
        if first.shape != second.shape:
            return None
        apart = (first.float() - second.float()).abs()
        if apart.shape[:2] == batch.attention_mask.shape:
            apart = apart[batch.attention_mask.bool()]
        largest = max(largest, float(apart.max()))
    return largest
