"""One process at a time: a lock file that the system releases when its holder ends, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def lock_file(path: Path, *, wait: bool, on_locked: Callable[[int], None] | None = None) -> Iterator[bool]:
    """Hold the lock of the file `path` while the body runs; yield False on a file system that has no locks.

    The file is made if it is not there, and stays: removing it could remove one that another process has just locked.
    No symbolic link is followed.

    :param wait: whether to wait for another process.
    :param on_locked: called with the descriptor of the locked file.
    :raises filelock.Timeout: if another process holds the lock, and `wait` is False.
    :raises OSError: if the file cannot be opened.
    """
    lock = FileLock(path, blocking=wait, fallback_to_soft=False, on_acquired=on_locked)
    try:
        lock.acquire()
    except OSError as error:
        # What open() raises names the file; what flock() raises on a file system without locks does not.
        if isinstance(error, Timeout) or error.filename is not None:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()
