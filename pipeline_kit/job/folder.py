"""The folder of a job: what lies where, and which folders a job may write to.

::

    part-00000.jsonl ...       the rows, a shard each (.csv, .parquet; .npy or .safetensors beside them)
    part-00000.retry-1.jsonl   rows of that shard that failed first and have a result since, see ``pipeline-kit retry``
    _dead/part-00000.jsonl     the rows of that shard that failed, if any did
    _receipts/part-00000.json  written last: what makes a shard a part of the job, with the SHA-256 of its files
    _manifest.json             what the job is: config, versions, checkpoint, input
    _SUCCESS                   there when all rows are
    _lock                      held by the process that writes

Names with an underscore in front are passed over by what reads folders of Parquet or CSV.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline_kit.atomic import TEMPORARY
from pipeline_kit.errors import OutputError
from pipeline_kit.job.receipt import Receipt

__all__ = ["JobFolder"]

_FIRST = ("_lock", "_dead", "_receipts")
"""What a job makes before its manifest."""


_FILE = re.compile(r"part-\d{5,}(?:\.retry-\d+)?\.(?:jsonl|csv|parquet|npy|safetensors)", re.ASCII)


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
        names = sorted(os.listdir(path))
        strange = [name for name in names if not name.startswith(("part-", "_", TEMPORARY))]
        without_manifest = [name for name in names if name not in _FIRST and not name.startswith(TEMPORARY)]
        if strange or (without_manifest and not folder.manifest.exists()):
            listed = ", ".join((strange or names)[:3])
            raise OutputError(f"{path}: holds something that is no job's ({listed}); name another folder")
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
        """Give the path of a file of a shard."""
        return self.path / f"part-{number:05d}{suffix}"

    def dead(self, number: int, again: str = "") -> Path:
        """Give the path of the rows of a shard that failed; `again`: and failed when they were run once more."""
        return self.path / "_dead" / f"part-{number:05d}{again}.jsonl"

    def receipt(self, number: int) -> Path:
        """Give the path of what makes a shard a part of the job."""
        return self.path / "_receipts" / f"part-{number:05d}.json"

    def receipts(self) -> list[int]:
        """List the numbers of the shards that have a receipt, sorted."""
        names = [path.stem.removeprefix("part-") for path in (self.path / "_receipts").glob("part-*.json")]
        return sorted(int(name) for name in names if name.isdigit())

    def set_aside(self) -> Path:
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

    def clean(self, receipts: Iterable[Receipt]) -> None:
        """Remove what a process that was killed left; only for the one that holds the lock.

        Those are temporary files, and files of shards that no receipt names.
        """
        for folder in (self.path, self.path / "_dead", self.path / "_receipts"):
            for path in folder.glob(f"{TEMPORARY}*.tmp"):
                with suppress(OSError):
                    path.unlink()
        named = {name for receipt in receipts for name in receipt.files}
        for folder in (self.path, self.path / "_dead"):
            for path in folder.glob("part-*"):
                if _FILE.fullmatch(path.name) and path.relative_to(self.path).as_posix() not in named:
                    path.unlink(missing_ok=True)

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
