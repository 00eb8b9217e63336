"""The folder of a job: what lies where, and which folders a job may write to.

::

    part-00000.jsonl ...       the rows, a shard each (.csv, .parquet; .npy beside them)
    part-00000.retry-1.jsonl   rows of that shard that failed first and have a result since, see ``run --retry``
    _dead/part-00000.jsonl     the rows of that shard that failed, if any did
    _receipts/part-00000.json  written last: what makes a shard a part of the job, with the SHA-256 of its files
    _receipts/part-00000.begun.json  there while files of that shard are written: what of them a kill may leave over
    _plan/part-00000.idx       what a worker found in the input's first file, by which the input is cut into shards
    _manifest.json             what the job is: config, versions, checkpoint, input
    _SUCCESS                   there when all rows are
    _lock                      held by the process that keeps the job's books

Names with an underscore in front are passed over by what reads folders of Parquet or CSV.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from filelock import Timeout

from pipeline_kit.errors import OutputError, UsageError, for_message
from pipeline_kit.files.atomic import is_temporary, remove_leftovers
from pipeline_kit.files.lock import lock_file
from pipeline_kit.files.storage.base import FileStatus, join_key
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.job.receipt import Receipt, read_receipt, receipt_of, shard_name, shard_of
from pipeline_kit.job.sealed import changed, is_count

MANIFEST, SUCCESS, LOCK, DEAD, RECEIPTS = "_manifest.json", "_SUCCESS", "_lock", "_dead", "_receipts"
PLAN = "_plan"


class JobFolder:
    """A job's folder on this machine. Names are paths in it, such as ``_dead/part-00000.jsonl``.

    One process holds the lock and keeps the books; the maker of a shard writes its files.
    """

    local = True
    """Whether files can be hashed fast, renamed, and removed when nothing needs them any more."""

    def __init__(self, key: str) -> None:
        """Name the folder; see :meth:`claim`."""
        self.key = key.rstrip("/") or "/"  # with a slash at its end a link would pass for the folder it leads to
        self._storage = storage_of(key)

    def claim(self) -> None:
        """Take the folder for a job: one that is new, empty, or a job's already.

        :raises OutputError: if it is anything else; nothing in it is touched.
        """
        try:
            found = os.lstat(self.key).st_mode
        except FileNotFoundError:
            return self._make(self.key, self.at(DEAD), self.at(RECEIPTS))
        except OSError as error:
            raise OutputError(f"{self.key}: cannot be written: {error.strerror or error}") from error
        if stat.S_ISLNK(found):
            real = os.path.realpath(self.key)
            raise OutputError(f"{self.key}: is a symbolic link; name the folder it points to: {real}")
        if not stat.S_ISDIR(found):
            raise OutputError(f"{self.key}: is a file; a job writes a folder")
        self._check_owner()
        self._make(self.key, self.at(DEAD), self.at(RECEIPTS))

    def _check_owner(self) -> None:
        """See that what lies in the folder is a job's.

        :raises OutputError: if not.
        """
        there = self._storage.files(self.key)
        for name in (MANIFEST, SUCCESS, LOCK):
            if name in there and there[name].kind != "file":
                raise changed(
                    self.at(name), "it is a link, a folder, a pipe or a device, and a job writes a file there"
                )
        if SUCCESS in there and there[SUCCESS].size:
            raise changed(self.at(SUCCESS), "a job writes an empty file there")
        if MANIFEST in there:
            return
        strange = [name for name in there if not is_litter(name) and not is_temporary(name)]
        strange = [name for name in strange if name not in (LOCK, DEAD, RECEIPTS, PLAN)]
        if strange:
            listed = ", ".join(strange[:3])
            raise OutputError(f"{self.key}: holds something that is not a job's ({listed}); name another folder")

    def _make(self, *paths: str) -> None:
        try:
            for path in paths:
                Path(path).mkdir(exist_ok=True)
                if os.path.islink(path):
                    raise OutputError(f"{path}: is a symbolic link; a job writes to no folder that is one")
        except FileNotFoundError as error:
            raise OutputError(f"{self.key}: there is no folder '{Path(self.key).parent}' to make it in") from error
        except OSError as error:
            raise OutputError(f"{self.key}: cannot be made: {error.strerror or error}") from error

    @contextmanager
    def locked(self, lease: float) -> Iterator[None]:
        """Keep other processes from writing the books while the body runs; nothing is held where there are no locks.

        :param lease: of a folder in a store: seconds after which a lock that is not renewed is free.
        :raises OutputError: if another process holds it, which is named; or if the file is not a lock.
        """
        del lease
        path = Path(self.at(LOCK))

        def sign(descriptor: int) -> None:
            if os.pread(descriptor, 1, 0) and _holder(path) is None:
                raise changed(path, "a job writes there which process has the folder")
            with suppress(OSError):  # who holds it is only for messages
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

        with ExitStack() as stack:
            try:
                stack.enter_context(lock_file(path, wait=False, on_locked=sign))
            except Timeout as error:
                raise self.in_use(_holder(path)) from error
            except OSError as error:
                raise OutputError(f"{path}: cannot be opened: {error.strerror or error}") from error
            yield

    def in_use(self, holder: Mapping[str, Any] | None, more: str = "") -> OutputError:
        """Return the error for a folder that another process holds."""
        said = "it did not say which"
        if holder is not None:
            said = f"process {holder['pid']} on {for_message(str(holder['host']), 80)}"
        return OutputError(f"{self.key}: another process writes to this folder: {said}{more}; wait for it or stop it")

    def restarted(self, lease: float) -> JobFolder:
        """Rename the folder to the first free name beside it, ``out`` to ``out.1``, and return one for a new job.

        :raises UsageError: for a name that is not the folder's own, such as ``.``.
        :raises OutputError: if that fails; nothing is deleted.
        """
        if not os.path.lexists(self.key):
            return self
        self.claim()
        path = Path(self.key)
        if path.name in ("", ".."):
            here = os.path.abspath(path)
            raise UsageError(f"{self.key}: cannot be renamed by this name; to begin anew, name the folder as {here}")
        with self.locked(lease):
            number = 1
            while os.path.lexists(other := path.with_name(f"{path.name}.{number}")):
                number += 1
            try:
                os.rename(path, other)
            except OSError as error:
                raise OutputError(f"{path}: cannot be renamed to {other}: {error.strerror or error}") from error
        return self

    def at(self, name: str) -> str:
        """Return the key of a file in the folder."""
        return join_key(self.key, name)

    def exists(self, name: str) -> bool:
        """Return whether there is anything of this name."""
        return os.path.lexists(self.at(name))

    def files(self) -> Iterator[tuple[int, str, FileStatus]]:
        """List the files with the names of shards and dead letters, each with the number of its shard."""
        for folder, above in ((self.key, ""), (self.at(DEAD), f"{DEAD}/")):
            for name, status in self._storage.files(folder).items():
                number = shard_of(above + name)
                if number is not None:
                    yield number, above + name, status

    def receipt_names(self) -> list[tuple[str, int]]:
        """List the receipts' names with their shards' numbers: by shard, and of one shard by retry."""
        found = [(receipt_of(name), name) for name in self._storage.files(self.at(RECEIPTS))]
        return [(name, place[0]) for place, name in sorted((place, name) for place, name in found if place is not None)]

    def receipts(self, job: str) -> Iterator[Receipt]:
        """Read all receipts of a job; those that were damaged are left out.

        :returns: those of one shard in the order in which its rows were run again.
        :raises OutputError: if one is not of this job, or is not a regular file.
        """
        found = (self.receipt(name, job) for name, _ in self.receipt_names())
        return (receipt for receipt in found if receipt is not None)

    def receipt(self, name: str, job: str) -> Receipt | None:
        """Read one receipt; None if it is absent or was damaged.

        :raises OutputError: if it is not of this job, or is not a regular file.
        """
        where = f"{RECEIPTS}/{name}"
        try:
            return read_receipt(self.read(where), self.at(where), job, name)
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        """Return a file's content. No link is followed, and no pipe or device is opened.

        :raises OutputError: if `name` is anything but a regular file.
        :raises OSError: if it cannot be read.
        """
        with _opened(self.at(name)) as file:
            return file.read()

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of a file; None if it cannot be read, or is not a regular file."""
        try:
            with _opened(self.at(name)) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except (OSError, OutputError):
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the job's books in the place of the one that is there.

        :raises OutputError: if it cannot be written.
        """
        with self._storage.writer(self.at(name)) as file:
            file.write(data)

    def plans(self) -> list[str]:
        """List the files in ``_plan``."""
        return [f"{PLAN}/{name}" for name in self._storage.files(self.at(PLAN))]

    def put_plan(self, name: str, data: bytes) -> None:
        """Write a file in ``_plan``.

        :raises OutputError: if it cannot be written.
        """
        self._make(self.at(PLAN))
        self.put(name, data)

    def delete(self, name: str) -> None:
        """Remove a file of the job's books."""
        self._storage.delete(self.at(name))

    def write_shard(self, receipt: Receipt, contents: Mapping[str, bytes], before: Receipt | None) -> Receipt:
        """Write the files of a shard and then the receipt that takes them up.

        Whatever ends this half-way is undone when the shard is written again: ``begun.json`` names what may be there.

        :param before: what stood for the shard when its rows were run again.
        :returns: the receipt that stands: that of the first writer, where the storage has several.
        :raises OutputError: if another file is where one is to be written.
        """
        begun, standing = _begun(receipt), self.receipt(receipt.name, receipt.job)
        if standing is not None and standing.files == receipt.files:
            return standing  # a worker that was taken for dead was faster
        if self.exists(begun):
            with suppress(FileNotFoundError):  # that worker is writing now
                self._undo(begun, receipt.job, receipt)
        for name in contents:
            if self.exists(name) and self.digest(name) != receipt.files[name]:
                raise changed(self.at(name), "the job did not write that file, or not with this content")
        self.put(begun, receipt.content)
        for name, data in contents.items():
            if not self.exists(name):
                self.put(name, data)
        self.put(f"{RECEIPTS}/{receipt.name}", receipt.content)
        self.delete(begun)
        if before is not None:
            self._remove(before, receipt)
            self.delete(f"{RECEIPTS}/{before.name}")
        return receipt

    def stands(self, receipt: Receipt) -> None:
        """Note a receipt that the ledger has taken up."""

    def discard(self, receipt: Receipt) -> None:
        """Remove a shard of which a file is absent or torn; the job computes it anew.

        :raises OutputError: if one of its files is anything but a regular file; or if files are never removed here.
        """
        for name in receipt.files:
            if self.exists(name) and not stat.S_ISREG(os.lstat(self.at(name)).st_mode):
                raise changed(self.at(name), "a job writes a regular file there")
        for name in receipt.files:
            self.delete(name)
        self.delete(f"{RECEIPTS}/{receipt.name}")

    def clean(self, job: str, standing: Callable[[int], Receipt | None], superseded: Iterable[Receipt]) -> None:
        """Remove what killed processes have left; only for the one that holds the lock.

        :param standing: returns the receipt that counts for a shard.
        :param superseded: receipts of shards that were run again since.
        """
        for old in superseded:
            self._remove(old, standing(old.shard))
            self.delete(f"{RECEIPTS}/{old.name}")
        for folder in (self.key, self.at(DEAD), self.at(RECEIPTS)):
            remove_leftovers(Path(folder))
        for name in self._storage.files(self.at(RECEIPTS)):
            found = receipt_of(name.replace(".begun.json", ".json"))
            if found is not None and name.endswith(".begun.json"):
                self._undo(f"{RECEIPTS}/{name}", job, standing(found[0]))

    def _undo(self, begun: str, job: str, standing: Receipt | None) -> None:
        """Remove the files that were begun and that `standing` does not hold."""
        name = begun.removeprefix(f"{RECEIPTS}/").replace(".begun.json", ".json")
        left = read_receipt(self.read(begun), self.at(begun), job, name)
        if left is None:
            raise changed(self.at(begun), "it is not what a job writes there")
        self._remove(left, standing)
        self.delete(begun)

    def _remove(self, old: Receipt, standing: Receipt | None) -> None:
        """Remove the files of `old` that are as it lists them, and that `standing` does not hold."""
        for name, digest in old.files.items():
            if (standing is None or name not in standing.files) and self.digest(name) == digest:
                self.delete(name)


