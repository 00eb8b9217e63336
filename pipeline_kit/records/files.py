"""Files that can be opened again and again, and streams that are copied so that they can, too."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast, final

from pipeline_kit.errors import InputError, closest, shorten

__all__ = ["DiskFile", "File", "SpooledFile", "opened_file", "regular", "same_throughout", "stdin_bytes"]

_BLOCK = 1 << 20
_CHANGED = "was changed after it was opened first, so results may mix two versions of it; run again"


class File(ABC):
    """Bytes under a name.

    :param label: the name in ids and messages.
    :param name: the name whose ending says what is in it.
    """

    label: str
    name: str

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open it from its start; the stream can seek.

        :raises InputError: if that fails.
        """

    @abstractmethod
    def check(self) -> None:
        """See that the file is still the same.

        :raises InputError: if not.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what is held."""

    def identity(self) -> dict[str, Any]:
        """Give name, size and sha256 of the bytes.

        :raises InputError: if they cannot be read.
        """
        size, digest = 0, hashlib.sha256()
        with self.open() as stream:
            try:
                while block := stream.read(_BLOCK):
                    size += len(block)
                    digest.update(block)
            except OSError as error:
                raise InputError(f"reading failed: {error.strerror or error}") from error
        self.check()
        return {"name": self.label, "size": size, "sha256": digest.hexdigest()}


@final
class DiskFile(File):
    """A regular file. One that changes after it was named is refused."""

    def __init__(self, path: Path, label: str, found: os.stat_result | None = None) -> None:
        """Name the file; `found` is what it was when its name was looked up."""
        self.path = path
        self.label = label
        self.name = path.name
        self._found = _signature(found or os.stat(path))

    def open(self) -> BinaryIO:
        """Open the file."""
        stream = _opened(self.path)
        if _signature(os.fstat(stream.fileno())) != self._found:
            stream.close()
            raise InputError(_CHANGED)
        return stream

    def check(self) -> None:
        """See that size and time of change are what they were."""
        try:
            same = _signature(os.stat(self.path)) == self._found
        except OSError:
            same = False
        if not same:
            raise InputError(_CHANGED)

    def close(self) -> None:
        """Do nothing: nothing is held."""


@final
class SpooledFile(File):
    """A stream that can be read once, such as stdin or a named pipe.

    When it is opened first, all of it is copied to a temporary file without a name, so that it can be hashed and read
    again.
    """

    def __init__(self, label: str, path: Path | None = None) -> None:
        """Take `path`, or stdin if it is None."""
        self.label = label
        self.name = "" if path is None else path.name
        self._path = path
        self._copy: IO[bytes] | None = None

    def open(self) -> BinaryIO:
        """Open the copy."""
        if self._copy is None:
            self._copy = self._copied()
        return io.BufferedReader(_View(self._copy), _BLOCK)

    def check(self) -> None:
        """Do nothing: nobody else can write to the copy."""

    def close(self) -> None:
        """Remove the copy."""
        if self._copy is not None:
            self._copy.close()

    def _copied(self) -> IO[bytes]:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        try:
            if self._path is None:
                with same_throughout(stdin_bytes()) as stream:
                    shutil.copyfileobj(stream, copy, _BLOCK)
            else:
                with _opened(self._path) as stream:
                    shutil.copyfileobj(stream, copy, _BLOCK)
        except OSError as error:
            copy.close()
            reason = error.strerror or str(error)
            raise InputError(f"could not be copied to {tempfile.gettempdir()}: {reason}") from error
        return cast("IO[bytes]", copy)


@final
class _View(io.RawIOBase):
    """A place of its own in a file that others read, too."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place}.get(whence)
        if start is None:
            start = self._file.seek(0, os.SEEK_END)
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._place)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def opened_file(path: Path, label: str) -> File:
    """Name a file on the disk, a named pipe or a device.

    :raises InputError: if it is not there; it names the closest one that is.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{shorten(str(path))}: {_unreadable(path, error)}") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: is a folder; name a file in it")
    return DiskFile(path, label, found) if stat.S_ISREG(found.st_mode) else SpooledFile(label, path)


def stdin_bytes() -> BinaryIO:
    """Return stdin.

    :raises InputError: if it is closed.
    """
    if sys.stdin is None:
        raise InputError("stdin is closed; name a file")
    return sys.stdin.buffer


@contextmanager
def same_throughout(stream: BinaryIO, before: tuple[int, ...] | None = None) -> Iterator[BinaryIO]:
    """See, when the body has ended, that a regular file behind `stream` is what it was, as stdin may be one.

    :param before: what :func:`regular` returned earlier; None: what it returns now.
    :raises InputError: if it was changed.
    """
    before = before or regular(stream)
    yield stream
    if regular(stream) != before:
        raise InputError(_CHANGED)


def regular(stream: BinaryIO) -> tuple[int, ...] | None:
    """Return what tells one version of the regular file behind `stream` from another; None for anything else."""
    try:
        found = os.fstat(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None
    return _signature(found) if stat.S_ISREG(found.st_mode) else None


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        raise InputError(_unreadable(path, error)) from error


def _signature(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot be read: {reason}{_sibling(path)}"


def _sibling(path: Path) -> str:
    """Suggest the file of the same folder that was most likely meant."""
    try:
        near = closest(path.name, [item.name for item in path.parent.iterdir() if item.is_file()][:10_000])
    except (OSError, ValueError):
        return ""
    return f". Did you mean '{path.parent / near}'?" if near else ""
