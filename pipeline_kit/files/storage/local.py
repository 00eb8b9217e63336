"""Folders of this machine, and from a name to the storage it lies in."""

from __future__ import annotations

import glob
import os
import stat
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, final

from pipeline_kit.errors import InputError, OutputError, UsageError, did_you_mean, for_message
from pipeline_kit.files.atomic import atomic_writer, create_file
from pipeline_kit.files.storage.base import (
    CHANGED,
    KINDS_OF_STORE,
    SCHEMES,
    UNKNOWN,
    Conflict,
    FileKind,
    FileStatus,
    Storage,
    Version,
    WholeFile,
    conflict,
    scheme_of,
)
from pipeline_kit.files.storage.fsspec import FsspecStorage
from pipeline_kit.files.storage.objects import ObjectStorage


@final
class LocalStorage(Storage):
    """Files of this machine and what is mounted on it; keys are paths."""

    def status(self, key: str) -> FileStatus:
        """Look at the file."""
        return _status(os.stat(key))

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

    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        """Look into the folder."""
        found: dict[str, FileStatus] = {}
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                with suppress(FileNotFoundError):
                    if entry.name > after:
                        found[entry.name] = _status(entry.stat(follow_symlinks=False))
        return found

    def writer(self, key: str) -> AbstractContextManager[WholeFile]:
        """Write to a temporary file, and rename it."""
        return atomic_writer(key)

    def create(self, key: str, data: bytes) -> bool:
        """Write to a temporary file, and link it."""
        if create_file(key, data):
            return True
        try:
            if not stat.S_ISREG(os.lstat(key).st_mode):
                raise conflict(key, "a link, a folder, a pipe or a device", data)
            found = self.read(key)
        except OSError as error:
            raise OutputError(f"{key}: cannot be read: {error.strerror or error}") from error
        if found != data:
            raise conflict(key, found, data)
        return False

    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        """Compare and rename; the caller holds a lock, since no system call does both."""
        try:
            found: Version | None = self.status(key).version
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise OutputError(f"{key}: cannot be read: {error.strerror or error}") from error
        if found != version:
            raise Conflict(f"{key}: was changed by something else meanwhile")
        with self.writer(key) as file:
            file.write(data)
        return self.status(key).version

    def delete(self, key: str) -> None:
        """Remove the file."""
        try:
            os.unlink(key)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{key}: cannot be removed: {error.strerror or error}") from error

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
    """Return the storage in which a file of this name lies: by the scheme of a URL, else this machine's folders.

    :raises UsageError: if nothing is known by this scheme, or its library is not installed.
    """
    scheme = scheme_of(name)
    if scheme is None:
        return _LOCAL
    for load in () if scheme in SCHEMES or scheme in KINDS_OF_STORE else UNKNOWN:
        load(scheme)
    return SCHEMES[scheme]() if scheme in SCHEMES else _built_in(scheme)


_LOCAL = LocalStorage()


@cache
def _built_in(scheme: str) -> Storage:
    if scheme in KINDS_OF_STORE:
        return ObjectStorage(scheme)
    writable = tuple(f"{known}://" for known in (*KINDS_OF_STORE, *SCHEMES))
    try:
        from fsspec.registry import known_implementations
    except ImportError:
        known_implementations = {}
    if scheme in known_implementations:
        return FsspecStorage(scheme, ", ".join(writable))
    known = (*KINDS_OF_STORE, *SCHEMES, *known_implementations)
    raise UsageError(
        f"{for_message(scheme)}://: no storage has this scheme.{did_you_mean(scheme, known)} There are "
        f"{', '.join(writable)}, to read from also https://, hf:// and others that fsspec knows; plugins may add more"
    )


def _version(found: os.stat_result) -> Version:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _status(found: os.stat_result) -> FileStatus:
    kind: FileKind = "folder" if stat.S_ISDIR(found.st_mode) else "stream"
    if stat.S_ISREG(found.st_mode):
        return FileStatus("file", _version(found), found.st_size, found.st_mtime)
    return FileStatus(kind, _version(found))
