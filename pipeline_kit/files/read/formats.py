"""Which format a file has, by its ending and its first bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pipeline_kit.errors import InputError, UsageError, for_message
from pipeline_kit.files.storage.local import storage_of

Format = str
Codec = Literal["gzip", "zstd"]
LINE_FORMATS = ("text", "jsonl", "csv", "tsv")
FORMATS = (*LINE_FORMATS, "parquet", "arrow")

PLUGGED: dict[Format, Callable[[], Callable[[BinaryIO], Iterator[Any]]]] = {}
"""The formats of plugins by the ending of their files; each returns its function, see `kit.py`."""
UNKNOWN: list[Callable[[Format], object]] = []
"""Called with an ending that nothing here reads or writes, to load the installed plugin of that name."""

HEAD_BYTES = 10
"""How many of a file's first bytes tell what it is."""

_BY_SUFFIX: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
_CODEC_BY_SUFFIX: dict[str, Codec] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_CODEC_BY_HEAD: tuple[tuple[bytes, Codec], ...] = ((b"\x1f\x8b\x08", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_BY_HEAD: tuple[tuple[bytes, Format], ...] = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),  # a stream
)
_OTHERS = {
    ".bz2": "is compressed with bzip2, which is not read here; unpack it, or pack it with gzip or zstd",
    ".xz": "is compressed with xz, which is not read here; unpack it, or pack it with gzip or zstd",
    ".lz4": "is compressed with lz4, which is not read here; unpack it, or pack it with gzip or zstd",
    ".zip": "is an archive; unpack it first",
    ".tar": "is an archive; unpack it first",
    ".tgz": "is an archive; unpack it first",
    ".7z": "is an archive; unpack it first",
    ".json": "may be one JSON document; write it as JSONL, one example a line (if it is that: --input-format jsonl)",
    ".xlsx": "is a workbook; save it as CSV first",
}
_OTHERS_BY_HEAD = (
    (4, b"1AY&SY", ".bz2"),
    (0, b"\xfd7zXZ\x00", ".xz"),
    (0, b"\x04\x22\x4d\x18", ".lz4"),
    (0, b"PK\x03\x04", ".zip"),
)


def format_of(source: object) -> Format:
    """Return the format that a file's ending names, else ``text``; ``.gz`` and ``.zst`` are left aside.

    :raises InputError: for an ending of files that no format here can read, with what to do.
    """
    if not isinstance(source, str | Path) or str(source) == "-":
        return "text"
    path = Path(source)
    if path.suffix.lower() in _CODEC_BY_SUFFIX:
        path = path.with_suffix("")
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        for load in UNKNOWN:
            load(suffix[1:])
    if suffix in _OTHERS and suffix[1:] not in PLUGGED:
        raise InputError(f"{for_message(str(source))}: {_OTHERS[suffix]}")
    return _BY_SUFFIX.get(suffix, suffix[1:] if suffix[1:] in PLUGGED else "text")


def made_of_lines(name: str, format: Format | None) -> bool:
    """Return whether the number of newlines is about the number of rows, by a file's ending or by `format`."""
    suffix = Path(name).suffix.lower()
    known = format or _BY_SUFFIX.get(suffix, suffix[1:] if suffix[1:] in PLUGGED else "text")
    return suffix not in _CODEC_BY_SUFFIX and known in LINE_FORMATS and storage_of(name).kind(name) != "folder"


def codec_of(name: str, head: bytes) -> Codec | None:
    """Return what a file is compressed with, from its first bytes; its ending must not say otherwise.

    :param head: the first `HEAD_BYTES`, fewer if there are no more.
    :raises InputError: if the ending promises a compression that is not there, or it is one not read here.
    """
    promised = _CODEC_BY_SUFFIX.get(Path(name).suffix.lower())
    for magic, codec in _CODEC_BY_HEAD:
        if head.startswith(magic):
            return codec
    if promised == "zstd" and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return promised  # a frame of the user's own that unpacking skips, as parallel packers write first
    if promised is not None:
        held = "empty" if not head else f"not {promised}"
        raise InputError(f"ends in {Path(name).suffix} but is {held}; was it cut off, or unpacked already?")
    for place, magic, suffix in _OTHERS_BY_HEAD:
        if head.startswith(magic, place):
            raise InputError(_OTHERS[suffix])
    return None


def format_from_magic(head: bytes) -> Format | None:
    """Return the format that a file's first bytes show; None for lines of text."""
    return next((format for magic, format in _BY_HEAD if head.startswith(magic)), None)


def import_optional(module: str, library: str, what: str) -> Any:
    """Import a module that needs an optional library.

    :param module: the module to import.
    :param library: the library that may be absent.
    :param what: what it is needed for, such as ``reading Parquet``.
    :raises UsageError: if it cannot be imported; the message names what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs {library}: pip install 'pipeline-kit[files]' ({error})") from error
