"""JSON files of a model folder, read with bounds: a hostile one is an error, never a crash or a flood."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from pipeline_kit.errors import CheckpointError, for_message

MAX_JSON_BYTES = 4 << 20
MAX_DEPTH = 64
_MAX_FULL_KEY = 300


class NotJsonError(CheckpointError):
    """A file that no JSON reader would take."""


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file, after symlinks, without waiting for anything; raise CheckpointError for all else."""
    # Opening a FIFO would wait for a writer that may never come, and reading a device may never end. What was
    # opened is looked at again, since the name may have come to mean another file.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if stat.S_ISREG(path.stat().st_mode):
            with os.fdopen(os.open(path, flags), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    yield file
                    return
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(path, error)}") from error
    raise CheckpointError(f"{path} is not a regular file; a model folder holds files only")


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of at most `limit` bytes; raise CheckpointError if that cannot be done, and say where."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path} is larger than {limit >> 20} MB, too large for a configuration file")
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself; run 'git lfs pull' in its folder")
    try:
        value = json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise NotJsonError(f"{path} is not valid JSON: {error.msg} at {where}; copy or download it again") from error
    except RecursionError as error:
        raise CheckpointError(_too_deep(path)) from error
    except ValueError as error:  # bytes that are no UTF-8, or an integer of thousands of digits
        raise NotJsonError(f"{path} is not valid JSON: {for_message(str(error))}") from error
    for _ in nodes(value, path):
        pass
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError as :func:`read_json`, and if the file holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object; this is not a model's file")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """Read a JSON object; ``{}`` if there is no such file, CheckpointError if something else has this name."""
    return read_object(path) if os.path.lexists(path) else {}


def nodes(value: Any, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield every mapping entry in `value`, from the file `path`, at any depth: full key, last key and value.

    Of the full key at most 300 characters: a key of a megabyte before 100,000 others would make 100 GB.

    :raises CheckpointError: if it is nested more than `MAX_DEPTH` deep.
    """
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        where, node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise CheckpointError(_too_deep(path))
        if isinstance(node, dict):
            for key, item in node.items():
                full = (f"{where}.{key}" if where else key)[:_MAX_FULL_KEY]
                yield full, key, item
                if isinstance(item, dict | list):
                    waiting.append((full, item, depth + 1))
        elif isinstance(node, list):
            waiting.extend(
                (f"{where}[{i}]"[:_MAX_FULL_KEY], item, depth + 1)
                for i, item in enumerate(node)
                if isinstance(item, dict | list)
            )


def _too_deep(path: Path) -> str:
    return f"{path} is nested more than {MAX_DEPTH} levels deep; no model's configuration is"


def reason(path: Path, error: OSError) -> str:
    """Return why `path` could not be read."""
    if path.is_symlink() and not path.exists():
        return (
            f"it is a symlink to {path.readlink()}, which is not there; restore that file or download the model again"
        )
    return str(error.strerror or error)
