"""Every storage passes the suite, and none that breaks a promise does."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Event
from urllib.parse import quote

import pytest
from fake_plugins import ROOT
from memory_storage import MemoryStorage
from s3_server import s3_server

from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.files.storage.base import BLOCK, Conflict, FileStatus, Storage, Version, WholeFile
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.testing import StorageSuite

_numbers = count()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as server:
        yield server.bucket("suite")


class TestLocal(StorageSuite):
    swaps_alone = False

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def fresh(self) -> tuple[Storage, str]:
        folder = self.path / "in"
        folder.mkdir()
        return storage_of(str(folder)), str(folder)

    def prepare(self, key: str) -> None:
        Path(key).parent.mkdir(parents=True, exist_ok=True)


class TestMemory(StorageSuite):
    def fresh(self) -> tuple[Storage, str]:
        folder = f"memory://suite/{next(_numbers)}"
        return storage_of(folder), folder


class TestS3(StorageSuite):
    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: str) -> None:
        self.bucket = bucket

    def fresh(self) -> tuple[Storage, str]:
        folder = f"{self.bucket}/suite/{next(_numbers)}"
        return storage_of(folder), folder


class TestPlugin(StorageSuite):
    def fresh(self) -> tuple[Storage, str]:
        load_registry([str(ROOT / "tests" / "memory_storage.py")])
        folder = f"ram://suite/{next(_numbers)}"
        return storage_of(folder), folder


class Broken(MemoryStorage):
    """A storage that breaks one promise."""


class CreateOverwrites(Broken):
    def create(self, key: str, data: bytes) -> bool:
        new = key not in self.data
        self.data[key] = data
        return new


class CreateCallsAnythingTheSame(Broken):
    def create(self, key: str, data: bytes) -> bool:
        return self.data.setdefault(key, data) is data


class CreateNamesNoHashes(Broken):
    def create(self, key: str, data: bytes) -> bool:
        try:
            return super().create(key, data)
        except Conflict:
            raise Conflict(f"{key}: is there") from None


class CreateLooksAndThenWrites(Broken):
    def create(self, key: str, data: bytes) -> bool:
        if key in self.data:
            return super().create(key, data)
        self.meeting.wait(0.05)
        self.data[key] = data
        return True

    @cached_property
    def meeting(self) -> Event:
        return Event()


class SwapIgnoresTheVersion(Broken):
    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        self.data[key] = data
        return self.status(key).version


class SwapMakesWhatIsNotThere(Broken):
    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        return super().swap(key, data, version if key in self.data else None)


class SwapReturnsTheOldVersion(Broken):
    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        return version or super().swap(key, data, version)


class VersionIsTheSize(Broken):
    def status(self, key: str) -> FileStatus:
        found = super().status(key)
        return FileStatus(found.kind, (found.size,), found.size)


class SizesAreMissing(Broken):
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        return {name: FileStatus(f.kind, f.version) for name, f in super().files(folder, after).items()}


class OpenIgnoresTheVersion(Broken):
    def open(self, key: str, version: Version | None = None) -> io.BytesIO:
        return super().open(key)


class RangesAreOffByOne(Broken):
    def open(self, key: str, version: Version | None = None) -> io.BytesIO:
        stream = super().open(key, version)
        seek = stream.seek
        stream.seek = lambda offset, whence=0: seek(offset + (offset == BLOCK), whence)  # type: ignore[method-assign]
        return stream


class StreamsAreShared(Broken):
    def open(self, key: str, version: Version | None = None) -> io.BytesIO:
        if version is None and key in self.shared:
            return self.shared[key]
        stream = super().open(key, version)
        stream.close = lambda: None  # type: ignore[method-assign]
        return self.shared.setdefault(key, stream)

    @cached_property
    def shared(self) -> dict[str, io.BytesIO]:
        return {}


class ReadsOldThings(Broken):
    def read(self, key: str, version: Version | None = None) -> bytes:
        return self.known.setdefault(key, super().read(key, version))

    @cached_property
    def known(self) -> dict[str, bytes]:
        return {}


class HalfFilesAreSeen(Broken):
    @contextmanager
    def writer(self, key: str) -> Iterator[WholeFile]:
        self.data[key] = b""
        with super().writer(key) as file:
            yield file


class FailedFilesAreWritten(Broken):
    @contextmanager
    def writer(self, key: str) -> Iterator[WholeFile]:
        kept: list[BaseException] = []
        with super().writer(key) as file:
            try:
                yield file
            except BaseException as error:
                kept.append(error)
        if kept:
            raise kept[0]


class ListIsNotSorted(Broken):
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        return dict(reversed(super().files(folder, after).items()))


class ListIncludesTheStart(Broken):
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        return {name: found for name, found in super().files(folder).items() if name >= after}


class ListGoesDeeper(Broken):
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        below = sorted(name.removeprefix(f"{folder}/") for name in self.data if name.startswith(f"{folder}/"))
        return {name: self.status(f"{folder}/{name}") for name in below if name > after}


class ListKnowsNoFolders(Broken):
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        return {name: found for name, found in super().files(folder, after).items() if found.kind == "file"}


class StarsCrossFolders(Broken):
    def list(self, pattern: str) -> list[str]:
        return sorted(name for name in self.data if fnmatchcase(name, pattern))


class MissingIsAKeyError(Broken):
    def status(self, key: str) -> FileStatus:
        try:
            return super().status(key)
        except FileNotFoundError:
            raise KeyError(key) from None


class DeletingTwiceFails(Broken):
    def delete(self, key: str) -> None:
        del self.data[key]


class NamesAreQuoted(Broken):
    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        return {quote(name): found for name, found in super().files(folder, after).items()}


CHECKS = sorted(name for name in dir(StorageSuite) if name.startswith("test_"))


@pytest.mark.parametrize("broken", [MemoryStorage, *Broken.__subclasses__()], ids=lambda broken: broken.__name__)
def test_the_suite_fails_what_breaks_a_promise_and_nothing_else(broken: type[MemoryStorage]) -> None:
    class Suite(StorageSuite):
        def fresh(self) -> tuple[Storage, str]:
            return broken(), "ram://suite/in"

    failed = []
    for name in CHECKS:
        try:
            getattr(Suite(), name)()
        except Exception:
            failed.append(name)
    assert (failed != []) is (broken is not MemoryStorage), failed
