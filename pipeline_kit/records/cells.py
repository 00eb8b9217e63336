"""Cells as JSON values: what Python objects in a row become in the output."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.json import has_lone_surrogate

__all__ = ["iso_duration", "json_value"]


def json_value(value: Any) -> Any:
    """Give `value` as JSON values alone.

    NaN and the infinities become null. Dates and times become ISO 8601 text, with a time zone as UTC; lengths of
    time become ``PT12.5S``; decimals exact text; bytes base64; numpy's scalars and arrays what ``tolist`` gives.

    :raises InputError: for any other type, a key that is no string, a text that UTF-8 cannot represent,
        and nesting too deep to be followed.
    """
    try:
        return _value(value)
    except RecursionError as error:
        raise InputError("is nested too deep") from error


def iso_duration(units: int, per_second: int) -> str:
    """Write a length of time as ISO 8601 does, in seconds alone: ``PT90S``, ``-PT0.5S``."""
    whole, rest = divmod(abs(units), per_second)
    digits = len(str(per_second)) - 1
    fraction = f".{rest:0{digits}d}".rstrip("0") if rest else ""
    return f"{'-' if units < 0 else ''}PT{whole}{fraction}S"


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise InputError("has a lone surrogate, which UTF-8 cannot represent")
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_value(inner) for inner in value]
    return _other(value)


def _key(key: Any) -> str:
    if not isinstance(key, str) or has_lone_surrogate(key):
        raise InputError(f"has the key {shorten(key, 40)}, which is no text")
    return str(key)


def _other(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return iso_duration(value // timedelta(microseconds=1), 1_000_000)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, UUID):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return _value(value.tolist())
    raise InputError(f"is of the type {type(value).__name__}, which is no JSON value")
