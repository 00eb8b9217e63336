"""What lies elsewhere and is only read, such as ``hf://`` and ``https://``, through the libraries that fsspec knows."""

from __future__ import annotations

import io
import tempfile
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NoReturn, TypeVar, cast, final

from pipeline_kit.errors import InputError, OutputError, UsageError, for_message
from pipeline_kit.files.storage.base import (
    BLOCK,
    CHANGED,
    FileStatus,
    RangedFile,
    Storage,
    Version,
    WholeFile,
    matches,
    refuse_secrets,
)
from pipeline_kit.files.storage.retries import retried

T = TypeVar("T")

_VERSION_FIELDS = ("ETag", "etag", "blob_id", "checksum", "md5", "Content-MD5", "Last-Modified", "mtime", "created")
"""What file systems say of a file that differs when its content does."""


@final
class FsspecStorage(Storage):
    """Files of a file system that fsspec knows; they are read, not written."""

    def __init__(self, scheme: str, writable: str) -> None:
        """Take URLs of `scheme`.

        :param writable: the schemes that can be written, for messages.
        :raises UsageError: if its library is not installed.
        """
        import fsspec
        from fsspec.registry import known_implementations

        try:
            self._system: Any = fsspec.filesystem(scheme)
        except ImportError as error:
            needed = known_implementations[scheme].get("err", str(error))
            raise UsageError(f"{scheme}:// needs a library that is not installed: {for_message(needed)}") from error
        except Exception as error:
            raise UsageError(f"{scheme}://: cannot be used: {for_message(str(error))}") from error
        self._scheme = scheme
        self._writable = writable

    def status(self, key: str) -> FileStatus:
        """Ask the file system; what it remembers of earlier answers is forgotten."""
        return _status(self._info(key))

    def open(self, key: str, version: Version | None = None) -> BinaryIO:
        """Read blocks as they are asked for; what cannot be read in blocks is copied to a temporary file."""
        info = self._info(key)
        if version not in (None, _status(info).version):
            raise InputError(CHANGED)
        if info["type"] == "directory":
            raise IsADirectoryError(21, "Is a directory", key)
        if self._has_ranges(key, info):

            def fetch(start: int, end: int) -> bytes:
                return bytes(self._ask(key, "reading", self._system.cat_file, key, start=start, end=end))

            return cast("BinaryIO", io.BufferedReader(RangedFile(fetch, info["size"]), BLOCK))
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it

        def download() -> None:
            copy.seek(0)
            copy.truncate()
            self._system.get_file(key, copy)

        try:
            self._ask(key, "reading", download)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return cast("BinaryIO", copy)

    def list(self, pattern: str) -> list[str]:
        """Look for the files."""
        refuse_secrets(pattern)
        self._system.invalidate_cache()
        names = pattern.split("/")
        found = [self._url(name) for name in self._ask(pattern, "listing", self._system.glob, pattern)]
        return sorted(key for key in found if matches(key.split("/"), names))

    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        """Look into the folder."""
        refuse_secrets(folder)
        try:
            listed = self._ask(folder, "listing", self._system.ls, folder, detail=True)
        except FileNotFoundError:
            return {}
        found = {info["name"].rstrip("/").rpartition("/")[2]: _status(info) for info in listed}
        return {name: found[name] for name in sorted(found) if name > after}

    def writer(self, key: str) -> AbstractContextManager[WholeFile]:
        """Refuse it."""
        self._refuse(key)

    def create(self, key: str, data: bytes) -> bool:
        """Refuse it."""
        self._refuse(key)

    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        """Refuse it."""
        self._refuse(key)

    def delete(self, key: str) -> None:
        """Refuse it."""
        self._refuse(key)

    def _has_ranges(self, key: str, info: dict[str, Any]) -> bool:
        """Return whether parts of a file can be read; some web servers send all of it all the same."""
        if not info.get("size") or not info.get("partial", True):
            return False
        if self._scheme not in ("http", "https"):
            return True
        return len(self._ask(key, "reading", self._system.cat_file, key, start=0, end=1)) == 1

    def _refuse(self, key: str) -> NoReturn:
        raise OutputError(
            f"{for_message(key)}: {self._scheme}:// is read, not written; name a path of this machine, or one that "
            f"begins with {self._writable}"
        )

    def _info(self, key: str) -> dict[str, Any]:
        refuse_secrets(key)
        self._system.invalidate_cache()
        found: dict[str, Any] = self._ask(key, "looking it up", self._system.info, key)
        return found

    def _ask(self, key: str, doing: str, call: Any, *args: Any, **options: Any) -> Any:
        return retried(key, doing, lambda: call(*args, **options), f"the credentials for {self._scheme}://")

    def _url(self, name: str) -> str:
        return name if "://" in name else f"{self._scheme}://{name}"


def _status(info: dict[str, Any]) -> FileStatus:
    if info["type"] == "directory":
        return FileStatus("folder", ())
    size = info.get("size")
    return FileStatus("file", (str(size), *(str(info[name]) for name in _VERSION_FIELDS if info.get(name))), size or 0)
