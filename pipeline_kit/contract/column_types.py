"""The types of columns, as JSON values: what a value is, and what fits.

A kind is one of `SCALARS`, ``{"list": kind}`` or ``{"struct": {name: kind}}``; null fits any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, Literal, get_args

Scalar = Literal["string", "int64", "float64", "float32", "bool"]
SCALARS: tuple[Scalar, ...] = get_args(Scalar)

ColumnType = str | Mapping[str, Any]

VECTOR: ColumnType = {"list": "float32"}
VECTORS: ColumnType = {"list": VECTOR}

COUNTS: Mapping[str, ColumnType] = {"truncated": "int64", "truncated_chars": "int64", "windows": "int64"}
"""What a pipeline adds to the result of a text that was cut or split."""

_NUMBERS = frozenset({int, float})
_NUMBERS_OR_NULL = frozenset({int, float, NoneType})
_JSON = "json"
"""While inferring: values that are best written as JSON."""


def holds(value: Any, kind: ColumnType) -> bool:
    """Return whether a column of `kind` holds `value` as it is, without changing its type or dropping a key."""
    if value is None:
        return True
    if isinstance(kind, str):
        return _scalar_fits(value, kind)
    if "list" in kind:
        if not isinstance(value, list | tuple):
            return False
        inner = kind["list"]
        if inner in ("float32", "float64"):  # a loop over each vector's numbers would cost more than writing them
            return set(map(type, value)) <= _NUMBERS_OR_NULL
        return all(holds(item, inner) for item in value)
    fields: Mapping[str, ColumnType] = kind["struct"]
    return isinstance(value, Mapping) and all(key in fields and holds(item, fields[key]) for key, item in value.items())


def library_type(
    kind: ColumnType,
    scalars: Mapping[str, Any],
    list_of: Callable[[Any], Any],
    struct_of: Callable[[list[tuple[str, Any]]], Any],
) -> Any:
    """Return `kind` as a library's own type, from its scalar types by our names, and its types of lists and structs."""

    def typed(kind: ColumnType) -> Any:
        if isinstance(kind, str):
            return scalars[kind]
        if "list" in kind:
            return list_of(typed(kind["list"]))
        return struct_of([(name, typed(inner)) for name, inner in kind["struct"].items()])

    return typed(kind)


def infer_type(values: Iterable[Any]) -> ColumnType:
    """Return the narrowest kind that all of `values` fit.

    Integers and fractions together are ``float64``. Values that have no kind in common, objects, and values that
    say nothing (none but null, empty lists) give ``string``: there, all but strings are written as JSON.
    """
    found = _common(values)
    return "string" if found is None or found == _JSON or _open(found) else found


def _scalar_fits(value: Any, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int64":
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) in _NUMBERS


def _common(values: Iterable[Any]) -> ColumnType | None:
    """Return what `values` have in common; `_JSON` if nothing, None if they say nothing."""
    found: ColumnType | None = None
    for value in values:
        kind = _kind(value)
        if kind is not None:
            found = kind if found is None else _merged(found, kind)
        if found == _JSON:
            break
    return found


def _kind(value: Any) -> ColumnType | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "int64" if holds(value, "int64") else _JSON
    if isinstance(value, float):
        return "float64"
    if isinstance(value, list | tuple):
        inner = _common(value)
        return _JSON if inner == _JSON else {"list": inner}
    return _JSON


def _merged(one: ColumnType, other: ColumnType) -> ColumnType:
    """Return the narrowest kind for both."""
    if one == other:
        return one
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        inner, more = one["list"], other["list"]
        if inner is None or more is None:
            return other if inner is None else one
        merged = _merged(inner, more)
        return _JSON if merged == _JSON else {"list": merged}
    if isinstance(one, str) and isinstance(other, str) and {one, other} == {"int64", "float64"}:
        return "float64"
    return _JSON


def _open(kind: ColumnType) -> bool:
    """Return whether lists were seen, but nothing in them."""
    return isinstance(kind, Mapping) and (kind["list"] is None or _open(kind["list"]))
