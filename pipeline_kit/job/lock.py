"""One writer at a time: a lock on the job's folder that ends with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_kit.errors import OutputError, shorten

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the body runs.

    The system gives the lock back when a process dies, so a dead one's is simply taken over. The file itself
    stays: removing it could remove one that another process has just locked.

    :raises OutputError: if another process holds it; says which.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from error
    try:
        if not _taken(descriptor):
            raise OutputError(f"{path.parent}: another process writes to this folder: {_holder(descriptor)}")
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
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(found['pid'])} on {shorten(str(found['host']), 80)}; wait for it or stop it"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which; wait for it or stop it"
