"""Options as dataclasses, and the check of plain data against them that finds every fault at once."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline_kit.errors import HIDDEN, Fault, closest_match, declare, for_message, is_secret, learn

REQUIRED: Any = MISSING
"""Default of an option that has none: leaving it out is a fault."""

T = TypeVar("T")
_TYPES = ("bool", "int", "float", "str", "Literal", "list[...]", "dict[str, ...]", "a union of these", "a dataclass")
_LARGEST = 2**63 - 1  # of a whole number: what arrays and files can count
_SCALARS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    least: int = 0,
    secret: bool | None = None,
) -> Any:
    """Declare an option of a stage or policy, as a dataclass field.

    :param default: the value when the user sets none; `REQUIRED` if the user must set one.
    :param help: one line, shown by ``pipeline-kit show``.
    :param minimum: the smallest number allowed.
    :param maximum: the largest number allowed.
    :param least: the fewest items allowed in a list.
    :param secret: True: the value is never printed or written; False: it is, whatever its name, and all below it;
        None: the words of its name decide, see :mod:`pipeline_kit.errors`.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "least": least, "secret": secret}
    if isinstance(default, list | dict) or (is_dataclass(default) and not isinstance(default, type)):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    # Only by keyword, or it could not stand behind the options with defaults of a dataclass that is extended.
    return field(default=default, metadata=metadata, kw_only=default is REQUIRED)


def default_of(item: Field[Any]) -> Any:
    """Return a field's default, `REQUIRED` if it has none."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def defaults(schema: type[Any]) -> dict[str, Any]:
    """Return the options of `schema` with their defaults as plain data, ``"???"`` for required ones."""
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


def list_options(schema: type[Any]) -> list[OptionInfo]:
    """List the options of `schema`; one that holds options of its own is listed as those, such as ``a.b``."""
    hints = get_type_hints(schema)
    shown = defaults(schema)
    found: list[OptionInfo] = []
    for item in fields(schema):
        kind = hints[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            found += [replace(inner, name=f"{item.name}.{inner.name}") for inner in list_options(kind)]
        else:
            found.append(OptionInfo(item.name, _type_name(kind), shown[item.name], item.metadata.get("help", "")))
    return found


def choices_of(schema: type[Any], name: str) -> list[Any]:
    """List what the option `name` may be, if it is a closed list of words; else nothing."""
    kind = get_type_hints(schema).get(name)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [value for one in kinds if get_origin(one) is Literal for value in get_args(one) if isinstance(value, str)]


def parse_options(
    schema: type[T], data: Mapping[str, Any], path: str, faults: list[Fault], hint: str | None = None
) -> T | None:
    """Build `schema` from plain data, appending every fault to `faults`.

    :param path: the full key of `data`, such as ``tokenizer``; it opens each fault.
    :param hint: what to do next, added to faults about unknown options.
    :returns: None if there was any fault.
    """
    before = len(faults)
    declare(schema, path)
    learn(data, path)
    known = tuple(item.name for item in fields(schema))  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            where = f"{path}.{for_message(str(key), 80)}"
            faults.append(Fault(where, "unknown option.", known, closest_match(key, known), hint))
    hints = get_type_hints(schema)
    values: dict[str, Any] = {}
    for item in fields(schema):  # type: ignore[arg-type]
        where = f"{path}.{item.name}"
        if item.name in data and data[item.name] != "???":
            trial: list[Fault] = []
            values[item.name] = _value(hints[item.name], data[item.name], where, item.metadata, trial)
            if data[item.name] == HIDDEN:
                faults.append(Fault(where, f"{HIDDEN} stands where a secret was taken out; pass the secret."))
            elif trial and is_secret(where):
                faults.append(Fault(where, f"its value, which is not shown, is not {_type_name(hints[item.name])}."))
            else:
                faults += trial
        elif default_of(item) is REQUIRED:
            faults.append(Fault(where, f"is required: {item.metadata.get('help', 'no default')}.", hint=hint))
    if len(faults) > before:
        return None
    try:
        return schema(**values)
    except Exception as error:  # a dataclass may check how its options go together in __post_init__
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {for_message(str(error))}"
        faults.append(Fault(path, said, hint=hint))
        return None


def check_schema(schema: type[Any], path: str) -> list[Fault]:
    """Return what keeps a dataclass from being options: types that cannot be resolved, defaults that are no data."""
    try:
        hints, values = get_type_hints(schema), defaults(schema)
        faults = []
        for item in fields(schema):
            kind, where = hints[item.name], f"{path}: option '{item.name}'"
            if is_dataclass(kind) and isinstance(kind, type):
                faults += check_schema(kind, where)
            elif not _is_checked(kind):
                faults.append(Fault(where, f"has the type {for_message(str(kind))}, which is not checked.", _TYPES))
            if not _is_plain(values[item.name]):
                faults.append(Fault(where, f"has a default that is not plain data: {for_message(values[item.name])}."))
        return faults
    except Exception as error:
        return [Fault(path, f"its options cannot be read: {type(error).__name__}: {for_message(str(error))}.")]


def _is_checked(kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType, list, Sequence):
        return all(map(_is_checked, args))
    if origin in (dict, Mapping):
        return _is_checked(args[1])
    return kind is Any or origin is Literal or (origin is None and isinstance(kind, type))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | bytes | Enum | PurePath)


def _value(kind: Any, value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    """Check one value against its annotation and limits; return it, converted where that loses nothing."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(args, value, path, limits, faults)
    if origin is Literal:
        if value not in args:
            names = tuple("null" if arg is None else str(arg) for arg in args)
            faults.append(
                Fault(path, f"'{for_message(value)}' is not one of the choices.", names, closest_match(value, names))
            )
        return value
    if origin in (list, Sequence) or kind is list:
        return _items(args[0] if args else Any, value, path, limits, faults)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            faults.append(Fault(path, f"{_shown(value)} is not a mapping."))
            return value
        return {
            str(k): _value(args[1], v, f"{path}.{for_message(str(k), 80)}", limits, faults) for k, v in value.items()
        }
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            faults.append(Fault(path, f"{_shown(value)} is not a mapping of options."))
            return value
        return parse_options(kind, value, path, faults)  # type: ignore[arg-type]
    return _scalar(kind, value, path, limits, faults)


