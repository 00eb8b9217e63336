"""What was seen inside a pipeline: plain data, from which every view is drawn.

Letters in shapes are those of :mod:`pipeline_kit.contract.types`. Arrays are numpy's, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from html import escape
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.stages import Panel
from pipeline_kit.contract.types import Example, Result, Side
from pipeline_kit.errors import RowFailure, for_message


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an encoding.

    :param text: the token as the tokenizer spells it.
    :param start: where it begins in the source text, in characters; None for a special token or if unknown.
    :param end: where it ends, exclusive.
    :param word: the word it belongs to, if the tokenizer has words.
    :param sequence: 0 for the text, 1 for its pair, None for a special token or if unknown.
    :param type: its segment id (``token_type_ids``), where the model takes one.
    """

    id: int
    text: str
    start: int | None = None
    end: int | None = None
    special: bool = False
    word: int | None = None
    sequence: int | None = None
    type: int | None = None


@dataclass(frozen=True, slots=True)
class SequenceTrace:
    """One sequence of tokens: an example, one of its parts, or a window of a long one.

    :param part: which of the parts that the postprocessor made of the example; `source` is its text.
    :param window: which window of a long text.
    :param source: the texts that offsets refer to: one, or two for a pair.
    :param truncated: how many tokens were cut off; `cut` is their text, None if nothing was cut or it is not known.
    """

    part: int
    window: int
    source: tuple[str, ...]
    tokens: tuple[Token, ...]
    truncated: int = 0
    truncated_chars: int = 0
    cut: str | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Which tokens moved a result.

    :param method: as its library names it, such as ``input x gradient`` or ``occlusion``.
    :param target: what was attributed, such as ``logit of 'positive'``.
    :param scores: one number a token of the sequence, ``[T]``.
    :param completeness_error: how far the scores' sum is from what it should be, None if the method promises none.
    """

    method: str
    target: str
    sequence: int
    scores: NDArray[Any]
    completeness_error: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RowTrace:
    """One example.

    :param sequences: its encodings; empty if it failed before.
    :param places: for each sequence the batch that held it and its row there, ``(-1, -1)`` if it reached none.
    :param result: None if the row failed; `failure` says why.
    :param panels: the panels of tokenizer and postprocessor for this example, by stage kind.
    """

    example: Example
    sequences: tuple[SequenceTrace, ...]
    places: tuple[tuple[int, int], ...]
    result: Result | None
    failure: RowFailure | None = None
    panels: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    attributions: tuple[Attribution, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer of the network returned.

    :param name: such as ``embeddings``, ``layer 1``.
    :param shape: of its hidden states, usually ``[B, T, H]``.
    :param norms: the Euclidean norm of each token's vector, ``[B, T]``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    norms: NDArray[Any]


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """One batch as it went to the model.

    :param rows: for each row the example's place and its sequence's.
    :param outputs: the model's tensors by name, as they came: padding is in them.
    :param per_token: the names in `outputs` and `reduced` whose second dimension is ``T``.
    :param reduced: what `Postprocessor.reduce` left of them.
    :param attentions: attention by layer name, ``[B, heads, T, T]``; empty unless asked for.
    :param seconds: of ``model.forward``.
    """

    input_ids: NDArray[Any]
    attention_mask: NDArray[Any]
    token_type_ids: NDArray[Any] | None
    side: Side
    rows: tuple[tuple[int, int], ...]
    outputs: Mapping[str, NDArray[Any]]
    reduced: Mapping[str, NDArray[Any]]
    per_token: frozenset[str] = frozenset()
    layers: tuple[Layer, ...] = ()
    attentions: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    panels: Sequence[Panel] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Value:
    """A value that passed between stages, described.

    :param type: such as ``str``, ``Encoding``, ``float32 tensor``.
    :param shape: of a tensor, or the length of a list; empty for one thing.
    :param shown: the value itself in a few words.
    """

    name: str
    type: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class StageTrace:
    """One of the pipeline's steps: ``tokenizer``, ``padding``, ``model``, ``postprocessor``.

    :param name: as in the config (``hf``), with `source`, the package it comes from, and its options.
    :param seconds: spent in it.
    """

    kind: str
    name: str
    source: str
    options: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    seconds: float


@dataclass(frozen=True)
class Trace:
    """All that was seen while a pipeline ran over a few examples.

    :param config: the resolved config, as :attr:`Pipeline.description` holds it.
    :param labels: the checkpoint's label names, by index.
    :param seconds: of the whole run.
    """

    task: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    stages: tuple[StageTrace, ...]
    rows: tuple[RowTrace, ...]
    batches: tuple[BatchTrace, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values; see :func:`pipeline_kit.explain.trace.to_json`."""
        found: dict[str, Any] = to_json(self)
        return found

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the page of ``pipeline-kit explain --html``, else the terminal's view."""
        try:
            page: str = _view("html").to_html(self)
        except ImportError:
            return f"<pre>{escape(_view('terminal').to_text(self))}</pre>"
        # In a frame of its own, so that neither the page's style nor its script touches the notebook.
        frame = 'style="width: 100%; height: 50em; border: 0" sandbox="allow-scripts"'
        return f'<iframe title="pipeline-kit explain" {frame} srcdoc="{escape(page)}"></iframe>'


def _view(name: str) -> Any:
    """Import a view on first use: each of them imports this module."""
    return import_module(f"pipeline_kit.explain.{name}")


def to_json(trace: Trace, *, most: int | None = None) -> dict[str, Any]:
    """Return `trace` with the names of its fields as keys, arrays as nested lists.

    What JSON has no number for is a string: ``NaN``, ``Infinity``, ``-Infinity``.

    :param most: of an array with more numbers than this, only shape, dtype, least, largest and mean are given;
        None: all are given whole.
    """
    found: dict[str, Any] = _plain(trace, most)
    return found


def _plain(value: Any, most: int | None) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray):
        return _array(value, most)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return _number(float(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), most) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, most) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, most) for item in value]
    return for_message(str(value), 1000)


def _array(array: NDArray[Any], most: int | None) -> Any:
    if most is None or array.size <= most:
        return array.tolist() if np.isfinite(array).all() else _plain(array.tolist(), most)
    numbers = {"least": array.min(), "largest": array.max(), "mean": array.mean(dtype=np.float64)}
    shown = {name: _plain(number, most) for name, number in numbers.items()}
    return {"shape": list(array.shape), "dtype": str(array.dtype), **shown}


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
