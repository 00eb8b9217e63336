"""Where the rows of a run come from: ``--text``, ``--json``, ``--input``, stdin."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO, Any

from pipeline_kit.cli.stdio import is_terminal
from pipeline_kit.errors import InputError, UsageError
from pipeline_kit.files.json_text import parse_example
from pipeline_kit.files.read.columns import Columns
from pipeline_kit.files.read.formats import FORMATS, Format, made_of_lines
from pipeline_kit.files.read.opened import DecompressionLimits, same_throughout, stdin_bytes
from pipeline_kit.files.read.parts import InputConfig, InputPart
from pipeline_kit.files.read.paths import (
    Record,
    expand_patterns,
    is_pipe,
    known_rows,
    parts_of,
    read_parts,
    read_records,
)
from pipeline_kit.files.read.source import PythonPart, Source

_ORDER = "rows are taken from --text, then --json, then --input, then (if none) stdin"


def add_input_flags(parser: argparse.ArgumentParser, order: str = _ORDER) -> None:
    """Add the flags that say what to run on; `order` says where rows are looked for."""
    group = parser.add_argument_group("input", order)
    group.add_argument("--text", metavar="TEXT", action="append", default=[], help="a text; repeatable")
    group.add_argument(
        "--json", metavar="OBJECT", dest="json_rows", action="append", default=[], help="an example as JSON; repeatable"
    )
    add_file_flags(group, FORMATS)


def add_file_flags(group: argparse._ArgumentGroup, formats: Sequence[str]) -> None:
    """Add the flags that name files and say what is in them."""
    group.add_argument(
        "--input",
        "-i",
        metavar="FILE",
        action="append",
        default=[],
        help="a file, a quoted pattern, a saved dataset's folder, a URL of one (s3://bucket/in.jsonl), - for stdin; "
        "repeatable",
    )
    otherwise = ", else text" if "text" in formats else ""
    group.add_argument(
        "--input-format",
        metavar="|".join(formats),
        help=f"or a plugin's, see: pipeline-kit ls input_format; default: by the file's ending{otherwise}",
    )
    group.add_argument(
        "--fields",
        metavar="FIELD=COLUMN",
        action="append",
        default=[],
        help="take a field from another column or key, such as text=review_body; repeatable",
    )


@dataclass
class Inputs:
    """The rows of ``--text``, ``--json`` and ``--input``, in this order, which can be gone through more than once."""

    examples: list[str | dict[str, Any]]
    files: list[str]
    _spooled: IO[bytes] | None = field(default=None, init=False)
    _parts: dict[tuple[str | None, Format | None, DecompressionLimits], list[InputPart]] = field(
        default_factory=dict, init=False
    )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Inputs:
        """Read parsed flags.

        :raises UsageError: if there is nothing to run on, or a flag's value is not of its form.
        """
        examples: list[str | dict[str, Any]] = list(getattr(args, "text", ()))
        for text in getattr(args, "json_rows", ()):
            try:
                examples.append(parse_example(text))
            except InputError as error:
                raise UsageError(f"--json: {error}") from error
        files = expand_patterns(args.input)
        if not examples and not files:
            if sys.stdin is None or is_terminal(sys.stdin):
                raise UsageError(
                    'nothing to run on. Try: pipeline-kit run --text "I love this."\n'
                    "  or pass a file: pipeline-kit run --input reviews.csv --output labels.jsonl"
                )
            files = ["-"]
        if "-" in files:
            stdin_bytes()  # before a model is loaded
        return cls(examples, files)

    @contextmanager
    def spooled_stdin(self, several: bool) -> Iterator[None]:
        """While the body lasts, keep a copy of stdin if it will be read `several` times."""
        if not several or "-" not in self.files:
            yield
            return
        with tempfile.TemporaryFile() as copy:
            with same_throughout(stdin_bytes()) as stream:
                shutil.copyfileobj(stream, copy)
            self._spooled = copy
            yield

    def records(self, options: InputConfig, takes: Sequence[str]) -> Iterator[Record]:
        """Go through all rows as they come, stdin as it is written; of `options` the format and the fields count.

        :param takes: the task's fields, see :class:`~pipeline_kit.compose.schema.TaskConfig`.
        :raises UsageError: if ``input.fields`` names a field that the task does not have.
        :raises InputError: at once, before any model is loaded, if a file cannot be read or lacks a column; later, if
            one is no longer what it was then.
        """
        fields = Columns.of(takes, options.fields)
        for name in self.files:
            if name != "-" and not is_pipe(name):
                next(self._file(name, options.format, fields), None)
        return chain(self.examples, *[self._file(name, options.format, fields) for name in self.files])

    def first(self, options: InputConfig, takes: Sequence[str], most: int) -> list[Record]:
        """Return the first rows, `most` of them if there are so many; raise as :meth:`records` does."""
        found = list(islice(self.records(options, takes), most))
        for part in chain.from_iterable(self._parts.values()):
            part.unchanged()
        return found

    def count(self, format: Format | None) -> int | None:
        """Count the rows, roughly and fast, for a progress bar; None if that cannot be known."""
        total = len(self.examples)
        for name in self.files:
            if not made_of_lines(name, format):
                rows = known_rows(name, format)
                if rows is None:
                    return None
                total += rows
                continue
            if not os.path.isfile(name):  # one in a store is not read twice for a bar
                return None
            try:
                with open(name, "rb") as stream:
                    while block := stream.read(1 << 20):
                        total += block.count(b"\n")
            except OSError:
                return None
        return total

    def source(self, options: InputConfig, takes: Sequence[str]) -> Source:
        """Open the rows that `options` choose, and look for the columns. Stdin and pipes are copied.

        :param takes: the task's fields, see :class:`~pipeline_kit.compose.schema.TaskConfig`.
        :raises UsageError: if ``input.fields`` names another field.
        :raises InputError: if something cannot be read here, or lacks a column.
        """
        columns = Columns.of(takes, options.fields, options.id, options.carry)
        key = (None, options.format, DecompressionLimits(options.max_decompressed_bytes, options.max_ratio))
        if key not in self._parts:
            if self._parts and "-" in self.files:
                raise UsageError(
                    "a sweep over input.format, input.max_ratio or input.max_decompressed_bytes would read stdin in "
                    "several ways, and it can be read once; put it into a file"
                )
            examples: list[InputPart] = [PythonPart(self.examples, "arguments")] if self.examples else []
            self._parts[key] = [*examples, *parts_of(self.files, *key[1:])]
        source = Source(self._parts[key], options, columns)
        source.check()
        return source

    def close(self) -> None:
        """Remove the copies."""
        for part in chain.from_iterable(self._parts.values()):
            part.close()

    def _file(self, name: str, format: Format | None, fields: Columns) -> Iterator[Record]:
        if name == "-" and self._spooled is not None:
            self._spooled.seek(0)
            return read_records(self._spooled, format=format, columns=fields)  # type: ignore[arg-type]
        if name == "-" or is_pipe(name):
            return read_records(name, format=format, columns=fields)
        key = (name, format, DecompressionLimits())
        if key not in self._parts:  # kept, so that a file that changes between two readings is found out
            self._parts[key] = parts_of([name], *key[1:])
        return read_parts(self._parts[key], fields)
