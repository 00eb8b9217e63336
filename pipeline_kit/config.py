"""Options as dataclasses, and the check of plain data against them that finds every fault at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline_kit.errors import Fault, closest, shorten

__all__ = ["REQUIRED", "OptionInfo", "check", "default_of", "defaults", "describe", "option"]

REQUIRED: Any = MISSING
"""Default of an option that has none: leaving it out is a fault."""

T = TypeVar("T")
_LARGEST = 2**63 - 1  # of a whole number: what arrays and files can count
_SCALARS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def option(
    default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None, least: int = 0
) -> Any:
    """Declare an option of a stage or policy, as a dataclass field.

    :param default: the value when the user gives none; `REQUIRED` if the user must.
    :param help: one line, shown by ``pipeline-kit show``.
    :param minimum: the smallest number allowed.
    :param maximum: the largest number allowed.
    :param least: the fewest items allowed in a list.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "least": least}
    if isinstance(default, list | dict) or (is_dataclass(default) and not isinstance(default, type)):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(item: Field[Any]) -> Any:
    """Give a field's default, `REQUIRED` if it has none."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def defaults(schema: type[Any]) -> dict[str, Any]:
    """Give the options of `schema` with their defaults as plain data, ``"???"`` for required ones."""
    found: dict[str, Any] = {}
    for item in fields(schema):
        value = default_of(item)
        if value is REQUIRED:
            value = "???"
        elif is_dataclass(value) and not isinstance(value, type):
            value = defaults(type(value))
        found[item.name] = value
    return found


@dataclass(frozen=True)
class OptionInfo:
    """One option as ``pipeline-kit show`` prints it."""

    name: str
    type: str
    default: Any
    help: str


def describe(schema: type[Any]) -> list[OptionInfo]:
    """List the options of `schema`; one that holds options of its own is listed as those, such as ``a.b``."""
    hints = get_type_hints(schema)
    shown = defaults(schema)
    found: list[OptionInfo] = []
    for item in fields(schema):
        kind = hints[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            found += [replace(inner, name=f"{item.name}.{inner.name}") for inner in describe(kind)]
        else:
            found.append(OptionInfo(item.name, _type_name(kind), shown[item.name], item.metadata.get("help", "")))
    return found


def check(
    schema: type[T], data: Mapping[str, Any], path: str, faults: list[Fault], hint: str | None = None
) -> T | None:
    """Build `schema` from plain data, appending every fault to `faults`.

    :param path: the full key of `data`, such as ``tokenizer``; it opens each fault.
    :param hint: what to do next, added to faults about unknown options.
    :returns: None if there was any fault.
    """
    before = len(faults)
    known = tuple(item.name for item in fields(schema))  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            where = f"{path}.{shorten(str(key), 80)}"
            faults.append(Fault(where, "unknown option.", known, closest(key, known), hint))
    hints = get_type_hints(schema)
    values: dict[str, Any] = {}
    for item in fields(schema):  # type: ignore[arg-type]
        where = f"{path}.{item.name}"
        if item.name in data and data[item.name] != "???":
            values[item.name] = _value(hints[item.name], data[item.name], where, item.metadata, faults)
        elif default_of(item) is REQUIRED:
            faults.append(Fault(where, f"is required: {item.metadata.get('help', 'no default')}.", hint=hint))
    if len(faults) > before:
        return None
    try:
        return schema(**values)
    except ValueError as error:  # a dataclass may check how its options go together in __post_init__
        faults.append(Fault(path, str(error), hint=hint))
        return None


def _value(kind: Any, value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    """Check one value against its annotation and limits; give it back, converted where that loses nothing."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(args, value, path, limits, faults)
    if origin is Literal:
        if value not in args:
            names = tuple("null" if arg is None else str(arg) for arg in args)
            faults.append(Fault(path, f"'{shorten(value)}' is not one of the choices.", names, closest(value, names)))
        return value
    if origin in (list, Sequence) or kind is list:
        return _items(args[0] if args else Any, value, path, limits, faults)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            faults.append(Fault(path, f"{_shown(value)} is not a mapping."))
            return value
        return {str(k): _value(args[1], v, f"{path}.{shorten(str(k), 80)}", limits, faults) for k, v in value.items()}
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            faults.append(Fault(path, f"{_shown(value)} is not a mapping of options."))
            return value
        return check(kind, value, path, faults)  # type: ignore[arg-type]
    return _scalar(kind, value, path, limits, faults)


def _one_of(kinds: Sequence[Any], value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    if value is None and NoneType in kinds:
        return None
    members = [kind for kind in kinds if kind is not NoneType]
    for member in members[:-1]:
        trial: list[Fault] = []
        result = _value(member, value, path, limits, trial)
        if not trial:
            return result
    return _value(members[-1], value, path, limits, faults)


def _items(kind: Any, value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    if not isinstance(value, list | tuple):
        faults.append(Fault(path, f"{_shown(value)} is not a list.", hint=f"write it as {path}=[{shorten(value, 40)}]"))
        return value
    if len(value) < (limits.get("least") or 0):
        faults.append(Fault(path, f"has {len(value)} items, needs at least {limits['least']}."))
    return [_value(kind, item, f"{path}[{i}]", limits, faults) for i, item in enumerate(value)]


def _scalar(kind: Any, value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # a folder named 2024 or a numeric label, which YAML reads as a number
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        quote = f"; to mean the text, quote it: {path}='\"{value}\"'" if kind is str and value is not None else ""
        faults.append(Fault(path, f"{_shown(value)} is not {_SCALARS.get(kind, kind)}{quote}."))
        return value
    low, high = limits.get("minimum"), limits.get("maximum")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            faults.append(Fault(path, f"{value} is not a finite number."))
        elif (low is not None and value < low) or (high is not None and value > high):
            faults.append(Fault(path, f"{shorten(value)} is out of range.", allowed=(_range(low, high),)))
        elif isinstance(value, int) and abs(value) > _LARGEST:
            faults.append(Fault(path, f"{shorten(value)} is out of range.", allowed=(_range(None, _LARGEST),)))
    if isinstance(value, str) and "\0" in value:
        faults.append(Fault(path, "holds a NUL character."))
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"'{shorten(value)}'"


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"{low} or more"
    return f"{high} or less" if low is None else f"{low} to {high}"


def _type_name(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " | ".join(_type_name(arg) for arg in args)
    if origin is Literal:
        return " | ".join("null" if arg is None else str(arg) for arg in args)
    if origin is not None and args:
        return f"{origin.__name__}[{', '.join(_type_name(arg) for arg in args)}]"
    if kind is NoneType:
        return "null"
    return getattr(kind, "__name__", str(kind))
