"""Vectors as ``.npy`` and safetensors: float32, in the order of the rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save

from pipeline_kit.sinks.json_text import json_line
from pipeline_kit.sinks.refused import Refused

__all__ = ["Array", "npy", "offsets", "safetensors", "stacked", "width_of"]

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def width_of(values: Sequence[Any], ragged: bool) -> int | None:
    """Give the width of the first vector among `values`; None if there is none.

    :param ragged: whether a value is a list of vectors rather than one.
    """
    for value in values:
        for vector in (value or ()) if ragged else (value,):
            if isinstance(vector, list):
                return len(vector)
    return None


def stacked(values: Sequence[Any], column: str, ragged: bool, width: int | None, refused: Refused) -> Floats:
    """Stack vectors: ``[n, H]``, or where rows have several each, ``[all of them, H]``.

    :param width: the ``H`` that is due; None takes that of the first vector, 0 if there is none.
    :param refused: takes the rows whose vectors are missing, of another width, or not finite in float32.
    """
    due = width if width is not None else width_of(values, ragged) or 0
    parts: list[Floats] = []
    for index, value in enumerate(values):
        try:
            parts.append(_checked(value, ragged, due))
        except (TypeError, ValueError, OverflowError) as error:
            refused.add(index, error, column)
    return np.concatenate(parts) if parts else np.empty((0, due), np.float32)


def offsets(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Give where each row's vectors begin among all of them, and at last their number: ``[n + 1]``."""
    return np.cumsum([0, *(len(value) for value in values)], dtype=np.int64)


def npy(array: Floats) -> bytes:
    """Write one array as numpy does."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def safetensors(arrays: dict[str, Array], ids: Sequence[Any] | None) -> bytes:
    """Write arrays by name; `ids` go into the header as JSON under the key ``ids``."""
    # One key only: the library writes several in random order.
    return bytes(save(arrays, None if ids is None else {"ids": json_line(list(ids))}))


def _checked(value: Any, ragged: bool, width: int) -> Floats:
    """Give the vectors of one row, ``[1, H]`` or ``[T, H]``."""
    if not isinstance(value, list):
        raise TypeError("there is no vector")
    rows = value if ragged else [value]
    for row in rows:
        if not isinstance(row, list) or not set(map(type, row)) <= {int, float}:
            raise TypeError("is no list of numbers")
        if len(row) != width:
            raise ValueError(f"a vector has {len(row)} numbers, the ones before it {width}")
    with np.errstate(over="ignore"):
        array = np.asarray(rows, dtype=np.float32).reshape(len(rows), width)
    if not np.isfinite(array).all():
        raise ValueError("holds a number that is not finite in float32")
    return array
