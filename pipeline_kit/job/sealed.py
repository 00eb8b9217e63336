"""What a job wrote down, read back: a folder is data that anyone may have changed, so nothing in it is trusted."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_kit.errors import OutputError

LAYOUT = 2
"""The number of how a job's folder is laid out; raised when another version could not read it any more."""
ANEW = "--restart, in Python restart=True"
"""How a job is begun anew. Errors of workers hold it too, which do not know where the user types."""


def sealed(content: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return `content` as a line of JSON with its own hash."""
    written = {**content, "sha256": _seal(content)}
    return (json.dumps(written, indent=indent, ensure_ascii=False) + "\n").encode()


def unsealed(data: bytes, where: str) -> dict[str, Any] | None:
    """Read what :func:`sealed` returned; None if it was damaged or cut.

    :param where: the file, for messages.
    :raises OutputError: if it is of another version's layout.
    """
    try:
        content: dict[str, Any] = json.loads(data)
        if content.pop("sha256") != _seal(content):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    layout = content.get("layout", 1)  # the first receipts had none
    if is_count(layout) and layout != LAYOUT:
        newer = layout > LAYOUT
        raise OutputError(
            f"{where}: was written by {'a newer' if newer else 'an older'} pipeline-kit (layout {layout}; this version "
            f"reads layout {LAYOUT}): {'update pipeline-kit' if newer else 'finish it with that version'}, or begin "
            f"anew with {ANEW} (the folder is renamed, nothing is deleted)"
        )
    return content


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed(where: str | Path, what: str) -> OutputError:
    """Return the error for a folder of a job that holds what no job wrote there."""
    return OutputError(
        f"{where}: this folder was changed by something else: {what}.\n"
        f"  Nothing was touched. Move that file away and run the same command again, or begin anew with {ANEW} "
        "(the folder is renamed, nothing is deleted)"
    )


def is_count(value: Any) -> bool:
    """Return whether `value` counts rows or the like."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def are_numbers(value: Any) -> bool:
    """Return whether `value` is a mapping of finite numbers, none below 0."""
    return isinstance(value, dict) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number >= 0
        for number in value.values()
    )


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
