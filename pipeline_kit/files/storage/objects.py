"""Object stores: S3 and what speaks its language, Google Cloud Storage, Azure, and memory, through obstore."""

from __future__ import annotations

import errno
import glob
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast, final

from pipeline_kit.errors import InputError, OutputError, UsageError, for_message
from pipeline_kit.files.storage.base import (
    BLOCK,
    CHANGED,
    KINDS_OF_STORE,
    Conflict,
    FileStatus,
    RangedFile,
    Storage,
    Version,
    WholeFile,
    conflict,
    join_key,
    matches,
    refuse_secrets,
)
from pipeline_kit.files.storage.retries import Unsettled, patience, reason_of, retried

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta, PutMode, PutResult
    from obstore.store import ObjectStore

PAGE = 1000
"""Names that one request lists."""
LARGE = 16 << 20
"""Bytes above which a request may take `SLOW` seconds, and a file is written in several requests."""
QUICK, SLOW = 30, 600
"""Seconds in which a request must be answered."""

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
    "memory": "no variables",
}
"""The variables that obstore reads, by the kind of store."""

T = TypeVar("T")


class _Place(NamedTuple):
    key: str
    bucket: str
    path: str
    """The key in the bucket; ``""`` for all of it."""


@final
class ObjectStorage(Storage):
    """Objects in buckets; keys are URLs such as ``s3://bucket/folder/a.jsonl``. A folder is where keys lie below."""

    def __init__(self, scheme: str) -> None:
        """Take URLs of `scheme`, a key of `KINDS_OF_STORE`.

        :raises UsageError: if obstore is not installed.
        """
        try:
            import obstore
        except ImportError as error:
            raise UsageError(f"{scheme}:// needs obstore: pip install 'pipeline-kit[storage]'") from error
        self._api = obstore
        self._scheme = scheme
        self._kind = KINDS_OF_STORE[scheme]

    def status(self, key: str) -> FileStatus:
        """Ask for the object; else look whether keys lie below."""
        place = self._place(key)
        if place.path and not key.endswith("/"):
            try:
                return _status(
                    self._ask(place, "looking it up", lambda: self._api.head(self._store(place), place.path))
                )
            except FileNotFoundError:
                if not self._page(place, place.path, None, 1):
                    raise
        elif not self._page(place, place.path, None, 1) and place.path:
            raise FileNotFoundError(errno.ENOENT, "No such object", key)
        return FileStatus("folder", ())

    def open(self, key: str, version: Version | None = None) -> BinaryIO:
        """Read blocks as they are asked for; that each is of one version is checked."""
        place = self._file(key)
        meta = self._ask(place, "looking it up", lambda: self._api.head(self._store(place), place.path))
        seen = _version(meta)
        if version not in (None, seen):
            raise InputError(CHANGED)

        def fetch(start: int, end: int) -> bytes:
            return self._ask(place, "reading", lambda: bytes(self._get(place, seen, 0, (start, end)).bytes()))

        return cast("BinaryIO", io.BufferedReader(RangedFile(fetch, meta["size"]), BLOCK))

    def read(self, key: str, version: Version | None = None) -> bytes:
        """Read a small object in one request."""
        place = self._file(key)

        def send() -> bytes | None:
            answer = self._get(place, version, 0)
            return None if answer.meta["size"] > LARGE else bytes(answer.bytes())

        data = self._ask(place, "reading", send)
        return super().read(key, version) if data is None else data

    def list(self, pattern: str) -> list[str]:
        """List by the longest prefix of whole names without wildcards; as on a disk, hidden names are left out."""
        place = self._place(pattern)
        names = place.path.split("/")
        count = next((n for n, name in enumerate(names) if glob.has_magic(name)), None)
        if count is None:
            return [pattern] if self.kind(pattern) else []
        folder, wild = "/".join(names[:count]), names[count:]
        top = "/".join([f"{self._scheme}://{place.bucket}", *names[:count]])
        below = self._folder(place, folder) if len(wild) == 1 and wild != ["**"] else self._tree(place, folder)
        return sorted(join_key(top, name) for name in below if matches(name.split("/"), wild))

    def files(self, folder: str, after: str = "") -> dict[str, FileStatus]:
        """List the folder, stepping over what lies deeper."""
        place = self._place(folder)
        return self._folder(place, place.path, after)

    @contextmanager
    def writer(self, key: str) -> Iterator[WholeFile]:
        """Collect it in memory or in a temporary file, and send it when the body ends."""
        place = self._target(key)
        with tempfile.SpooledTemporaryFile(LARGE) as spool:
            yield _Spooled(key, cast("IO[bytes]", spool))
            size = spool.tell()

            def send() -> None:
                spool.seek(0)
                many = size > LARGE
                data: Any = spool if many else spool.read()
                self._api.put(self._store(place, size), place.path, data, use_multipart=many, chunk_size=LARGE)

            self._change(place, "writing", send)

    def create(self, key: str, data: bytes) -> bool:
        """Send it on the condition that nothing is there; what a refusal means is settled by looking.

        The library reports three cases alike: an object of another writer, an earlier request of our own whose answer
        was lost, and a conflict of two writers (409) after which nothing is there.
        """
        place = self._target(key)

        def send() -> bool:
            try:
                self._put(place, data, "create")
            except self._api.exceptions.AlreadyExistsError as error:
                found = self._look(place)
                if found is None:
                    raise Unsettled(str(error)) from error
                if found[0] != data:
                    raise conflict(key, found[0], data) from error
                return False
            return True

        return self._change(place, "creating", send)

    def swap(self, key: str, data: bytes, version: Version | None) -> Version:
        """Send it on the condition that the version is there; after a lost answer, look whether it is ours.

        So two writers must not send the same bytes: each puts a random token into its own.
        """
        place, sent = self._target(key), 0

        def send() -> Version:
            nonlocal sent
            sent += 1
            try:
                return _version(self._put(place, data, self._condition(place, version)))
            except (self._api.exceptions.AlreadyExistsError, self._api.exceptions.PreconditionError) as error:
                found = self._look(place)
                if sent > 1 and found is not None and found[0] == data:
                    return found[1]
                if (None if found is None else found[1]) == version:
                    raise Unsettled(str(error)) from error
                raise Conflict(f"{key}: was changed by something else meanwhile") from error

        return self._change(place, "replacing", send)

    def delete(self, key: str) -> None:
        """Remove the object."""
        place = self._target(key)

        def send() -> None:
            try:
                self._api.delete(self._store(place), place.path)
            except FileNotFoundError:
                return

        self._change(place, "removing", send)

    def _place(self, key: str) -> _Place:
        refuse_secrets(key)
        bucket, _, path = key.partition("://")[2].partition("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
            begin = f"{self._scheme}://bucket/folder/"
            raise UsageError(f"{for_message(key)}: such a URL begins with the name of a bucket: {begin}")
        return _Place(key, bucket, path.rstrip("/"))

    def _file(self, key: str) -> _Place:
        place = self._place(key)
        if not place.path:
            raise IsADirectoryError(errno.EISDIR, "Is a directory", key)
        return place

    def _target(self, key: str) -> _Place:
        place = self._place(key)
        if not place.path or key.endswith("/"):
            raise OutputError(f"{key}: is a folder; name a file in it")
        return place

    def _ask(self, place: _Place, doing: str, send: Callable[[], T]) -> T:
        return retried(place.key, doing, send, CREDENTIALS[self._kind])

    def _change(self, place: _Place, doing: str, send: Callable[[], T]) -> T:
        try:
            return self._ask(place, doing, send)
        except OSError as error:
            raise OutputError(f"{place.key}: cannot be written: {error.strerror or error}") from error

    def _store(self, place: _Place, size: int = 0) -> ObjectStore:
        return _store_of(self._kind, place.bucket, slow=size > LARGE)

    def _put(self, place: _Place, data: bytes, mode: PutMode) -> PutResult:
        return self._api.put(self._store(place, len(data)), place.path, data, mode=mode)

    def _get(
        self, place: _Place, version: Version | None, size: int, block: tuple[int, int] | None = None
    ) -> GetResult:
        """Begin to read an object.

        :param size: how much is to be read, which sets how long it may take.
        :raises InputError: if it is another version.
        """
        options = cast("GetOptions", {} if block is None else {"range": block})
        answer = self._api.get(self._store(place, size), place.path, options=options)
        if version not in (None, _version(answer.meta)):
            raise InputError(CHANGED)
        return answer

    def _look(self, place: _Place) -> tuple[bytes, Version] | None:
        """Return what is there after a refusal; these requests have tries of their own."""

        def send() -> tuple[bytes, Version]:
            meta = self._api.head(self._store(place), place.path)
            return bytes(self._get(place, _version(meta), meta["size"]).bytes()), _version(meta)

        try:
            return self._ask(place, "looking", send)
        except FileNotFoundError:
            return None
        except InputError as error:
            raise Unsettled("it changed meanwhile") from error

    def _condition(self, place: _Place, version: Version | None) -> PutMode:
        """Return the condition that `version` is there; Google's store takes its own numbers of versions."""
        if version is None:
            return "create"
        condition: dict[str, str] = {"e_tag": f'"{version[0]}"'}
        if self._kind == "gs":
            try:
                meta = self._api.head(self._store(place), place.path)
            except FileNotFoundError as error:
                raise self._api.exceptions.PreconditionError(str(error)) from error
            if _version(meta) != version:
                raise self._api.exceptions.PreconditionError("another version is there")
            condition["version"] = str(meta["version"])
        return cast("PutMode", condition)

    def _folder(self, place: _Place, folder: str, after: str = "") -> dict[str, FileStatus]:
        """Return what lies right in a folder; what lies deeper makes a folder, and is stepped over."""
        found: dict[str, FileStatus] = {}
        for path, meta in self._below(place, folder, after, deep=False):
            name, deeper, _ = path.partition("/")
            if not deeper:
                found[name] = _status(meta)
            elif name not in found or not found[name].size:  # consoles mark a folder by an empty object
                found[name] = FileStatus("folder", ())
        return {name: found[name] for name in sorted(found) if name > after}

    def _tree(self, place: _Place, folder: str) -> set[str]:
        """Return the paths of all files and folders below a folder."""
        found: set[str] = set()
        for path, _ in self._below(place, folder, "", deep=True):
            while path and path not in found:
                found.add(path)
                path = path.rpartition("/")[0]
        return found

    def _below(self, place: _Place, folder: str, after: str, *, deep: bool) -> Iterator[tuple[str, ObjectMeta]]:
        """Yield the objects below a folder, with their paths in it.

        :param deep: False: a folder in it need not be gone through.
        """
        # Where the store itself takes a name to start behind, a page is a request, and a failure costs one page.
        count = PAGE if self._kind in ("s3", "gs") else 1 << 30
        prefix = f"{folder}/" if folder else ""
        start = f"{prefix}{after}" if after else None
        if self._kind == "memory":  # nothing can fail there
            for page in self._api.list(self._store(place), folder or None, offset=start, chunk_size=PAGE):
                yield from ((path, meta) for meta in page if (path := meta["path"][len(prefix) :]))
            return
        while True:
            page = self._page(place, folder, start, count)
            for meta in page:
                if path := meta["path"][len(prefix) :]:
                    yield path, meta
            if len(page) < count:
                return
            start = page[-1]["path"]
            name, deeper, _ = start[len(prefix) :].partition("/")
            if deeper and not deep:
                start = max(start, f"{prefix}{name}/~")

    def _page(self, place: _Place, folder: str, after: str | None, count: int) -> Sequence[ObjectMeta]:
        """List the next objects below a folder, at any depth."""

        def send() -> Sequence[ObjectMeta]:
            pages = self._api.list(self._store(place), folder or None, offset=after, chunk_size=count)
            return next(iter(pages), [])

        return self._ask(place, "listing", send)


@final
class _Spooled:
    """The open end of a file that is sent when it is complete."""

    def __init__(self, key: str, file: IO[bytes]) -> None:
        self._key = key
        self._file = file

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        try:
            self._file.write(data.encode() if isinstance(data, str) else data)
        except OSError as error:
            raise OutputError(
                f"{self._key}: could not be collected in {tempfile.gettempdir()}: {error.strerror or error}"
            ) from error


_stores: dict[tuple[object, ...], ObjectStore] = {}
_lock = Lock()


def forget_stores() -> None:
    """Let stores read the variables anew, such as another address; those in memory are forgotten, too."""
    _stores.clear()


def _store_of(kind: str, bucket: str, *, slow: bool) -> ObjectStore:
    """Return the store of a bucket, which this process keeps.

    Its own retries are off, so that each request is counted; but for what is written in several requests.
    """
    known = (kind, bucket, *((patience().retries,) if slow and kind != "memory" else ()))
    with _lock:
        if known not in _stores:
            _stores[known] = _new_store(kind, bucket, slow=slow)
        return _stores[known]


def _new_store(kind: str, bucket: str, *, slow: bool) -> ObjectStore:
    from obstore import store

    if kind == "memory":
        return store.MemoryStore()
    seconds = max(1.0, patience().retry_seconds)
    retries: store.RetryConfig = {
        "max_retries": patience().retries if slow else 0,
        "retry_timeout": timedelta(seconds=seconds),
    }
    # As options of the client they would take the place of those in the variables.
    config: Any = {"timeout": f"{1000 * (SLOW if slow else QUICK):.0f}ms", "connect_timeout": "5s"}
    make: Any = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[kind]
    try:
        found: ObjectStore = make(bucket, config=config, retry_config=retries)
    except Exception as error:
        reason = reason_of(error)
        raise UsageError(f"{kind}://{bucket}: cannot be used: {reason}: set {CREDENTIALS[kind]}") from error
    return found


def _version(meta: ObjectMeta | PutResult) -> Version:
    """Return the ETag; stores put it into quotes in some answers and not in others."""
    tag = meta["e_tag"]
    if tag is not None:
        return (tag.strip('"'),)
    return tuple(str(meta.get(name)) for name in ("last_modified", "size"))


def _status(meta: ObjectMeta) -> FileStatus:
    return FileStatus("file", _version(meta), meta["size"], meta["last_modified"].timestamp())
