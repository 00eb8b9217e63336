"""A trace as JSON values, for other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_kit.errors import shorten

if TYPE_CHECKING:
    from pipeline_kit.explain.trace import Trace

__all__ = ["to_json"]


def to_json(trace: Trace, *, most: int | None = None) -> dict[str, Any]:
    """Give `trace` with the names of its fields as keys, arrays as nested lists.

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
    return shorten(str(value), 1000)


def _array(array: np.ndarray[Any, Any], most: int | None) -> Any:
    if most is None or array.size <= most:
        return array.tolist() if np.isfinite(array).all() else _plain(array.tolist(), most)
    numbers = {"least": array.min(), "largest": array.max(), "mean": array.mean(dtype=np.float64)}
    shown = {name: _plain(number, most) for name, number in numbers.items()}
    return {"shape": list(array.shape), "dtype": str(array.dtype), **shown}


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
