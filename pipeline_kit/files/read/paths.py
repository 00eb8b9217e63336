"""From what a user names - files, patterns, folders, ``-`` - to the parts of the input."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline_kit.errors import InputError, RowFailure, UsageError, for_message
from pipeline_kit.files.read.columns import TEXT_FIELDS, Columns, ParsedRow
from pipeline_kit.files.read.formats import Format, format_from_magic, format_of, import_optional
from pipeline_kit.files.read.lines import LinePart, reader_of
from pipeline_kit.files.read.opened import (
    DecompressionLimits,
    File,
    SpooledFile,
    decompressed,
    head_of,
    opened_file,
    same_throughout,
    stdin_bytes,
)
from pipeline_kit.files.read.parts import InputPart, RowSelection, as_input_error
from pipeline_kit.files.storage.base import FileStatus, join_key, refuse_secrets, scheme_of
from pipeline_kit.files.storage.local import storage_of, stream_version

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_LARGEST_STATE = 16 << 20
_FEW = 8


def expand_patterns(names: Sequence[str | Path]) -> list[str]:
    """Return the files and folders that are named; a pattern such as ``data/*.jsonl`` stands for its files, sorted.

    A name that is there is never taken for a pattern. ``**`` goes through folders of any depth. Names may be URLs.

    :raises InputError: if a pattern matches no file, a name cannot be one, or a store cannot be listed.
    :raises UsageError: if stdin is named twice, or a URL may hold a secret.
    """
    found: list[str] = []
    for name in map(str, names):
        if "\0" in name:
            raise InputError(f"{for_message(name)}: cannot be read: a NUL character is in the name")
        if scheme_of(name) is not None:
            refuse_secrets(name)
        storage = storage_of(name)
        if name == "-" or not glob.has_magic(name) or os.path.lexists(name) or storage.kind(name) is not None:
            found.append(name)
            continue
        with _as_input_error(name):
            matches = storage.list(name)
            known = _stored_files(matches)
        files = [path for path in matches if path in known or storage.kind(path) != "folder"]
        if not files:
            raise InputError(f"{for_message(name)}: no file matches this pattern")
        found += files
    if found.count("-") > 1:
        raise UsageError("- can be named once: stdin is read once")
    return found


@contextmanager
def _as_input_error(name: str) -> Iterator[None]:
    """Put a name before the reason why its store cannot be listed."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{for_message(name)}: cannot be read: {error.strerror or error}") from error


def _stored_files(keys: Sequence[str]) -> dict[str, FileStatus]:
    """Look up the files of a store of which many are in one folder: listing it is one request for a thousand."""
    folders = Counter(key.rpartition("/")[0] for key in keys if scheme_of(key) is not None)
    found = {
        join_key(folder, name): status
        for folder, often in folders.items()
        if often > _FEW
        for name, status in storage_of(folder).files(folder).items()
        if status.kind == "file"
    }
    return {key: found[key] for key in keys if key in found}


def parts_of(names: Sequence[str | Path], format: Format | None, limits: DecompressionLimits) -> list[InputPart]:
    """Open what is named; a folder of Arrow or Parquet files that no dataset was saved to becomes a part for each.

    :param format: the format of every file; None: by its ending, else by its first bytes.
    :raises InputError: if something is not there, cannot be read here, or is named twice.
    :raises UsageError: if a library that it takes is not installed.
    """
    named = expand_patterns(names)
    with _as_input_error(", ".join(map(str, names))):
        found = _stored_files(named)
        paths = [inner for name in named for inner in ([name] if name in found else _in_folder(name))]
        found |= _stored_files([path for path in paths if path not in found])
    _refuse_twice(paths)
    labels = _labels(paths)
    return [_part(path, label, format, limits, found.get(path)) for path, label in zip(paths, labels, strict=True)]


def _part(
    path: str, label: str, format: Format | None, limits: DecompressionLimits, found: FileStatus | None
) -> InputPart:
    """Open one file, saved dataset or stdin; `found` is what is known of a file already."""
    if path != "-" and found is None and storage_of(path).kind(path) == "folder":
        return _dataset(path, label, limits)
    known = format or format_of(path)
    file: File = SpooledFile(label) if path == "-" else opened_file(path, label, found)
    if known == "text" and format is None:
        known = format_from_magic(LinePart(file, known, limits).head()) or known
    if known in ("parquet", "arrow"):
        return _arrow_part(label, [file], known, limits)
    return LinePart(file, known, limits)


def _arrow_part(label: str, files: Sequence[File], format: Format, limits: DecompressionLimits) -> InputPart:
    module = import_optional("pipeline_kit.files.read.arrow", "pyarrow", f"{label}: reading {format.capitalize()}")
    part: InputPart = module.ArrowPart(label, files, format, limits)
    return part


def _in_folder(name: str) -> list[str]:
    """Return the files of a folder of Arrow or Parquet files; anything else as it is."""
    storage = storage_of(name)
    if name == "-" or storage.kind(name) != "folder" or storage.kind(join_key(name, _STATE)) == "file":
        return [name]
    folder = name.removeprefix("./").rstrip("/") or name
    within = join_key(glob.escape(folder), "*")
    if storage.kind(join_key(name, _SPLITS)) == "file":
        splits = [os.path.dirname(path) for path in storage.list(join_key(within, _STATE))]
        raise InputError(f"{name}: holds several datasets; name one: {', '.join(map(for_message, splits))}")
    files = [path for path in storage.list(within) if path.lower().endswith((".arrow", ".parquet"))]
    if not files:
        raise InputError(
            f"{for_message(name)}: is a folder; name a file in it, or a quoted pattern such as "
            f"'{join_key(folder, '*.jsonl')}'"
        )
    return files


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        real = path if path == "-" or scheme_of(path) is not None else os.path.realpath(path)
        if real in seen:
            raise InputError(f"{for_message(path)}: is named twice; its rows would come twice, with the same ids")
        seen[real] = path


def _labels(paths: Sequence[str]) -> list[str]:
    """Name each path for ids and messages: by its last part where that is unique."""
    short = ["stdin" if path == "-" else _last_part(path) for path in paths]
    often = Counter(short)
    return [_printable(name if often[name] == 1 else path) for name, path in zip(short, paths, strict=True)]


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/") if scheme_of(path) is not None else os.path.abspath(path))


def _printable(name: str) -> str:
    """Escape what would break a line of output; two names stay two names."""
    text = name.replace("\\", "\\\\") if not name.isprintable() else name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _dataset(folder: str, label: str, limits: DecompressionLimits) -> InputPart:
    """Open a folder that ``Dataset.save_to_disk`` wrote: ``state.json`` names its Arrow streams. Data alone is read."""
    key = join_key(folder, _STATE)
    state = _state(key)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            f"{folder}: is a selection of rows, which older versions saved so; save flatten_indices() of it"
        )
    listed = state.get("_data_files")
    names: list[str] = []
    for item in listed if isinstance(listed, list) else []:
        name = item.get("filename") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name or os.path.basename(name) != name or name in (".", ".."):
            raise InputError(f"{key}: '{for_message(str(name), 80)}' is not a name of a file in this folder")
        names.append(name)
    if not names:
        raise InputError(f"{key}: names no data files, so this is not a saved dataset")
    keys = [join_key(folder, name) for name in names]
    with _as_input_error(folder):
        found = _stored_files(keys)
    files = [
        opened_file(key, f"{label}/{_printable(name)}", found.get(key)) for key, name in zip(keys, names, strict=True)
    ]
    return _arrow_part(label, files, "arrow", limits)


def _state(key: str) -> dict[str, Any]:
    try:
        with storage_of(key).open(key) as file:
            data = file.read(_LARGEST_STATE + 1)
        state = json.loads(data) if len(data) <= _LARGEST_STATE else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{key}: cannot be read: {for_message(str(error))}") from error
    if not isinstance(state, dict):
        raise InputError(f"{key}: is not a state of a dataset")
    return state


Record = str | dict[str, Any] | RowFailure
"""An example, or why a row has none: a failure of the stage ``input`` that names the line."""


def read_records(
    source: str | Path | BinaryIO, *, format: Format | None = None, columns: Columns = TEXT_FIELDS
) -> Iterator[Record]:
    """Go through the examples of `source` in bounded memory.

    :param source: a file, a pattern such as ``data/*.csv``, a saved dataset's folder, ``-`` for stdin, or an open
        binary stream. gzip and zstd are unpacked.
    :param format: None: by the file's ending, ``text`` where that says nothing. A ``text`` file has one
        example a line, empty lines too, so that the n-th result belongs to the n-th line; ``jsonl`` a string
        or an object a line, blank lines skipped; ``csv`` and ``tsv`` an example a row below the header;
        ``parquet`` and ``arrow`` one a row.
    :param columns: which columns or keys to take; the rest are left out.
    :returns: examples and, in the place of a bad row, failures; their index counts rows from 0.
    :raises InputError: if the file cannot be read or its header lacks a column; some of it at the first ``next``.
        At the end, if the file is another one than at the call.
    """
    if not isinstance(source, str | Path):
        return _numbered(_of_stream(source, str(getattr(source, "name", "input")), format, columns))
    if str(source) == "-":
        return _numbered(_of_stream(stdin_bytes(), "stdin", format, columns))
    if is_pipe(str(source)):
        return _numbered(_of_pipe(str(source), format or format_of(source), columns))
    return read_parts(parts_of([source], format, DecompressionLimits()), columns)


def read_parts(parts: Iterable[InputPart], columns: Columns) -> Iterator[Record]:
    """Go through the examples of `parts` as :func:`read_records` does; they can be gone through again."""
    return _numbered(
        (f"{part.label}, {part.unit} {place}", picked)
        for part in parts
        for place, picked in part.rows(columns, RowSelection())
    )


def known_rows(name: str, format: Format | None) -> int | None:
    """Count the rows of a file or a saved dataset; None if that takes long or goes wrong."""
    try:
        counts = [part.count(read=True) for part in parts_of([name], format, DecompressionLimits())]
    except (InputError, UsageError):
        return None
    return None if None in counts else sum(filter(None, counts))


def is_pipe(name: str) -> bool:
    """Return whether `name` is there and can be read once only, as named pipes and devices are."""
    return scheme_of(name) is None and storage_of(name).kind(name) == "stream"


def _numbered(rows: Iterable[tuple[str, ParsedRow | None]]) -> Iterator[Record]:
    """Go through rows, each with its place; a bad one becomes a failure that names it."""
    for index, (place, picked) in enumerate(rows):
        assert picked is not None, "all rows were asked for"
        if isinstance(picked.example, InputError):
            yield RowFailure(index, "input", "InputError", f"{place}: {picked.example}")
        else:
            yield picked.example


def _of_stream(
    stream: BinaryIO, label: str, format: Format | None, columns: Columns
) -> Iterator[tuple[str, ParsedRow | None]]:
    before = stream_version(stream)  # at once: a model may be loaded before the first row is asked for

    def rows() -> Iterator[tuple[str, ParsedRow | None]]:
        with as_input_error(label):
            known = format or format_from_magic(head_of(stream)) or "text"
            if known in ("parquet", "arrow"):
                what = known.capitalize()
                raise InputError(f"{what} is not read from a stream here; write it to a file and name that")
            with same_throughout(stream, before):
                reader = reader_of(known)(decompressed(stream, "", DecompressionLimits()))
                for line, picked in reader.rows(columns, RowSelection()):
                    yield f"{label}, line {line}", picked

    return rows()


def _of_pipe(key: str, format: Format, columns: Columns) -> Iterator[tuple[str, ParsedRow | None]]:
    with storage_of(key).open(key) as stream:
        yield from _of_stream(stream, os.path.basename(key), format, columns)
