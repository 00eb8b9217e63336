"""Where files lie, behind one interface: local folders, and what a plugin or a later version adds, such as S3.

A file has a key: the whole name by which a user names it, such as ``data/in.jsonl``. So a key can be passed to another
process, which finds the same file with credentials of its own.
"""

from __future__ import annotations

import glob
import os
import stat
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, final

from pipeline_kit.errors import InputError
from pipeline_kit.files.atomic import atomic_writer, create_file

CHANGED = "was changed after it was opened first, so results may mix two versions of it; run again"

FileKind = Literal["file", "folder", "stream"]
"""``stream`` is what can be read once, such as a named pipe."""

Version = tuple[int | str, ...]
"""What differs whenever the content differs: device, inode, size and time of change; or an ETag."""


@dataclass(frozen=True)
class FileStatus:
    """What is known of a file without opening it."""

    kind: FileKind
    version: Version


class WholeFile(Protocol):
    """The open end of a file that appears when it is complete."""

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Add `data`; text becomes UTF-8."""


class Storage(ABC):
    """A place of files. Reading raises OSError as Python's own functions do, writing OutputError."""

    @abstractmethod
    def status(self, key: str) -> FileStatus:
        """Look a file up, a link as what it leads to.

        :raises OSError: if it is not there, or may not be read.
        """

    @abstractmethod
    def open(self, key: str, version: Version | None = None) -> BinaryIO:
        """Open a file from its start; the stream can seek, unless it is one that is read once.

        :raises InputError: if it is another version than `version`.
        :raises OSError: if it cannot be opened.
        """

    @abstractmethod
    def list(self, pattern: str) -> list[str]:
        """Return the keys of files and folders that match, sorted; ``**`` goes through folders of any depth."""

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[WholeFile]:
        """Write a file that is complete or not there; what was there before stays until then.

        :raises OutputError: if it cannot be written.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a whole file only if there is none: of several writers one gets True, the others change nothing.

        :raises OutputError: if it cannot be written.
        """

    def kind(self, key: str) -> FileKind | None:
        """Return what has this name; None if nothing is found."""
        try:
            return self.status(key).kind
        except (OSError, ValueError):
            return None

    def path(self, key: str) -> Path | None:
        """Return where the file is on this machine, for libraries that map it; None if it is elsewhere."""
        del key
        return None


@final
class LocalStorage(Storage):
    """Files of this machine and what is mounted on it; keys are paths."""

    def status(self, key: str) -> FileStatus:
        """Look at the file."""
        found = os.stat(key)
        kind: FileKind = "folder" if stat.S_ISDIR(found.st_mode) else "stream"
        return FileStatus("file" if stat.S_ISREG(found.st_mode) else kind, _version(found))

    def open(self, key: str, version: Version | None = None) -> BinaryIO:
        """Open the file, and look at the one that was opened: its name may mean another one by now."""
        stream = open(key, "rb")  # noqa: SIM115 - the caller closes it
        if version is not None and _version(os.fstat(stream.fileno())) != version:
            stream.close()
            raise InputError(CHANGED)
        return stream

    def list(self, pattern: str) -> list[str]:
        """Look for the files."""
        return sorted(glob.iglob(pattern, recursive=True))

    def writer(self, key: str) -> AbstractContextManager[WholeFile]:
        """Write to a temporary file, and rename it."""
        return atomic_writer(key)

    def create(self, key: str, data: bytes) -> bool:
        """Write to a temporary file, and link it."""
        return create_file(key, data)

    def path(self, key: str) -> Path:
        """Return the path."""
        return Path(key)


def stream_version(stream: BinaryIO) -> Version | None:
    """Return the version of the regular file behind an open stream; None for anything else."""
    try:
        found = os.fstat(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None
    return _version(found) if stat.S_ISREG(found.st_mode) else None


def storage_of(name: str) -> Storage:
    """Return the storage in which a file of this name lies: for now, always this machine's folders."""
    del name
    return _LOCAL


_LOCAL = LocalStorage()


def _version(found: os.stat_result) -> Version:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
