"""A file that appears under its name only when it is complete, and never in the place of one that is read."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from pipeline_kit.errors import OutputError, UsageError, for_message
from pipeline_kit.files.storage.base import KINDS_OF_STORE, scheme_of

BLOCK = 1 << 20
_TEMPORARY = re.compile(r"\.pipeline-kit-[0-9a-f]{16}\.tmp", re.ASCII)


@final
class AtomicFile:
    """The open end of :func:`atomic_writer`: bytes go in, or text, which becomes UTF-8."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Write to `descriptor`; `path` is the final name, for messages."""
        self._path = path
        self._descriptor = descriptor
        self._pending = bytearray()

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Add `data`, which may wait in memory until a block is full.

        :raises OutputError: if the disk takes no more.
        """
        self._pending += data.encode("utf-8") if isinstance(data, str) else data
        if len(self._pending) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Hand everything over to the operating system."""
        try:
            waiting = memoryview(bytes(self._pending))
            while waiting:
                waiting = waiting[os.write(self._descriptor, waiting) :]
        except OSError as error:
            raise _failed(self._path, error) from error
        self._pending.clear()


def create_file(path: str | os.PathLike[str], data: bytes) -> bool:
    """Write a whole file only if there is nothing of its name; False if there is.

    :raises OutputError: as :func:`atomic_writer`, and if the file system has no hard links.
    """
    if os.path.lexists(path):
        return False
    try:
        with atomic_writer(path, only_new=True) as file:
            file.write(data)
    except OutputError as error:
        if isinstance(error.__cause__, FileExistsError):  # another process was faster
            return False
        raise
    return True


@contextmanager
def atomic_writer(path: str | os.PathLike[str], *, only_new: bool = False) -> Iterator[AtomicFile]:
    """Write a file that is complete or not there at all.

    What is written goes to a temporary file in the same folder. When the body ends, that file is synced to the
    disk and renamed to `path`, and the folder is synced. When anything fails or interrupts before that,
    the temporary file is removed and what `path` named before is left as it was.

    :param only_new: link the file to `path` instead, which fails where something has that name by then.
    :raises OutputError: if `path` is a folder, a link or a device, or if a step fails; it names `path`.
        After a failed sync of the folder, `path` is removed: it might not survive a loss of power.
    """
    target = Path(path)
    mode = _checked(target)
    folder = target.parent
    _remove_leftovers_once(os.path.abspath(folder))
    try:
        temporary, descriptor = _temporary(folder)
    except OSError as error:
        raise _failed(target, error) from error
    try:
        if mode is not None:
            with suppress(OSError):
                os.chmod(temporary, mode)
        writer = AtomicFile(target, descriptor)
        yield writer
        writer.flush()
        _publish(descriptor, temporary, target, only_new)
        descriptor = -1
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
    _sync_folder(target, new=mode is None)


def is_temporary(name: str) -> bool:
    """Return whether `name` is one that :func:`atomic_writer` chooses for its temporary files."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` of processes that were killed; those being written are left alone.

    A file is locked for as long as it is written, and the system ends the lock with the process, on whatever machine
    that was. Where there are no locks nothing is removed.
    """
    with suppress(OSError, ImportError):
        import fcntl

        for name in filter(is_temporary, os.listdir(folder)):
            with suppress(OSError):
                _remove_unlocked(folder / name, fcntl)


@lru_cache(maxsize=256)
def _remove_leftovers_once(folder: str) -> None:
    """Look once in a process: a job writes thousands of files into one folder."""
    remove_leftovers(Path(folder))


def _remove_unlocked(path: Path, fcntl: Any) -> None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return
    descriptor = os.open(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            os.unlink(path)
    finally:
        os.close(descriptor)


def _temporary(folder: Path) -> tuple[Path, int]:
    """Open a temporary file that is locked, where there are locks."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    while True:
        path = folder / f".pipeline-kit-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(path, flags, 0o666)
        if _locked(path, descriptor):
            return path, descriptor
        os.close(descriptor)


def _locked(path: Path, descriptor: int) -> bool:
    """Lock a new file; False if another process took it for a leftover in the moment before."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _publish(descriptor: int, temporary: Path, target: Path, only_new: bool) -> None:
    """Sync, rename and close, in the order that leaves no torn file under the final name."""
    try:
        os.fsync(descriptor)
        if only_new:
            os.link(temporary, target)
            os.unlink(temporary)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise _failed(target, error) from error
    with suppress(OSError):  # the data is on the disk already, so closing has nothing to lose
        os.close(descriptor)


def _sync_folder(target: Path, new: bool) -> None:
    try:
        descriptor = os.open(target.parent, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            return  # this file system, or a folder one may not read, has no such sync
        if new:
            with suppress(OSError):
                os.unlink(target)
        raise _failed(target, error) from error


def _checked(target: Path) -> int | None:
    """Refuse a target that a rename would harm; return the permissions of the file it replaces.

    :raises OutputError: see :func:`atomic_writer`.
    """
    try:
        found = os.lstat(target).st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _failed(target, error) from error
    if stat.S_ISREG(found):
        return stat.S_IMODE(found)
    if stat.S_ISDIR(found):
        raise OutputError(f"{target}: is a folder; name a file in it")
    if stat.S_ISLNK(found):
        raise OutputError(f"{target}: is a symbolic link; name the file it points to: {os.path.realpath(target)}")
    raise OutputError(f"{target}: is a device or a pipe, not a file; print to stdout instead and redirect that")


def _failed(target: Path, error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    hint = f"; is there a folder '{target.parent}'?" if isinstance(error, FileNotFoundError) else ""
    return OutputError(f"{target}: cannot be written: {reason}{hint}")


def refuse_overlap(outputs: Iterable[tuple[str, str | Path]], inputs: Iterable[str | Path]) -> None:
    """See that nothing that is read would be written over: as the same file, in a folder that is read, or around it.

    Links and other spellings of a path count as the file that they lead to. URLs are compared by their parts.

    :param outputs: files and folders that will be written, each behind the flag that names it.
    :param inputs: files and folders that are read, or were named as an output before; ``-`` is stdin.
    :raises UsageError: naming the flag and both paths.
    """
    known = [(str(name), _chain("/dev/stdin" if name == "-" else name)) for name in inputs]
    for flag, output in outputs:
        chain = _chain(output)
        for name, other in known:
            if other[0] == chain[0]:
                is_folder = scheme_of(str(output)) is not None or Path(output).is_dir()
                problem = "is the same folder as" if is_folder else "is the same file as"
            elif other[0] in chain:
                problem = "is in the folder"
            elif chain[0] in other:
                problem = "holds"
            else:
                continue
            read = "stdin" if name == "-" else f"'{for_message(name)}'"
            raise UsageError(
                f"{flag} {for_message(str(output))}: {problem} {read}, which this command uses too; name another place"
            )
        known.append((str(output), chain))


def _chain(path: str | Path) -> list[object]:
    """Return what identifies a file, then the same of each folder around it."""
    if (scheme := scheme_of(str(path))) is not None:
        parts = str(path).partition("://")[2].rstrip("/").split("/")
        kind = KINDS_OF_STORE.get(scheme, scheme)
        return [(kind, *parts[:count]) for count in range(len(parts), 0, -1)]
    real = Path(os.path.realpath(path)) if "\0" not in str(path) else Path(path)
    found: list[object] = []
    for place in (Path(path), *real.parents):
        try:
            known = os.stat(place)
            found.append((known.st_dev, known.st_ino))
        except (OSError, ValueError):
            found.append(str(real if place == Path(path) else place))
    return found
