"""A job's folder in an object store: nothing is renamed, and no file of a shard is ever written over or deleted."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any, final

from pipeline_kit.errors import JobError, OutputError
from pipeline_kit.files.storage.base import Conflict, FileStatus, Version
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.storage.probe import probe_create
from pipeline_kit.job.folder import LOCK, RECEIPTS, JobFolder
from pipeline_kit.job.receipt import Receipt, read_receipt, receipt_of
from pipeline_kit.job.sealed import ANEW, changed, is_count

PACK = 1000
"""How many receipts are packed into one object."""
_LEDGER = "_ledger"
_READERS = 32
_LARGEST_LOCK = 1000


@final
class StoreFolder(JobFolder):
    """A job's folder in an object store.

    Its lock is a lease, which stops a second job that is begun by mistake. What makes two writers harmless is that
    files of a shard are only ever created: of two writers with the same bytes both succeed, and no receipt is written
    for others.
    """

    local = False

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self._lease: _Lease | None = None
        self._packed: set[int] = set()
        self._unpacked: dict[int, dict[int, Receipt]] = {}

    def claim(self) -> None:
        """Take the folder for a job.

        :raises OutputError: if something else lies there.
        """
        try:
            self._check_owner()
        except OSError as error:
            raise OutputError(f"{self.key}: cannot be read: {error.strerror or error}") from error

    def restarted(self, lease: float) -> JobFolder:
        """Return the first free folder beside this one, ``out.1`` for ``out``: nothing can be renamed here."""
        del lease
        number, folder = 0, self
        while folder._storage.kind(folder.key) is not None:
            number += 1
            folder = StoreFolder(f"{self.key}.{number}")
        return folder

    @contextmanager
    def locked(self, lease: float) -> Iterator[None]:
        """Hold the lease while the body runs; it is renewed every third of `lease` seconds.

        :raises OutputError: if another process holds one that is fresh, or the store writes over an object where it
            was asked to create one.
        """
        self._lease = _Lease(self, lease)
        try:
            with self._lease.held():
                yield
        finally:
            self._lease = None

    def exists(self, name: str) -> bool:
        """Return whether there is an object of this name."""
        return self._storage.kind(self.at(name)) == "file"

    def read(self, name: str) -> bytes:
        """Return an object's content.

        :raises OSError: if it cannot be read.
        """
        return self._storage.read(self.at(name))

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of an object; None if it cannot be read."""
        try:
            return sha256(self.read(name)).hexdigest()
        except OSError:
            return None

    def status(self, name: str) -> FileStatus | None:
        """Look an object up; None if it is not there."""
        try:
            return self._storage.status(self.at(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{self.at(name)}: cannot be read: {error.strerror or error}") from error

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the job's books, for as long as the lease is held."""
        if self._lease is not None:
            self._lease.check()
        super().put(name, data)

    def put_plan(self, name: str, data: bytes) -> None:
        """Create an object in ``_plan``; one that is there stays, whatever it holds."""
        with suppress(Conflict):
            self._storage.create(self.at(name), data)

    def receipts(self, job: str) -> Iterator[Receipt]:
        """Read all receipts: the packed ones a thousand at a time, the others several at once."""
        for name in self._storage.files(self.at(_LEDGER)):
            where = f"{_LEDGER}/{name}"
            for line in self.read(where).splitlines():
                receipt = read_receipt(line, self.at(where), job, None)
                if receipt is None:
                    raise changed(self.at(where), "it is not what a job writes there")
                self._packed.add(receipt.shard // PACK)
                yield receipt
        places = ((receipt_of(name), name) for name in self._storage.files(self.at(RECEIPTS)))
        loose = [(place, name) for place, name in places if place and not self._is_packed(*place)]
        with ThreadPoolExecutor(_READERS) as pool:
            for found in pool.map(lambda item: self.receipt(item[1], job), sorted(loose)):
                if found is not None:
                    yield found

    def stands(self, receipt: Receipt) -> None:
        """Pack receipts, a thousand into one object, so that opening the job reads few."""
        group = receipt.shard // PACK
        if receipt.retry or self._is_packed(receipt.shard, 0):
            return
        waiting = self._unpacked.setdefault(group, {})
        waiting[receipt.shard] = receipt
        if len(waiting) == PACK:
            self._packed.add(group)
            content = b"".join(waiting[number].content for number in sorted(waiting))
            self._storage.create(self.at(f"{_LEDGER}/{group:05d}.jsonl"), content)
            del self._unpacked[group]

    def _is_packed(self, shard: int, retry: int) -> bool:
        """Return whether a receipt is in a pack: each holds all of a thousand shards, and none of a retry."""
        return not retry and shard // PACK in self._packed

    def write_shard(self, receipt: Receipt, contents: Mapping[str, bytes], before: Receipt | None) -> Receipt:
        """Create the objects of a shard, and then its receipt.

        :returns: the receipt that stands: that of the first writer.
        :raises Conflict: if other bytes are where an object is to be written.
        """
        for name, data in contents.items():
            self._storage.create(self.at(name), data)
        where = f"{RECEIPTS}/{receipt.name}"
        try:
            self._storage.create(self.at(where), receipt.content)
        except Conflict:  # receipts of the same shard differ in timings
            found = self.receipt(receipt.name, receipt.job)
            if found is None or found.files != receipt.files:
                raise
            return found
        return receipt

    def discard(self, receipt: Receipt) -> None:
        """Refuse: what a store lost is not written again, since nothing shows who reads it."""
        where = self.at(f"{RECEIPTS}/{receipt.name}")
        raise OutputError(
            f"{where}: a file that this receipt names is absent or has another size; restore it, or begin anew with "
            f"{ANEW}"
        )

    def clean(self, job: str, standing: Callable[[int], Receipt | None], superseded: Iterable[Receipt]) -> None:
        """Leave everything where it is: a worker that was taken for dead may still write."""


@final
class _Lease:
    """The object ``_lock``: who keeps the books, written anew from time to time."""

    def __init__(self, folder: StoreFolder, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._storage, self._key = storage_of(folder.key), folder.at(LOCK)
        self._token = secrets.token_hex(16)
        self._version: Version | None = None
        self._lost: str | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take the lease, renew it in a thread, and release it."""
        self._take(time.time() + probe_create(self._storage, self._folder.at(RECEIPTS)))
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), daemon=True, name="pipeline-kit-lease")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if self._lost is None:
                with suppress(OutputError):
                    self._storage.delete(self._key)

    def check(self) -> None:
        """See that the lease is held.

        :raises JobError: if another process has taken it.
        """
        if self._lost is not None:
            raise JobError(f"{self._folder.key}: {self._lost}; what is done is kept")

    def _take(self, now: float) -> None:
        """Take the lease, if it is free at `now` by the store's own clock."""
        while True:
            found = self._folder.status(LOCK)
            if found is not None:
                holder = self._holder()
                age = now - found.modified
                here = holder is not None and holder["host"] == socket.gethostname()
                dead = here and holder is not None and not _alive(holder["pid"])
                limit = self._seconds if holder is None else float(holder["seconds"])
                if not dead and age <= limit:
                    more = f", {age:.0f} s ago; its lease ends after {limit:g} s"
                    raise self._folder.in_use(holder, more)
            try:
                self._version = self._storage.swap(self._key, self._content(), None if found is None else found.version)
                return
            except Conflict:
                continue  # another one was faster; the next turn shows which

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds / 3):
            try:
                self._version = self._storage.swap(self._key, self._content(), self._version)
            except Conflict:
                self._lost = "another process has taken over this folder, since the lease was not renewed in time"
                return
            except OutputError:
                continue  # the store does not answer; the next turn may come in time

    def _content(self) -> bytes:
        content = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "seconds": self._seconds}
        return json.dumps(content).encode()

    def _holder(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._storage.read(self._key)[:_LARGEST_LOCK])
            whole = found.keys() == {"token", "host", "pid", "seconds"} and is_count(found["pid"])
            return found if whole and isinstance(found["seconds"], int | float) else None
        except (OSError, ValueError, AttributeError, RecursionError):
            return None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def folder_of(key: str) -> JobFolder:
    """Return the folder of a job: on this machine, or in the store that a URL names."""
    return JobFolder(key) if storage_of(key).path(key) is not None else StoreFolder(key)
