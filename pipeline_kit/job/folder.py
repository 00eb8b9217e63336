"""The folder of a job: what lies where, and which folders a job may write to.

::

    part-00000.jsonl ...       the rows, a shard each (.csv, .parquet; .npy beside them)
    part-00000.retry-1.jsonl   rows of that shard that failed first and have a result since, see ``run --retry``
    _dead/part-00000.jsonl     the rows of that shard that failed, if any did
    _receipts/part-00000.json  written last: what makes a shard a part of the job, with the SHA-256 of its files
    _receipts/part-00000.begun.json  there while files of that shard are changed: what of them a kill may leave over
    _manifest.json             what the job is: config, versions, checkpoint, input
    _SUCCESS                   there when all rows are
    _lock                      held by the process that writes

Names with an underscore in front are passed over by what reads folders of Parquet or CSV.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline_kit.errors import OutputError, RowFailure, for_message
from pipeline_kit.files.atomic import is_temporary, remove_leftovers
from pipeline_kit.files.json_text import json_line
from pipeline_kit.job.receipt import shard_of
from pipeline_kit.job.sealed import changed

_NUMBER = re.compile(r"part-(\d{5,18})\.", re.ASCII)
_FIRST = ("_lock", "_dead", "_receipts")
"""What a job makes before its manifest."""


@dataclass(frozen=True)
class JobFolder:
    """The paths of a job."""

    path: Path

    @classmethod
    def claim(cls, path: Path) -> JobFolder:
        """Take `path` for a job: a folder that is new, empty, or a job's already.

        :raises OutputError: if it is anything else; nothing in it is touched.
        """
        try:
            found = os.lstat(path).st_mode
        except FileNotFoundError:
            return cls(path)._made()
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
        if stat.S_ISLNK(found):
            raise OutputError(f"{path}: is a symbolic link; name the folder it points to: {os.path.realpath(path)}")
        if not stat.S_ISDIR(found):
            raise OutputError(f"{path}: is a file; a job writes a folder")
        folder = cls(path)
        for each in (folder.manifest, folder.success, folder.lock):
            if os.path.lexists(each) and not stat.S_ISREG(os.lstat(each).st_mode):
                raise changed(each, "it is a link, a folder, a pipe or a device, and a job writes a regular file there")
        if folder.success.exists() and folder.success.stat().st_size:
            raise changed(folder.success, "a job writes an empty file there")
        names = [name for name in sorted(os.listdir(path)) if not is_litter(name) and not is_temporary(name)]
        strange = [name for name in names if name not in _FIRST]
        if strange and not folder.manifest.exists():
            listed = ", ".join(strange[:3])
            raise OutputError(f"{path}: holds something that is not a job's ({listed}); name another folder")
        return folder._made()

    @property
    def manifest(self) -> Path:
        """What the job is."""
        return self.path / "_manifest.json"

    @property
    def success(self) -> Path:
        """There when the job is complete."""
        return self.path / "_SUCCESS"

    @property
    def lock(self) -> Path:
        """Held by the process that writes."""
        return self.path / "_lock"

    def shard(self, number: int, suffix: str) -> Path:
        """Return the path of a file of a shard."""
        return self.path / f"part-{number:05d}{suffix}"

    def dead(self, number: int, again: str = "") -> Path:
        """Return the path of the rows of a shard that failed; `again`: and failed when they were run once more."""
        return self.path / "_dead" / f"part-{number:05d}{again}.jsonl"

    def receipt(self, number: int) -> Path:
        """Return the path of what makes a shard a part of the job."""
        return self.path / "_receipts" / f"part-{number:05d}.json"

    def begun(self, number: int) -> Path:
        """Return the path of a receipt for files of a shard that are being changed."""
        return self.receipt(number).with_suffix(".begun.json")

    def receipts(self, path_of: Callable[[int], Path] | None = None) -> list[int]:
        """List the numbers of the shards that have a receipt, sorted; or that have what `path_of` names."""
        named = path_of or self.receipt
        found = (_NUMBER.match(name) for name in os.listdir(self.path / "_receipts"))
        numbers = sorted({int(match[1]) for match in found if match})
        return [number for number in numbers if os.path.lexists(named(number))]

    def rename_away(self) -> Path:
        """Rename the folder to the first free name beside it: ``out`` becomes ``out.1``; nothing is deleted.

        :raises OutputError: if that fails.
        """
        number = 1
        while os.path.lexists(other := self.path.with_name(f"{self.path.name}.{number}")):
            number += 1
        try:
            os.rename(self.path, other)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be renamed to {other}: {error.strerror or error}") from error
        return other

    def files(self) -> Iterator[tuple[int, str]]:
        """List the files with the names of shards and dead letters, with the number of the shard."""
        for folder, above in ((self.path, ""), (self.path / "_dead", "_dead/")):
            for name in sorted(os.listdir(folder)):
                number = shard_of(above + name)
                if number is not None:
                    yield number, above + name

    def clean(self) -> None:
        """Remove the temporary files of processes that were killed; only for the one that holds the lock."""
        for folder in (self.path, self.path / "_dead", self.path / "_receipts"):
            remove_leftovers(folder)

    def _made(self) -> JobFolder:
        try:
            for path in (self.path, self.path / "_dead", self.path / "_receipts"):
                path.mkdir(exist_ok=True)
                if path.is_symlink():
                    raise OutputError(f"{path}: is a symbolic link; a job writes to no folder that is one")
        except FileNotFoundError as error:
            raise OutputError(f"{self.path}: there is no folder '{self.path.parent}' to make it in") from error
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be made: {error.strerror or error}") from error
        return self


LONGEST = 200


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row that failed.

    :param id: the row's id, as in the output.
    :param index: its number in the whole input.
    :param failure: the stage, the error's class and its message.
    """

    id: str
    index: int
    failure: RowFailure

    @property
    def line(self) -> str:
        """What is written, a line of JSON: the text itself is not, it stands in the input."""
        error, message = for_message(self.failure.error, 80), for_message(self.failure.message, LONGEST)
        content = {"id": self.id, "index": self.index, "stage": self.failure.stage, "error": error, "message": message}
        return json_line(content) + "\n"


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
