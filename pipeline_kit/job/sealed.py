"""What a job wrote down, read back: a folder is data that anyone may have changed, so nothing in it is trusted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import Timeout

from pipeline_kit.errors import OutputError, for_message
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.files.lock import lock_file

LAYOUT = 1
"""The number of how a job's folder is laid out; raised when an older version could not read it any more."""


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write `content` as JSON with its own hash, so that it is whole or not there.

    :raises OutputError: if it cannot be written.
    """
    sealed = {**content, "sha256": _seal(content)}
    with atomic_writer(path) as file:
        file.write(json.dumps(sealed, indent=indent, ensure_ascii=False) + "\n")


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read what :func:`write_sealed` wrote; None if it was damaged or cut.

    :raises OutputError: if the file is a link, a pipe, or anything else but a regular file; or of a newer version.
    :raises OSError: if it cannot be read.
    """
    with opened(path) as file:
        data = file.read()
    try:
        content: dict[str, Any] = json.loads(data)
        if content.pop("sha256") != _seal(content):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    layout = content.get("layout", 1)  # the first receipts had none
    if is_count(layout) and layout > LAYOUT:
        raise OutputError(
            f"{path}: was written by a newer pipeline-kit (layout {layout}; this version reads up to {LAYOUT}): "
            "update pipeline-kit, or begin anew with --restart (the folder is renamed, nothing is deleted)"
        )
    return content


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the body runs. On a file system without locks nothing is held.

    :raises OutputError: if another process holds it, which is named; or if the file is not a lock.
    """

    def sign(descriptor: int) -> None:
        if os.pread(descriptor, 1, 0) and _holder(path) is None:
            raise changed(path, "a job writes there which process has the folder")
        with suppress(OSError):  # who holds it is only for messages
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(path, wait=False, on_locked=sign))
        except Timeout as error:
            holder = _holder(path)
            if holder is None:
                said = "it did not say which"
            else:
                said = f"process {holder['pid']} on {for_message(str(holder['host']), 80)}"
            said = f"another process writes to this folder: {said}; wait for it or stop it"
            raise OutputError(f"{path.parent}: {said}") from error
        except OSError as error:
            raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from error
        yield


def _holder(path: Path) -> dict[str, Any] | None:
    """Read which process wrote the lock last; None if nothing says so."""
    try:
        with opened(path) as file:
            found: dict[str, Any] = json.loads(file.read(1000))
        return found if found.keys() == {"pid", "host"} and is_count(found["pid"]) else None
    except (OSError, OutputError, ValueError, AttributeError, RecursionError):
        return None
