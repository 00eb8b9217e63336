"""Data without the secrets in it, for what is kept, printed or shared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["HIDDEN", "redacted", "without_secrets"]

_SECRET_KEY = re.compile(r"(^|[._-])(token|secret|password|passwd|api[_-]?key|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b|://[^/\s@]+@")
HIDDEN = "(hidden)"


def redacted(value: Any, key: str = "") -> Any:
    """Give `value` without what looks like a secret, by the names of options and the form of values."""
    if isinstance(value, Mapping):
        return {name: redacted(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner, key) for inner in value]
    if value is not None and _SECRET_KEY.search(key):
        return HIDDEN
    return _SECRET_VALUE.sub(HIDDEN, value) if isinstance(value, str) else value


def without_secrets(overrides: Iterable[str]) -> list[str]:
    """Give overrides in which a value is hidden if its option's name or its own form says that it is a secret."""
    parted = (word.partition("=") for word in overrides)
    return [f"{key}{equals}{redacted(value, key.lstrip('+~'))}" for key, equals, value in parted]