def _one_of(kinds: Sequence[Any], value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    if value is None and NoneType in kinds:
        return None
    if NoneType in kinds and str not in kinds and value in ("None", "none"):
        faults.append(Fault(path, f"'{value}' is a text.", hint=f"write {path}=null for no value"))
        return value
    members = [kind for kind in kinds if kind is not NoneType]
    for member in members[:-1]:
        trial: list[Fault] = []
        result = _value(member, value, path, limits, trial)
        if not trial:
            return result
    return _value(members[-1], value, path, limits, faults)


def _items(kind: Any, value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    if not isinstance(value, list | tuple):
        faults.append(
            Fault(path, f"{_shown(value)} is not a list.", hint=f"write it as {path}=[{for_message(value, 40)}]")
        )
        return value
    if len(value) < (limits.get("least") or 0):
        faults.append(Fault(path, f"has {len(value)} items, needs at least {limits['least']}."))
    return [_value(kind, item, f"{path}[{i}]", limits, faults) for i, item in enumerate(value)]


def _scalar(kind: Any, value: Any, path: str, limits: Mapping[str, Any], faults: list[Fault]) -> Any:
    if kind is str and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 10_000:
        value = str(value)  # a folder named 2024 or a numeric label, which YAML reads as a number
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        quote = (
            f"; to mean the text, quote it: {path}='\"{for_message(value)}\"'"
            if kind is str and value is not None
            else ""
        )
        faults.append(Fault(path, f"{_shown(value)} is not {_SCALARS.get(kind, kind)}{quote}."))
        return value
    low, high = limits.get("minimum"), limits.get("maximum")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            faults.append(Fault(path, f"{value} is not a finite number."))
        elif (low is not None and value < low) or (high is not None and value > high):
            faults.append(Fault(path, f"{for_message(value)} is out of range.", allowed=(_range(low, high),)))
        elif isinstance(value, int) and abs(value) > _LARGEST:
            faults.append(Fault(path, f"{for_message(value)} is out of range.", allowed=(_range(None, _LARGEST),)))
    if isinstance(value, str) and "\0" in value:
        faults.append(Fault(path, "holds a NUL character."))
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else f"'{for_message(value)}'"


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
