"""Where files lie, behind one interface: local folders, object stores, and what plugins add.

A file has a key: the whole name by which a user names it, such as ``data/in.jsonl`` or ``s3://bucket/in.jsonl``. So a
key can be passed to another process, which finds the same file with credentials of its own.
"""

from __future__ import annotations

import errno
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, final

from pipeline_kit.errors import InputError, OutputError, UsageError

CHANGED = "was changed after it was opened first, so results may mix two versions of it; run again"

FileKind = Literal["file", "folder", "stream"]
"""``stream`` is what can be read once, such as a named pipe."""

Version = tuple[int | str, ...]
"""What differs whenever the content differs: device, inode, size and time of change; or an ETag."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What is known of a file without opening it.

    :param size: its bytes; 0 for anything but a file.
    :param modified: when it was written, in seconds since 1970 by the clock of the storage; 0 if it does not say.
    """

    kind: FileKind
    version: Version
    size: int = 0
    modified: float = field(default=0.0, compare=False)


class Conflict(OutputError):
    """Something else is where a file was to be written, or another writer has written it meanwhile."""


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
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        """Return all that lies right in `folder`, by its name there, sorted; of links what they are, not lead to.

        :param after: leave out names up to this one.
        :returns: nothing if there is no such folder.
        """

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[WholeFile]:
        """Write a file that is complete or not there; what was there before stays until then.

        :raises OutputError: if it cannot be written.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a whole file if there is none: of several writers one gets True, the others change nothing.

        :returns: False if the same bytes are there already.
        :raises Conflict: if other bytes are there; it names the SHA-256 of both.
        :raises OutputError: if it cannot be written.
        """

    @abstractmethod
    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        """Replace exactly this version of a file by `data`; None stands for no file.

        :returns: the new version.
        :raises Conflict: if there is another version.
        :raises OutputError: if it cannot be written.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a file, if it is there.

        :raises OutputError: if it cannot be removed.
        """

    def read(self, key: str, version: Version | None = None) -> bytes:
        """Return a whole file; errors are those of :meth:`open`."""
        with self.open(key, version) as stream:
            return stream.read()

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


def conflict(key: str, found: bytes | str, wanted: bytes) -> Conflict:
    """Return the error of a file that is there with other bytes; `found` may be what is known of them instead."""
    there = f"sha256 {sha256(found).hexdigest()}" if isinstance(found, bytes) else found
    return Conflict(f"{key}: another file is there: {there}; to be written: sha256 {sha256(wanted).hexdigest()}")


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

KINDS_OF_STORE = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "abfs": "az", "memory": "memory"}
"""The kind of object store by the scheme of a URL; two schemes of one kind lead to the same objects."""

SCHEMES: dict[str, Callable[[], Storage]] = {}
"""By the scheme of a URL, what returns its storage; it is called for every use, and keeps what it makes."""

UNKNOWN: list[Callable[[str], object]] = []
"""Called with a scheme that nothing here has, to load the installed plugin of that name."""


def scheme_of(name: str) -> str | None:
    """Return the scheme of a URL such as ``s3://bucket/key``; None for a path."""
    match = _SCHEME.match(name)
    return None if match is None else match[1].lower()


def refuse_secrets(url: str) -> None:
    """Refuse a URL with parts in which secrets are passed, since names are written to outputs and messages.

    :raises UsageError: if it has one; it does not repeat it.
    """
    scheme, _, rest = url.partition("://")
    azure = " (abfs://container/folder/, the account in AZURE_STORAGE_ACCOUNT_NAME)" if scheme == "abfs" else ""
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise UsageError(
            f"{scheme}://...: a URL with a user, a password, a ?query or a #fragment is not taken, since all would see "
            f"the secrets in it; credentials are read from the standard variables{azure}, and wildcards are * and [..]"
        )


def join_key(folder: str, *names: str) -> str:
    """Return the key of what has this name below `folder`."""
    return f"{folder.rstrip('/')}/{'/'.join(names)}"


def matches(names: Sequence[str], wild: Sequence[str]) -> bool:
    """Return whether a path matches a pattern, both by their names; as on a disk, wildcards match no hidden names."""
    if not wild or not names:
        return not wild and not names
    seen = not names[0].startswith(".")
    if wild[0] == "**":
        below = seen and (matches(names[1:], wild) or len(wild) == len(names) == 1)
        return below or (len(wild) > 1 and matches(names, wild[1:]))
    return (seen or wild[0].startswith(".")) and fnmatchcase(names[0], wild[0]) and matches(names[1:], wild[1:])


BLOCK = 4 << 20
"""Bytes that one request reads of a file that is elsewhere."""


@final
class RangedFile(io.RawIOBase):
    """A file that can seek, of which each read is a request for at most `BLOCK` bytes; to be buffered by as many."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        """Take what returns the bytes from a start to an end, and the size of the file."""
        self._fetch = fetch
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        count = max(0, min(len(buffer), BLOCK, self._size - self._place))
        if count:
            buffer[:count] = self._next(count)
        return count

    def readall(self) -> bytes:
        """Read in blocks: the one that is inherited asks for 8 KiB at a time."""
        blocks = []
        while self._place < self._size:
            blocks.append(self._next(min(BLOCK, self._size - self._place)))
        return b"".join(blocks)

    def _next(self, count: int) -> bytes:
        data = self._fetch(self._place, self._place + count)
        if len(data) != count:
            raise InputError(CHANGED)
        self._place += count
        return data
