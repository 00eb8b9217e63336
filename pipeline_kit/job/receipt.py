"""A shard's receipt: written after the shard's files, it makes them a part of the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline_kit.job.sealed import LAYOUT, are_numbers, changed, digest_of, is_count, read_sealed, write_sealed

_FILE = re.compile(
    r"(?:part-(\d{5,18})(?:\.retry-[1-9]\d{0,5})?\.(?:jsonl|csv|parquet|npy)"
    r"|_dead/part-(\d{5,18})(?:\.retry-[1-9]\d{0,5})?\.jsonl)",
    re.ASCII,
)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Receipt:
    """What a shard holds.

    :param job: whose shard it is, see `Manifest.key`.
    :param shard: its number, from 0.
    :param first: the number of its first row in the whole input; `last` that of its last one.
    :param rows: how many rows went in; each is either written or dead.
    :param files: for each file, by its path in the job's folder, its SHA-256.
    :param counts: tokens, truncated rows and the like, for the job's summary.
    """

    job: str
    shard: int
    first: int
    last: int
    rows: int
    written: int
    dead: int
    files: Mapping[str, str]
    counts: Mapping[str, float]
    layout: int = LAYOUT

    def is_whole(self, folder: Path) -> bool:
        """Return whether every file is in the job's `folder` as it was written."""
        return all(digest_of(folder / name) == digest for name, digest in self.files.items())


def shard_of(name: str) -> int | None:
    """Return the shard that the file `name`, a path in the job's folder, is of; None if no job writes such a name."""
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    digits = match[1] or match[2]
    return int(digits) if f"{int(digits):05d}" == digits else None


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write `receipt` so that it is whole or not there.

    :raises OutputError: if it cannot be written.
    """
    write_sealed(path, asdict(receipt))


def read_receipt(path: Path) -> Receipt | None:
    """Read a receipt; None if it is missing or was damaged.

    :raises OutputError: if it is whole and says what no job writes, such as a file outside the job's folder; or of a
        newer version.
    """
    try:
        content = read_sealed(path)
    except OSError:
        return None
    if content is None:
        return None
    wrong = _wrong(content)
    if wrong is not None:
        raise changed(path, wrong)
    return Receipt(**content)


def _wrong(content: Mapping[str, Any]) -> str | None:
    """Return what a job does not write in a receipt; None if all is as a job writes it."""
    if {"layout", *content} != Receipt.__dataclass_fields__.keys() or content.get("layout", 1) != LAYOUT:
        return "the receipt has other fields than a job writes"
    counts = [content[name] for name in ("shard", "first", "last", "rows", "written", "dead")]
    if not all(map(is_count, counts)) or not are_numbers(content["counts"]):
        return "a count in the receipt is not a number from 0 up"
    shard, first, last, rows, written, dead = counts
    if not isinstance(content["job"], str) or written + dead != rows or not 1 <= rows <= last - first + 1:
        return "the counts in the receipt contradict each other"
    files = content["files"]
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return "the receipt's files are not names with a SHA-256 each"
    for name, digest in files.items():
        if shard_of(name) != shard or not _DIGEST.fullmatch(digest):
            return f"the receipt names {name[:200]!a}, which is not a file of shard {shard}"
    return None
