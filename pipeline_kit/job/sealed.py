"""What a job wrote down, read back: a folder is data that anyone may have changed, so nothing in it is trusted."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline_kit.errors import OutputError, for_message
from pipeline_kit.files.atomic import atomic_writer


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the body runs.

    The system releases the lock when a process dies, so a dead one's is simply taken over. The file itself
    stays: removing it could remove one that another process has just locked.

    :raises OutputError: if another process holds it, which is named; or if the file is not a lock.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from error
    try:
        if not _taken(descriptor):
            raise OutputError(f"{path.parent}: another process writes to this folder: {_holder(descriptor)}")
        if os.pread(descriptor, 1, 0) and _pid(descriptor) is None:
            raise changed(path, "a job writes there which process has the folder")
        with suppress(OSError):  # who holds it is only for messages
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; its open files cannot be replaced by another process
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _holder(descriptor: int) -> str:
    found = _pid(descriptor)
    if found is None:
        return "it did not say which; wait for it or stop it"
    return f"process {found['pid']} on {for_message(str(found['host']), 80)}; wait for it or stop it"


def _pid(descriptor: int) -> dict[str, Any] | None:
    """Read which process wrote the lock last; None if nothing says so."""
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 1000, 0))
        return found if found.keys() == {"pid", "host"} and is_count(found["pid"]) else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
