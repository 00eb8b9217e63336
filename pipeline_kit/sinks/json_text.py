"""JSON as this project writes it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_line"]


def json_line(value: Any) -> str:
    """Write a value as one line of JSON.

    :raises ValueError: if it holds NaN or Infinity, which JSON cannot say.
    :raises TypeError: if it holds something that is no JSON value.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)  # a lone surrogate can only be written escaped
    return line
