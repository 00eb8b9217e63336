"""From what a user names - files, patterns, folders, ``-`` - to the parts of the input."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_kit.errors import InputError, UsageError, shorten
from pipeline_kit.records.extras import need
from pipeline_kit.records.files import File, SpooledFile, opened_file
from pipeline_kit.records.formats import Format, format_of, sniffed
from pipeline_kit.records.line_part import LinePart
from pipeline_kit.records.part import Part
from pipeline_kit.records.unpack import Limits

__all__ = ["expand", "parts_of"]

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_LARGEST_STATE = 16 << 20


def expand(names: Sequence[str | Path]) -> list[str]:
    """Give the files and folders that are named; a pattern such as ``data/*.jsonl`` gives its files in sorted order.

    A name that is there is never taken for a pattern. ``**`` goes through folders of any depth.

    :raises InputError: if a pattern matches no file, or a name cannot be one.
    :raises UsageError: if stdin is named twice.
    """
    found: list[str] = []
    for name in map(str, names):
        if "\0" in name:
            raise InputError(f"{shorten(name)}: cannot be read: a NUL character is in the name")
        if name == "-" or not glob.has_magic(name) or os.path.lexists(name):
            found.append(name)
            continue
        files = sorted(path for path in glob.iglob(name, recursive=True) if not os.path.isdir(path))
        if not files:
            raise InputError(f"{shorten(name)}: no file matches this pattern")
        found += files
    if found.count("-") > 1:
        raise UsageError("- can be named once: stdin is read once")
    return found


def parts_of(names: Sequence[str | Path], format: Format | None, limits: Limits) -> list[Part]:
    """Open what is named; a folder of Arrow or Parquet files that no dataset was saved to gives a part for each.

    :param format: the format of every file; None: by its ending, else by its first bytes.
    :raises InputError: if something is not there, cannot be read here, or is named twice.
    :raises UsageError: if a library that it takes is not installed.
    """
    paths = [inner for name in expand(names) for inner in _in_folder(name)]
    _refuse_twice(paths)
    return [_part(path, label, format, limits) for path, label in zip(paths, _labels(paths), strict=True)]


def _part(path: str, label: str, format: Format | None, limits: Limits) -> Part:
    """Open one file, saved dataset or stdin."""
    if path != "-" and os.path.isdir(path):
        return _dataset(Path(path), label, limits)
    known = format or format_of(path)
    file: File = SpooledFile(label) if path == "-" else opened_file(Path(path), label)
    if known == "text" and format is None:
        known = sniffed(LinePart(file, known, limits).head()) or known
    if known in ("parquet", "arrow"):
        return _arrow_part(label, [file], known, limits)
    return LinePart(file, known, limits)


def _arrow_part(label: str, files: Sequence[File], format: Format, limits: Limits) -> Part:
    module = need("pipeline_kit.records.arrow_part", "pyarrow", f"{label}: reading {format.capitalize()}")
    part: Part = module.ArrowPart(label, files, format, limits)
    return part


def _in_folder(name: str) -> list[str]:
    """Give the files of a folder of Arrow or Parquet files; anything else is given back as it is."""
    if name == "-" or not os.path.isdir(name):
        return [name]
    folder = Path(name)
    if (folder / _STATE).is_file():
        return [name]
    if (folder / _SPLITS).is_file():
        splits = sorted(inner.parent.name for inner in folder.glob(f"*/{_STATE}"))
        raise InputError(
            f"{name}: holds several datasets; name one: {', '.join(shorten(str(folder / split)) for split in splits)}"
        )
    files = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in (".arrow", ".parquet"))
    if not files:
        raise InputError(
            f"{shorten(name)}: is a folder; name a file in it, or a quoted pattern such as '{folder / '*.jsonl'}'"
        )
    return files


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        real = path if path == "-" else os.path.realpath(path)
        if real in seen:
            raise InputError(f"{shorten(path)}: is named twice; its rows would come twice, with the same ids")
        seen[real] = path


def _labels(paths: Sequence[str]) -> list[str]:
    """Name each path for ids and messages: by its last part where that tells it from the others."""
    short = ["stdin" if path == "-" else os.path.basename(os.path.abspath(path)) for path in paths]
    often = Counter(short)
    return [_printable(name if often[name] == 1 else path) for name, path in zip(short, paths, strict=True)]


def _printable(name: str) -> str:
    """Escape what would break a line of output; two names stay two names."""
    text = name.replace("\\", "\\\\") if not name.isprintable() else name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _dataset(folder: Path, label: str, limits: Limits) -> Part:
    """Open a folder that ``Dataset.save_to_disk`` wrote: ``state.json`` names its Arrow streams. Data alone is read."""
    state = _state(folder)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            f"{folder}: is a selection of rows, which older versions saved so; save flatten_indices() of it"
        )
    listed = state.get("_data_files")
    files: list[File] = []
    for item in listed if isinstance(listed, list) else []:
        name = item.get("filename") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name or os.path.basename(name) != name or name in (".", ".."):
            raise InputError(f"{folder / _STATE}: '{shorten(str(name), 80)}' is no name of a file in this folder")
        files.append(opened_file(folder / name, f"{label}/{_printable(name)}"))
    if not files:
        raise InputError(f"{folder / _STATE}: names no data files, so this is no saved dataset")
    return _arrow_part(label, files, "arrow", limits)


def _state(folder: Path) -> dict[str, Any]:
    path = folder / _STATE
    try:
        if path.stat().st_size > _LARGEST_STATE:
            raise InputError(f"{path}: is too large to be the state of a dataset")
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {shorten(str(error))}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: is no state of a dataset")
    return state
