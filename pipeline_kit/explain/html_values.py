"""Tensors and results as a page shows them, whatever their shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.explain.html_charts import Bars, Heat, Spark, bars, heat, spark
from pipeline_kit.explain.html_text import number

__all__ = ["ResultView", "Table", "TensorView", "result_view", "tensor_view"]

Array = np.ndarray[Any, Any]

FEW = 64
"""As many numbers of a vector are drawn as bars, each with its label."""

_UNNAMED = 16

_LABELS = 40
_LISTED = 48
_ROWS = 50
_JSON = 4_000


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of one sequence, without padding: one of the four pictures, or only `summary`."""

    name: str
    origin: str
    shape: str
    dtype: str
    summary: str
    bars: Bars | None = None
    heat: Heat | None = None
    spark: Spark | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A list of records in a result."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class ResultView:
    """A result: what is single, what is a table, what is a vector, and all of it as JSON, cut if long."""

    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    vectors: tuple[tuple[str, Spark, int], ...]
    json: str
    cut: int


def tensor_view(
    name: str, origin: str, values: Array, labels: Sequence[str], tokens: Sequence[str], per_token: bool
) -> TensorView:
    """Choose the picture for one sequence's tensor.

    :param origin: who gave it, ``model`` or ``reduced on the device``.
    :param values: without batch dimension and padding.
    :param tokens: as they are shown; one for each place of a `per_token` tensor.
    """
    shape = "[" + ", ".join(map(str, values.shape)) + "]"
    whole = values.dtype.kind in "iub"
    base = TensorView(name, origin, shape, str(values.dtype), _summary(values, whole))
    flat = values.reshape(-1)
    if not flat.size:
        return base
    if per_token and values.ndim in (1, 2) and len(values) == len(tokens):
        rows = values[None] if values.ndim == 1 else values.T
        names = _names(rows.shape[0], labels) if values.ndim == 2 else [name]
        few = len(rows) <= (_LABELS if values.ndim == 1 or len(rows) == len(labels) else _UNNAMED)
        return _with(base, heat=heat(name, name, names, tokens, rows)) if few else base
    if whole or (values.ndim > 1 and max(values.shape) != flat.size):
        return base
    if flat.size <= (FEW if flat.size == len(labels) else _UNNAMED):
        return _with(base, bars=bars(_names(flat.size, labels), flat.astype(np.float64).tolist()))
    return _with(base, spark=spark(flat))


def _with(
    view: TensorView, bars: Bars | None = None, heat: Heat | None = None, spark: Spark | None = None
) -> TensorView:
    return TensorView(view.name, view.origin, view.shape, view.dtype, view.summary, bars, heat, spark)


def _names(count: int, labels: Sequence[str]) -> list[str]:
    return list(labels) if len(labels) == count else [str(place) for place in range(count)]


def _summary(values: Array, whole: bool) -> str:
    if not values.size:
        return "empty"
    if whole:
        flat = values.reshape(-1)
        more = f" … {flat.size - _LISTED} more" if flat.size > _LISTED else ""
        return " ".join(map(str, flat[:_LISTED].tolist())) + more
    wide = np.asarray(values, dtype=np.float64)
    bad = int(np.count_nonzero(~np.isfinite(wide)))
    note = f", {bad} not finite" if bad else ""
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        return "no number is finite"
    return f"{number(float(finite.min()))} to {number(float(finite.max()))}, mean {number(float(finite.mean()))}{note}"


def result_view(result: Mapping[str, Any]) -> ResultView:
    """Sort what a result holds into facts, tables and vectors."""
    facts: list[tuple[str, str]] = []
    tables: list[Table] = []
    vectors: list[tuple[str, Spark, int]] = []
    for key, value in result.items():
        if not isinstance(value, list | tuple | Mapping):
            facts.append((key, number(value, 6)))
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            tables.append(_table(key, value))
        elif isinstance(value, list | tuple) and len(value) > FEW and all(isinstance(item, float) for item in value):
            vectors.append((key, spark(np.array(value)), len(value)))
        else:
            facts.append((key, _short(value)))
    text = json.dumps(result, ensure_ascii=False, indent=2, default=str)
    return ResultView(tuple(facts), tuple(tables), tuple(vectors), text[:_JSON], max(0, len(text) - _JSON))


def _table(name: str, records: Sequence[Mapping[str, Any]]) -> Table:
    columns = tuple(dict.fromkeys(str(key) for record in records for key in record))
    rows = tuple(tuple(_short(record.get(column, "")) for column in columns) for record in records[:_ROWS])
    return Table(name, columns, rows, max(0, len(records) - _ROWS))


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and value and all(isinstance(item, float | int) for item in value):
        more = f", … {len(value) - 8} more" if len(value) > 8 else ""
        return "[" + ", ".join(number(item) for item in value[:8]) + more + "]"
    if isinstance(value, list | tuple | Mapping):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= 300 else text[:299] + "…"
    return number(value)
