"""A shard's receipt: written after the shard's files, it makes them a part of the job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline_kit.atomic import atomic_writer

__all__ = ["Receipt", "read_receipt", "sha256", "write_receipt"]


@dataclass(frozen=True)
class Receipt:
    """What a shard holds.

    :param shard: its number, from 0.
    :param first: the number of its first row in the whole input; `last` that of its last one.
    :param rows: how many rows went in; each is either written or dead.
    :param files: for each file, by its path in the job's folder, its SHA-256.
    :param counts: tokens, truncated rows and the like, for the job's summary.
    """

    shard: int
    first: int
    last: int
    rows: int
    written: int
    dead: int
    files: Mapping[str, str]
    counts: Mapping[str, float]


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write `receipt` so that it is whole or not there.

    :raises OutputError: if the disk takes it not.
    """
    content = asdict(receipt)
    with atomic_writer(path) as file:
        file.write(json.dumps(content | {"sha256": _seal(content)}) + "\n")


def read_receipt(path: Path, folder: Path) -> Receipt | None:
    """Read a receipt; None if it, or any file it names, is missing or not what was written."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        seal = content.pop("sha256")
        if seal != _seal(content):
            return None
        receipt = Receipt(**content)
        if all(sha256(folder / name) == digest for name, digest in receipt.files.items()):
            return receipt
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
