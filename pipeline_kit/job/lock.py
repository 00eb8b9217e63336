"""One writer at a time: a lock on the job's folder that ends with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline_kit.errors import OutputError, shorten
from pipeline_kit.job.stored import changed, is_count

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the body runs.

    The system gives the lock back when a process dies, so a dead one's is simply taken over. The file itself
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
    return f"process {found['pid']} on {shorten(str(found['host']), 80)}; wait for it or stop it"


def _pid(descriptor: int) -> dict[str, Any] | None:
    """Read which process wrote the lock last; None if nothing says so."""
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 1000, 0))
        return found if found.keys() == {"pid", "host"} and is_count(found["pid"]) else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
