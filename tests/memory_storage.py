"""A storage in memory, as a plugin may bring one, for URLs that begin with ram://."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import InputError
from pipeline_kit.files.storage.base import (
    CHANGED,
    Conflict,
    FileStatus,
    Storage,
    Version,
    WholeFile,
    conflict,
    matches,
)


class MemoryStorage(Storage):
    """Files in memory, as a store of objects has them: no folders but in names, a version for every content."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.lock = Lock()

    def status(self, key: str) -> FileStatus:
        if key in self.data:
            return FileStatus("file", (str(hash(self.data[key])),), len(self.data[key]))
        if any(name.startswith(f"{key}/") for name in self.data):
            return FileStatus("folder", ())
        raise FileNotFoundError(2, "No such object", key)

    def open(self, key: str, version: Version | None = None) -> io.BytesIO:
        if version not in (None, self.status(key).version):
            raise InputError(CHANGED)
        return io.BytesIO(self.data[key])

    def list(self, pattern: str) -> list[str]:
        names, found = pattern.split("/"), set()
        for key in self.data:
            parts = key.split("/")
            found |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1) if matches(parts[:n], names)}
        return sorted(found)

    @contextmanager
    def writer(self, key: str) -> Iterator[WholeFile]:
        parts: list[bytes] = []

        class Written:
            def write(self, data: str | bytes | bytearray | memoryview) -> None:
                parts.append(data.encode() if isinstance(data, str) else bytes(data))

        yield Written()
        self.data[key] = b"".join(parts)

    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        prefix = f"{folder.rstrip('/')}/"
        names = {name[len(prefix) :].partition("/")[0] for name in self.data if name.startswith(prefix)}
        return {name: self.status(prefix + name) for name in sorted(names) if name > after}

    def create(self, key: str, data: bytes) -> bool:
        with self.lock:
            new = key not in self.data
            if self.data.setdefault(key, data) != data:
                raise conflict(key, self.data[key], data)
            return new

    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        with self.lock:
            if (self.status(key).version if key in self.data else None) != version:
                raise Conflict(key)
            self.data[key] = data
            return self.status(key).version

    def delete(self, key: str) -> None:
        self.data.pop(key, None)


def register(registry: Registry) -> None:
    registry.storage("ram", f"{__name__}:MemoryStorage", summary="in memory, for tests")
