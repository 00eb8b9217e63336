"""A shard's receipt: written after the shard's files, it makes them a part of the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline_kit.job.sealed import LAYOUT, are_numbers, changed, is_count, sealed, unsealed

_FILE = re.compile(
    r"(?:part-(\d{5,18})(?:\.retry-[1-9]\d{0,5})?\.[a-z0-9]{1,16}"
    r"|_dead/part-(\d{5,18})(?:\.retry-[1-9]\d{0,5})?\.jsonl)",
    re.ASCII,
)
_RECEIPT = re.compile(r"part-(\d{5,18})(?:\.retry-([1-9]\d{0,5}))?\.json", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a shard holds.

    :param job: whose shard it is, see `Manifest.key`.
    :param shard: its number, from 0.
    :param first: the number of its first row in the whole input; `last` that of its last one.
    :param rows: how many rows went in; each is either written or dead.
    :param files: for each file, by its path in the job's folder, its SHA-256.
    :param sizes: the bytes of each.
    :param counts: tokens, truncated rows and the like, for the job's summary.
    :param retry: how often rows of the shard were run again; the receipt with the highest number counts.
    """

    job: str
    shard: int
    first: int
    last: int
    rows: int
    written: int
    dead: int
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    counts: Mapping[str, float]
    retry: int = 0
    layout: int = LAYOUT

    @property
    def name(self) -> str:
        """The file's name in ``_receipts``."""
        return f"{shard_name(self.shard, self.retry)}.json"

    @property
    def content(self) -> bytes:
        """What is written to the file."""
        return sealed(asdict(self))


def shard_name(number: int, retry: int = 0) -> str:
    """Return how the names of all files of a shard begin."""
    return f"part-{number:05d}" + (f".retry-{retry}" if retry else "")


def shard_of(name: str) -> int | None:
    """Return the shard that the file `name`, a path in the job's folder, is of; None if no job writes such a name."""
    match = _FILE.fullmatch(name)
    return None if match is None else _number(match[1] or match[2])


def receipt_of(name: str) -> tuple[int, int] | None:
    """Return the shard and the retry that a file in ``_receipts`` is of; None if no job writes such a name."""
    match = _RECEIPT.fullmatch(name)
    number = None if match is None else _number(match[1])
    return None if match is None or number is None else (number, int(match[2] or 0))


def read_receipt(data: bytes, where: str, job: str, name: str | None) -> Receipt | None:
    """Read a receipt; None if it was damaged.

    :param where: the file, for messages.
    :param job: the job that it must be of.
    :param name: the file's name, which must be its own; None for one of several in a file.
    :raises OutputError: if it is whole and holds what this job does not write, such as a file outside the job's folder.
    """
    content = unsealed(data, where)
    if content is None:
        return None
    wrong = _wrong(content)
    if wrong is not None:
        raise changed(where, wrong)
    receipt = Receipt(**content)
    if receipt.job != job or receipt.name != (name or receipt.name):
        raise changed(where, "it is the receipt of another shard or job")
    return receipt


def _number(digits: str) -> int | None:
    return int(digits) if f"{int(digits):05d}" == digits else None


def _wrong(content: Mapping[str, Any]) -> str | None:
    """Return what a job does not write in a receipt; None if all is as a job writes it."""
    if content.keys() != Receipt.__dataclass_fields__.keys():
        return "the receipt has other fields than a job writes"
    counts = [content[name] for name in ("shard", "first", "last", "rows", "written", "dead", "retry")]
    if not all(map(is_count, counts)) or not are_numbers(content["counts"]):
        return "a count in the receipt is not a number from 0 up"
    shard, first, last, rows, written, dead, _ = counts
    if not isinstance(content["job"], str) or written + dead != rows or not 1 <= rows <= last - first + 1:
        return "the counts in the receipt contradict each other"
    files, sizes = content["files"], content["sizes"]
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return "the receipt's files are not names with a SHA-256 each"
    if not isinstance(sizes, dict) or sizes.keys() != files.keys() or not all(map(is_count, sizes.values())):
        return "the receipt's sizes are not a number of bytes for each file"
    for name, digest in files.items():
        if shard_of(name) != shard or not _DIGEST.fullmatch(digest):
            return f"the receipt names {name[:200]!a}, which is not a file of shard {shard}"
    return None
