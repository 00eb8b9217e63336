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
from pipeline_kit.explain.blocks import Block, StageTrace


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
class RowTrace:
    """One example.

    :param sequences: its encodings; empty if it failed before.
    :param places: for each sequence the batch that held it and its row there, ``(-1, -1)`` if it reached none.
    :param result: None if the row failed; `failure` says why.
    :param panels: the panels of tokenizer and postprocessor for this example, by stage kind.
    :param views: what the views that were asked for show of it, by their names.
    """

    example: Example
    sequences: tuple[SequenceTrace, ...]
    places: tuple[tuple[int, int], ...]
    result: Result | None
    failure: RowFailure | None = None
    panels: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    views: Mapping[str, Sequence[Block]] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Trace:
    """All that was seen while a pipeline ran over a few examples.

    :param config: the resolved config, as :attr:`Pipeline.description` holds it.
    :param labels: the checkpoint's label names, by index.
    """

    task: str
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    stages: tuple[StageTrace, ...]
    rows: tuple[RowTrace, ...]
    batches: tuple[BatchTrace, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """How many of the examples failed."""
        return sum(row.failure is not None for row in self.rows)

    def to_dict(self, *, most: int | None = None) -> dict[str, Any]:
        """Return all of it as JSON values: the names of fields as keys, arrays as nested lists.

        What JSON has no number for is a string: ``NaN``, ``Infinity``, ``-Infinity``.

        :param most: an array with more numbers than this is summed up: shape, dtype, least, largest and mean.
            None: all are whole.
        """
        found: dict[str, Any] = _plain(self, most)
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


def _plain(value: Any, most: int | None) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray):
        return _array(value, most)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
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
