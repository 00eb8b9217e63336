"""How messages write options and flags: as words of the command line, or as arguments of Python."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TYPED: ContextVar[bool] = ContextVar("whether the user types words of the command line", default=False)
_PYTHON = {"null": "None", "true": "True", "false": "False", "[]": "[]", "{}": "{}"}


@contextmanager
def command_line() -> Iterator[None]:
    """While the body lasts, messages name overrides and flags; otherwise they name keyword arguments of Python."""
    token = _TYPED.set(True)
    try:
        yield
    finally:
        _TYPED.reset(token)


def either(typed: str, python: str) -> str:
    """Return `typed` while :func:`command_line` lasts, else `python`."""
    return typed if _TYPED.get() else python


def spelled(override: str) -> str:
    """Return an override as its user writes it: ``a.b=1``, in Python ``a={"b": 1}``."""
    if _TYPED.get():
        return override
    key, _, value = override.partition("=")
    group, *path = key.split(".")
    return f"{group}={''.join(f'{{{json.dumps(part)}: ' for part in path)}{_in_python(value)}{'}' * len(path)}"


def flag(name: str, value: str, python: str = "") -> str:
    """Return a flag with its value as its user writes it; `python` is the name of the argument, if another."""
    return either(f"--{name} {value}", f"{python or name.replace('-', '_')}={value!r}")


def _in_python(value: str) -> str:
    if value in _PYTHON or re.fullmatch(r"-?\d+(\.\d+)?", value):
        return _PYTHON.get(value, value)
    if value.startswith("[") and value.endswith("]"):
        return f"[{', '.join(_in_python(item.strip()) for item in value[1:-1].split(','))}]"
    return json.dumps(value, ensure_ascii=False)