def _begun(receipt: Receipt) -> str:
    return f"{RECEIPTS}/{shard_name(receipt.shard, receipt.retry)}.begun.json"


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a regular file of a job. No link is followed, and no pipe or device is opened.

    :raises OutputError: if `path` is anything else.
    :raises OSError: if it cannot be opened.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise changed(path, "it is a link, a folder, a pipe or a device, and a job writes regular files")
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
        yield file


def _holder(path: Path) -> dict[str, Any] | None:
    """Read which process wrote the lock last; None if that is unknown."""
    try:
        with _opened(str(path)) as file:
            found: dict[str, Any] = json.loads(file.read(1000))
        return found if found.keys() == {"pid", "host"} and is_count(found["pid"]) else None
    except (OSError, OutputError, ValueError, AttributeError, RecursionError):
        return None


_LITTER = (
    # macOS: the Finder's view, data beside files on other file systems, indexes, what was thrown away
    *(".ds_store", "._*", ".localized", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", ".apdisk"),
    # Windows: thumbnails, the look of a folder, what was thrown away
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    # Linux: files that were removed while open on a network or FUSE, desktops, what fsck found
    *(".nfs*", ".fuse_hidden*", ".directory", ".trash-*", "lost+found"),
    # programs: locks and copies of editors and offices, notebooks, network storage, folders kept in git
    *(".~lock.*#", "~$*", "*~", ".#*", ".*.sw[a-z]", "*.swp", ".ipynb_checkpoints", "@eadir", ".gitkeep", ".keep"),
)


def is_litter(name: str) -> bool:
    """Return whether `name` is well known as one that nobody put into a folder on purpose."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in _LITTER)
