"""Stores that fail: what is sent again, how a lost answer is settled, what is refused, and that no secret is seen."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fault_proxy import Choose, FaultProxy, fault_proxy, once, share_of_requests
from s3_server import CANARY, S3Server, s3_server, s3_variables

from pipeline_kit.errors import InputError, OutputError, UsageError
from pipeline_kit.files.storage import local, objects, retries
from pipeline_kit.files.storage.base import BLOCK, Conflict, RangedFile, Storage
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.storage.objects import forget_stores
from pipeline_kit.files.storage.probe import probe_create, probe_swap
from pipeline_kit.files.storage.retries import StorageConfig, use_storage


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    name = f"b{abs(hash(request.node.nodeid))}"
    server.bucket(name)
    return name


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.0005)
    monkeypatch.setattr(retries, "_given_up", set())
    yield
    use_storage(StorageConfig())


@pytest.fixture
def spoilt(server: S3Server) -> Iterator[Callable[[Choose], FaultProxy]]:
    """Put a proxy before the server, from the call on."""
    with s3_variables(server.address), fault_proxy(server.address, lambda *_: None) as proxy:

        def begin(choose: Choose) -> FaultProxy:
            proxy.choose = choose
            os.environ["AWS_ENDPOINT_URL"] = proxy.address
            forget_stores()
            return proxy

        yield begin


Spoilt = Callable[[Choose], FaultProxy]


def story(storage: Storage, folder: str) -> dict[str, bytes]:
    """Do of everything something, as a job and its readers do; return what is there in the end."""
    for number in range(12):
        storage.create(f"{folder}/part-{number:05}", b"%d," % number * 50)
        with suppress(FileNotFoundError):
            storage.read(f"{folder}/missing")
    version = storage.swap(f"{folder}/_lock", b"taken by me", None)
    for number in range(5):
        version = storage.swap(f"{folder}/_lock", b"renewed %d" % number, version)
    storage.delete(f"{folder}/_lock")
    with storage.writer(f"{folder}/sub/file") as file:
        file.write(bytes(range(256)) * 40)
    names = list(storage.files(folder))
    assert storage.list(f"{folder}/**/f*") == [f"{folder}/sub/file"]
    with storage.open(f"{folder}/sub/file") as stream:
        stream.seek(-1000, 2)
        assert stream.read() == (bytes(range(256)) * 40)[-1000:]
    return {name: storage.read(f"{folder}/{name}") for name in names if name != "sub"}


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_all_requests_may_fail(server: S3Server, bucket: str, spoilt: Spoilt, seed: int) -> None:
    proxy = spoilt(share_of_requests(0.2, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "PAGE", 3)
        found = story(storage_of("s3://"), f"s3://{bucket}/out")
    assert found == story(storage_of("memory://"), f"memory://{bucket}/out")
    assert sum(proxy.seen.values()) - proxy.seen["none"] > 5, f"hardly anything failed: {proxy.seen}"
    once_written = {name: n for name, n in server.versions(bucket).items() if name.startswith("out/part-")}
    assert once_written == {f"out/part-{number:05}": 1 for number in range(12)}


@pytest.mark.parametrize(
    ("fault", "made"),
    [("503", True), ("500", True), ("cut", True), ("lost", False), ("lost503", False), ("409", True), ("stuck", False)],
)
def test_every_fate_of_a_create_is_settled(
    server: S3Server, bucket: str, spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch, fault: str, made: bool
) -> None:
    monkeypatch.setattr(objects, "QUICK", 0.3 if fault == "stuck" else 30)
    proxy = spoilt(once(fault, "PUT"))
    key = f"s3://{bucket}/a"
    assert storage_of(key).create(key, b"mine") is made
    assert server.contents(bucket) == {"a": b"mine"}
    assert server.versions(bucket) == {"a": 1}
    proxy.choose = once(fault, "PUT")
    with pytest.raises(Conflict, match=r"sha256 .*; to be written: sha256 "):
        storage_of(key).create(key, b"other")
    assert server.versions(bucket) == {"a": 1}


@pytest.mark.parametrize("fault", ["503", "cut", "lost", "lost503", "409", "stuck"])
@pytest.mark.parametrize("first", [True, False])
def test_every_fate_of_a_swap_is_settled(
    server: S3Server, bucket: str, spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch, fault: str, first: bool
) -> None:
    monkeypatch.setattr(objects, "QUICK", 0.3 if fault == "stuck" else 30)
    proxy = spoilt(lambda *_: None)
    key = f"s3://{bucket}/a"
    storage = storage_of(key)
    version = None if first else storage.swap(key, b"before", None)
    proxy.choose = once(fault, "PUT")
    new = storage.swap(key, b"mine", version)
    assert (storage.read(key), storage.status(key).version) == (b"mine", new)
    assert server.versions(bucket) == {"a": 1 if first else 2}
    proxy.choose = once(fault, "PUT")
    with pytest.raises(Conflict, match="was changed by something else meanwhile"):
        storage.swap(key, b"late", version)
    assert server.contents(bucket) == {"a": b"mine"}


def test_a_page_that_fails_is_listed_again_and_folders_are_stepped_over(
    bucket: str, spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAGE", 4)
    proxy, folder = spoilt(lambda *_: None), f"s3://{bucket}/out"
    storage = storage_of(folder)
    dead = [*range(30), *(f"é{n}" for n in range(6))]  # letters behind ~ are not stepped over
    names = [*(f"_dead/{n}" for n in dead), *(f"part-{n}" for n in range(10, 19)), "z"]
    for name in names:
        storage.create(f"{folder}/{name}", b"")
    proxy.choose, proxy.requests[:] = once("torn", "GET", 2), []
    assert list(storage.files(folder)) == ["_dead", *(f"part-{n}" for n in range(10, 19)), "z"]
    assert len(proxy.requests) == 2 + 6, "a page of numbers, five of the rest, and two that were torn"
    assert list(storage.files(folder, after="part-17")) == ["part-18", "z"]


def test_a_file_that_changes_while_it_is_read_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_kit.files.storage.base.BLOCK", 1000)
    key = f"s3://{bucket}/a"
    storage = storage_of(key)
    storage.create(key, b"1" * 5000)
    with storage.open(key) as stream:
        raw: Any = stream.raw  # type: ignore[attr-defined]
        assert len(raw.read(2000)) == 1000
        storage.swap(key, b"2" * 5000, storage.status(key).version)
        with pytest.raises(InputError, match="was changed after it was opened first"):
            raw.read(1000)


def test_a_whole_file_is_read_in_few_requests() -> None:
    asked: list[int] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append(end - start)
        return bytes(end - start)

    size = 2 * BLOCK + 1
    assert len(io.BufferedReader(RangedFile(fetch, size), BLOCK).read()) == size
    assert asked == [BLOCK, BLOCK, 1]
    for read in (lambda file: file.readall(), lambda file: io.BufferedReader(file, 10).read(3)):
        with pytest.raises(InputError, match="was changed"):
            read(RangedFile(lambda start, end: bytes(end - start - 1), size))


@pytest.mark.parametrize("fault", ["503", "cut", "torn"])
def test_it_gives_up_and_says_so(bucket: str, spoilt: Spoilt, fault: str) -> None:
    key = f"s3://{bucket}/a"
    storage_of(key).create(key, b"1" * 100)
    proxy = spoilt(lambda *_: fault)
    use_storage(StorageConfig(retries=3))
    reason = {"503": "503 Service Unavailable, SpoiltByTest", "cut": "the connection was cut", "torn": "cut off"}[fault]
    with pytest.raises(OSError, match=f"reading failed 4 times in 0 s, at last: .*{reason}.*storage.retries") as caught:
        storage_of(key).read(key)
    assert caught.value.filename == key
    assert sum(proxy.seen.values()) == 4
    with pytest.raises(OSError, match="reading failed once, at last"):
        storage_of(key).read(key)
    proxy.choose = lambda *_: None
    assert storage_of(key).read(key) == b"1" * 100
    proxy.choose = lambda *_: "503"
    with pytest.raises(OutputError, match=f"^{key}: cannot be written: creating failed 4 times"):
        storage_of(key).create(key, b"2")
    proxy.choose = lambda *_: None
    storage_of(key).read(key)
    proxy.choose = lambda *_: "503"
    use_storage(StorageConfig(retry_seconds=0))
    with pytest.raises(OSError, match="reading failed once, at last"):
        storage_of(key).read(key)


def test_what_will_not_pass_is_not_tried_again(bucket: str, spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch) -> None:
    key = f"s3://{bucket}/a"
    proxy = spoilt(lambda *_: None)
    with pytest.raises(FileNotFoundError):
        storage_of(key).read(key)
    with pytest.raises(OutputError, match="cannot be written: there is no such bucket"):
        storage_of(key).create("s3://no-such-bucket/a", b"")
    with pytest.raises(OSError, match=r"reading was refused: .*empty path segment"):
        storage_of(key).read(f"s3://{bucket}/a//b")
    assert len(proxy.requests) == 2
    for status, error in ((403, PermissionError), (401, PermissionError), (400, OSError), (501, OSError)):
        proxy.choose, proxy.requests[:] = lambda *_, status=status: str(status), []
        with pytest.raises(error, match="AWS_SECRET_ACCESS_KEY" if error is PermissionError else f"refused: {status}"):
            storage_of(key).read(key)
        with pytest.raises(OutputError):
            storage_of(key).create(key, b"")
        with pytest.raises(error):
            storage_of(key).files(f"s3://{bucket}")
        assert len(proxy.requests) == 3, f"{status} was tried again"
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    forget_stores()
    with pytest.raises(OSError, match="AWS_ALLOW_HTTP=true"):
        storage_of(key).read(key)


def test_no_secret_is_seen(
    server: S3Server, bucket: str, spoilt: Spoilt, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in errors of any kind, nor in objects, logs or what is printed."""
    caplog.set_level(logging.DEBUG)
    key, said = f"s3://{bucket}/a", list[str]()
    proxy = spoilt(lambda *_: None)
    use_storage(StorageConfig(retries=1))
    storage = storage_of(key)
    storage.create(key, b"1")
    calls: list[Callable[[], object]] = [
        lambda: storage.read(key),
        lambda: storage.create(key, b"2"),
        lambda: storage.swap(key, b"2", None),
        lambda: storage.files(f"s3://{bucket}"),
        lambda: storage.delete(key),
        lambda: probe_create(storage, f"s3://{bucket}"),
    ]
    for fault in ("503", "cut", "torn", "403echo", "404", "400echo", None):
        proxy.choose = lambda *_, fault=fault: fault
        for call in calls:
            try:
                call()
            except Exception as error:
                said += [str(error), repr(error)]
    for url in (f"s3://me:{CANARY}@{bucket}/a", f"s3://{bucket}/a?sig={CANARY}", f"https://{CANARY}@h/a#{CANARY}"):
        with pytest.raises(UsageError) as caught:
            storage_of(url).open(url)
        said.append(str(caught.value))
    assert len(said) > 30
    everything = "\n".join([*said, caplog.text, *capfd.readouterr(), repr(server.contents(bucket)), repr(storage)])
    assert CANARY not in everything


