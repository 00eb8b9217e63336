"""JSON as this project writes it."""

from __future__ import annotations

import json
import math
from typing import Any

from pipeline_kit.errors import InputError, for_message


def json_line(value: Any) -> str:
    """Write a value as one line of JSON.

    :raises ValueError: if it holds NaN or Infinity, which JSON cannot say.
    :raises TypeError: if it holds something that is not a JSON value.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)  # a lone surrogate can only be written escaped
    return line


def parse_json(text: str) -> Any:
    """Parse one JSON value.

    :raises InputError: with the reason, if it is not JSON, or holds NaN, Infinity, a number too large, a key
        twice or nesting too deep to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")
        raise InputError(f"not JSON: {problem} at character {error.pos + 1}: {for_message(text, 60)}") from error
    except RecursionError as error:
        raise InputError("not usable JSON: nested too deep") from error
    except ValueError as error:
        raise InputError(f"not usable JSON: {for_message(str(error))}") from error


def parse_example(text: str) -> str | dict[str, Any]:
    """Parse an example written as JSON: a string or an object.

    :raises InputError: as :func:`parse_json`, and for any other type.
    """
    value = parse_json(text)
    if isinstance(value, str | dict):
        return value
    kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    raise InputError(f"a JSON example is a string or an object, not {kind}: {for_message(text, 60)}")


def has_lone_surrogate(value: object) -> bool:
    """Return whether `value` is a string that UTF-8 cannot represent."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key '{for_message(key, 60)}' is there twice")
            seen.add(key)
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {for_message(text, 40)} is too large")
    return value
