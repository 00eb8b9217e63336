"""What a job wrote down, read back: a folder is data that anyone may have changed, so nothing in it is trusted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline_kit.atomic import atomic_writer
from pipeline_kit.errors import OutputError

__all__ = ["are_numbers", "changed", "digest_of", "is_count", "opened", "read_sealed", "sha256", "write_sealed"]


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write `content` as JSON with its own hash, so that it is whole or not there.

    :raises OutputError: if it cannot be written.
    """
    sealed = {**content, "sha256": _seal(content)}
    with atomic_writer(path) as file:
        file.write(json.dumps(sealed, indent=indent, ensure_ascii=False) + "\n")


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read what :func:`write_sealed` wrote; None if it was damaged or cut.

    :raises OutputError: if the file is a link, a pipe, or anything else but a regular file.
    :raises OSError: if it cannot be read.
    """
    with opened(path) as file:
        data = file.read()
    try:
        content: dict[str, Any] = json.loads(data)
        return content if content.pop("sha256") == _seal(content) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 of a job's file; None if it cannot be read, or is not a regular file."""
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, OutputError):
        return None


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of a job. No link is followed, and no pipe or device is opened.

    :raises OutputError: if `path` is anything else.
    :raises OSError: if it cannot be opened.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise changed(path, "it is a link, a folder, a pipe or a device, and a job writes regular files")
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
        yield file


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed(path: Path, what: str) -> OutputError:
    """Return the error for a folder of a job that holds what no job wrote there."""
    return OutputError(
        f"{path}: this folder was changed by something else: {what}.\n"
        "  Nothing was touched. Move that file away and run the same command again, or begin anew with --restart "
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