def test_a_store_that_ignores_conditions_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"s3://{bucket}/out"
    assert abs(probe_create(storage_of(folder), folder)) < 5
    probe_swap(storage_of(folder), folder)
    assert storage_of(folder).files(folder) == {}
    put = objects.ObjectStorage._put
    monkeypatch.setattr(
        objects.ObjectStorage, "_put", lambda self, place, data, mode: put(self, place, data, "overwrite")
    )
    with pytest.raises(OutputError, match="writes over an object that it was asked to write only if there is none"):
        probe_create(storage_of(folder), folder)
    with pytest.raises(OutputError, match="replaces another version of an object than it was asked to"):
        probe_swap(storage_of(folder), folder)
    assert storage_of(folder).files(folder) == {}


def test_schemes_are_found_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_of("memory://a/b") is storage_of("memory://c/d")
    assert storage_of("a:b") is storage_of("/tmp")
    cases = {
        "s33://b/a": r"s33://: no storage has this scheme. Did you mean 's3'\?",
        "qqqq://b/a": "no storage has this scheme. There are s3://, .*plugins may add more",
        "s3:///a": r"such a URL begins with the name of a bucket: s3://bucket/folder/",
        "s3://*/a": r"such a URL begins with the name of a bucket",
        "az://c/a": "az://c: cannot be used: .*set AZURE_STORAGE_ACCOUNT_NAME",
    }
    for name, message in cases.items():
        with pytest.raises(UsageError, match=message):
            storage_of(name).open(name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    local._built_in.cache_clear()
    with pytest.raises(UsageError, match=r"s3:// needs obstore: pip install 'pipeline-kit\[storage\]'"):
        storage_of("s3://b/a")


def test_a_disk_without_room_for_a_copy_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").touch()  # what is empty is copied
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    storage, key = storage_of("file://"), f"file://{tmp_path}/a.txt"
    monkeypatch.setattr(storage, "_system", Mock(wraps=storage._system, get_file=full))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"no room for a copy in .* set TMPDIR"):
        storage.open(key)
    assert full.call_count == 1


def test_other_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"0123456789")
    (tmp_path / ".hidden.txt").touch()
    folder = f"file://{tmp_path}"
    storage, key = storage_of(folder), f"{folder}/a.txt"
    seen = storage.status(key)
    with storage.open(key, seen.version) as stream:
        stream.seek(3)
        assert stream.read(4) == b"3456"
    assert (seen.size, storage.kind(folder), storage.kind(f"{folder}/none")) == (10, "folder", None)
    assert storage.list(f"{folder}/*.txt") == [key]
    assert [(name, found.kind) for name, found in storage.files(folder, after=".z").items()] == [
        ("a.txt", "file"),
        ("sub", "folder"),
    ]
    (tmp_path / "a.txt").write_bytes(b"abc")
    with pytest.raises(InputError, match="was changed"):
        storage.open(key, seen.version)
    with pytest.raises(FileNotFoundError):
        storage.open(f"{folder}/none")
    for write in (lambda: storage.create(key, b""), lambda: storage.writer(key), lambda: storage.delete(key)):
        with pytest.raises(OutputError, match=r"file:// is read, not written; name a path .* s3://"):
            write()
