"""Comparing what stages give, with a tolerance for numbers and a message that says where two values part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from pipeline_kit.errors import shorten
from pipeline_kit.types import Encoding

__all__ = ["assert_same", "difference", "plain"]


def assert_same(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Fail with `what` and the first difference, if there is one; see :func:`difference`."""
    where = difference(found, expected, tolerance)
    assert where is None, f"{what}: {where}"


def difference(found: Any, expected: Any, tolerance: float = 0.0, path: str = "") -> str | None:
    """Describe the first difference of two values, None if they are alike.

    Numbers may differ by `tolerance`, absolutely or as a part of the larger; NaN is like NaN. Tuples and
    lists are alike, and so are arrays and tensors of one shape.
    """
    if isinstance(found, np.ndarray | torch.Tensor) and isinstance(expected, np.ndarray | torch.Tensor):
        return _array_difference(np.asarray(found), np.asarray(expected), tolerance, path)
    found, expected = plain(found), plain(expected)
    if isinstance(found, bool) or isinstance(expected, bool):
        alike = found is expected
    elif isinstance(found, int | float) and isinstance(expected, int | float):
        both_nan = found != found and expected != expected
        alike = both_nan or math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    elif isinstance(found, dict) and isinstance(expected, dict):
        return _mapping_difference(found, expected, tolerance, path)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"{path or 'the value'} has {len(found)} items, not {len(expected)}"
        pairs = enumerate(zip(found, expected, strict=True))
        return next((d for i, (a, b) in pairs if (d := difference(a, b, tolerance, f"{path}[{i}]"))), None)
    else:
        alike = type(found) is type(expected) and found == expected
    return None if alike else f"{path or 'the value'} is {shorten(found)}, not {shorten(expected)}"


def plain(value: Any) -> Any:
    """Give encodings as dicts, mappings as dicts, sequences and arrays as lists; the rest as it is."""
    if isinstance(value, Encoding):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value


def _mapping_difference(
    found: Mapping[Any, Any], expected: Mapping[Any, Any], tolerance: float, path: str
) -> str | None:
    if set(found) != set(expected):
        return f"{path or 'the value'} has the keys {sorted(map(str, found))}, not {sorted(map(str, expected))}"
    keys = (d for key in found if (d := difference(found[key], expected[key], tolerance, f"{path}.{key}".lstrip("."))))
    return next(keys, None)


def _array_difference(
    found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float, path: str
) -> str | None:
    where = path or "the array"
    if found.shape != expected.shape:
        return f"{where} has the shape {list(found.shape)}, not {list(expected.shape)}"
    if np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        return None
    largest = np.nanmax(np.abs(found.astype(np.float64) - expected.astype(np.float64)))
    return f"{where} differs by up to {largest:.3g}, more than {tolerance:.3g}"
