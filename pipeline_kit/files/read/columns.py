"""Which columns of a row are the example, its id and what is carried into the output."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple, final
from uuid import UUID

from pipeline_kit.errors import InputError, UsageError, did_you_mean, for_message
from pipeline_kit.files.json_text import has_lone_surrogate

RawRow = str | Mapping[str, Any] | InputError
"""A text, the cells by column, or why the row could not be read. A cell that could not be read is an InputError."""

NOTHING: Any = object()
EVERY = "*"
"""Stands in ``input.carry`` for every column that has a place in the output."""


class ParsedRow(NamedTuple):
    """What was taken of a row.

    :param example: the example, or why there is none.
    :param id: the id; None if the row has none that can be used.
    :param carried: JSON values by column; empty if the row could not be read.
    """

    example: str | dict[str, Any] | InputError
    id: str | None
    carried: dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns (or JSON keys) that are read; all others are left out.

    :param fields: each field of the example, and the column it comes from.
    :param required: the fields that must be there.
    :param id: the column that holds the row's id; None for none.
    :param carry: the columns copied into the output.
    :param option: the option that renames a field, for messages.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    id: str | None = None
    carry: tuple[str, ...] = ()
    option: str = "--fields "

    @classmethod
    def of(
        cls,
        takes: Sequence[str],
        mapping: Mapping[str, str] | None = None,
        id: str | None = None,
        carry: Sequence[str] = (),
        option: str = "input.fields.",
    ) -> Columns:
        """Read a task's ``takes`` and the options ``input.fields``, ``input.id`` and ``input.carry``.

        :param takes: names of fields, a ``?`` behind one that may be left out.
        :param mapping: takes some fields from other columns; those columns must then be there.
        :raises UsageError: if `mapping` names a field that the task does not have.
        """
        mapping = mapping or {}
        names = [name.removesuffix("?") for name in takes]
        for name, column in mapping.items():
            if name not in names:
                raise UsageError(
                    f"{option}{for_message(f'{name}={column}', 80)}: the fields are "
                    f"{', '.join(names)}.{did_you_mean(name, names)}"
                )
        required = dict.fromkeys((*(name for name in takes if not name.endswith("?")), *mapping))
        carried = tuple(column for column in carry if column != EVERY)  # which these are only the files know
        return cls({name: mapping.get(name, name) for name in names}, tuple(required), id, carried, option)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The columns other than the fields', each once."""
        return tuple(dict.fromkeys((*(() if self.id is None else (self.id,)), *self.carry)))

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        return tuple(dict.fromkeys((*self.fields.values(), *self.named)))

    @cached_property
    def texts(self) -> frozenset[str]:
        """The columns in which bytes are text."""
        return frozenset((*self.fields.values(), *(() if self.id is None else (self.id,))))

    @cached_property
    def _fields(self) -> tuple[tuple[str, str, bool], ...]:
        return tuple((name, column, name in self.required) for name, column in self.fields.items())

    @property
    def without_fields(self) -> Columns:
        """The same without the example."""
        return replace(self, fields={}, required=())

    def check(self, there: Sequence[str]) -> None:
        """See that the columns `there` have all that must be, and one field at least.

        :raises InputError: naming the columns there are and the closest one.
        """
        for column in self.carry:
            if has_lone_surrogate(column):
                raise InputError(
                    f"the name of the column '{for_message(column, 60)}' is not UTF-8, so it cannot be written; "
                    "convert the file: iconv -f ISO-8859-1 -t UTF-8 OLD-FILE > NEW-FILE"
                )
        self._check_required(there)
        if self.fields and not any(column in there for column in self.fields.values()):
            wanted = " or ".join(f"'{for_message(column, 60)}'" for column in self.fields.values())
            raise InputError(
                f"there is no column {wanted}; there are: {_listed(there)}."
                f" To take another: {self.option}{next(iter(self.fields))}=COLUMN"
            )
        for column in self.named:
            if column not in there:
                option = "input.id" if column == self.id else "input.carry"
                raise InputError(
                    f"'{for_message(column, 60)}' of {option} is missing; there are: {_listed(there)}."
                    + did_you_mean(column, there)
                )

    def _check_required(self, there: Sequence[str]) -> None:
        for name in self.required:
            wanted = self.fields[name]
            if wanted not in there:
                raise InputError(
                    f"'{for_message(wanted, 60)}' is missing; there are: {_listed(there)}.{did_you_mean(wanted, there)}"
                    f" To take another: {self.option}{name}=COLUMN"
                )

    def parse(self, row: RawRow, absent: Any = NOTHING) -> ParsedRow:
        """Take what is wanted of a row.

        :param absent: what an empty cell holds in this format; a field that may be left out is, where it has that.
        """
        if isinstance(row, InputError):
            return ParsedRow(row, None, {})
        problem, id = None, None
        if self.id is not None:
            try:
                id = self._id(row)
            except InputError as error:
                problem = error
        carried: dict[str, Any] = {}
        for column in self.carry:
            try:
                carried[column] = self._carried(row, column)
            except InputError as error:
                problem = problem or InputError(f"the column '{for_message(column, 60)}' {error}")
        if problem is not None:
            return ParsedRow(problem, id, carried)
        try:
            return ParsedRow(self._example(row, absent), id, carried)
        except InputError as error:
            return ParsedRow(error, id, carried)

    def _example(self, row: str | Mapping[str, Any], absent: Any) -> str | dict[str, Any]:
        if isinstance(row, str):
            if has_lone_surrogate(row):
                raise InputError("the text has a lone surrogate, which no encoder can represent")
            return row
        example: dict[str, Any] = {}
        for name, column, required in self._fields:
            value = row.get(column, NOTHING)
            if value is NOTHING:
                if required:
                    self._check_required([str(key) for key in row])
                continue
            if isinstance(value, InputError):
                raise InputError(f"the field '{name}': {value}")
            if value is None and required:
                raise InputError(f"the field '{name}' is null")
            if has_lone_surrogate(value):
                raise InputError(f"the field '{name}' has a lone surrogate, which no encoder can represent")
            if required or not (value is absent or (isinstance(value, str) and value == absent)):
                example[name] = value
        return example

    def _id(self, row: str | Mapping[str, Any]) -> str:
        if isinstance(row, str):
            raise InputError(f"the row is a text alone, without the id column '{for_message(self.id, 60)}'")
        value = row.get(self.id, NOTHING) if self.id is not None else NOTHING
        if value is NOTHING:
            raise InputError(f"the id column '{for_message(self.id, 60)}' is missing")
        if isinstance(value, InputError):
            raise InputError(f"the id: {value}")
        return id_text(value)

    @staticmethod
    def _carried(row: str | Mapping[str, Any], column: str) -> Any:
        value = None if isinstance(row, str) else row.get(column)
        if isinstance(value, InputError):
            raise InputError(f"cannot be carried: {value}")
        return json_value(value)


@dataclass(frozen=True)
class AllColumns(Columns):
    """Asks for nothing, and notes in `there` what columns there are."""

    there: list[str] = field(default_factory=list)

    def check(self, there: Sequence[str]) -> None:
        """Note the columns."""
        self.there.extend(there)


def _listed(there: Sequence[str]) -> str:
    return for_message(", ".join(there), 300) if there else "none"


TEXT_FIELDS = Columns.of(("text", "text_pair?"), option="--fields ")
"""The fields of the tasks that read a text and, some of them, a second one."""


def json_value(value: Any) -> Any:
    """Return `value` as JSON values alone.

    NaN and the infinities become null. Dates and times become ISO 8601 text, with a time zone as UTC; lengths of
    time become ``PT12.5S``; decimals exact text; bytes base64; numpy's scalars and arrays what ``tolist`` returns.

    :raises InputError: for any other type, a key that is not a string, a text that UTF-8 cannot represent,
        and nesting too deep to be followed.
    """
    try:
        return _value(value)
    except RecursionError as error:
        raise InputError("is nested too deep") from error


def iso_duration(units: int, per_second: int) -> str:
    """Write a length of time as ISO 8601 does, in seconds alone: ``PT90S``, ``-PT0.5S``."""
    whole, rest = divmod(abs(units), per_second)
    return f"{'-' if units < 0 else ''}PT{whole}{fraction_of_second(rest, per_second)}S"


def fraction_of_second(units: int, per_second: int) -> str:
    """Write what is left of a second as decimals: ``.5``, nothing for 0."""
    digits = len(str(per_second)) - 1
    return f".{units:0{digits}d}".rstrip("0") if units else ""


def finite_or_none(value: float) -> float | None:
    """Return what JSON can hold of a number."""
    return float(value) if math.isfinite(value) else None


def base64_text(value: bytes | bytearray | memoryview) -> str:
    """Write bytes as base64."""
    return base64.b64encode(value).decode("ascii")


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise InputError("has a lone surrogate, which UTF-8 cannot represent")
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Mapping):
        return {_key(key): _value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_value(inner) for inner in value]
    return _other(value)


def _key(key: Any) -> str:
    if not isinstance(key, str) or has_lone_surrogate(key):
        raise InputError(f"has the key {for_message(key, 40)}, which is not a text")
    return str(key)


def _other(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return iso_duration(value // timedelta(microseconds=1), 1_000_000)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, bytes | bytearray | memoryview):
        return base64_text(value)
    if isinstance(value, UUID):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return _value(value.tolist())
    raise InputError(f"is of the type {type(value).__name__}, which is not a JSON value")


MAX_ID = 1024
"""The most characters of an id: it stands in every output row and message."""


def id_text(value: Any) -> str:
    """Return the id that a cell holds; a number becomes its text, so 7 and "7" are the same id.

    :raises InputError: if it is missing, empty, too long, or no text or number.
    """
    if isinstance(value, str):
        if not value:
            raise InputError("the id is empty")
        if len(value) > MAX_ID:
            raise InputError(f"the id is longer than {MAX_ID} characters: {for_message(value, 40)}")
        if has_lone_surrogate(value):
            raise InputError("the id has a lone surrogate, which UTF-8 cannot represent")
        return value
    if value is None:
        raise InputError("the id is null")
    if hasattr(value, "item") and hasattr(value, "dtype"):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 256:
            raise InputError("the id is a number of more than 77 digits")
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    raise InputError(f"the id is {type(value).__name__}, not a text or a number: {for_message(value, 40)}")


def id_hash(id: str) -> int:
    """Return the 8 bytes by which ids are compared; never 0."""
    return int.from_bytes(blake2b(id.encode("utf-8"), digest_size=8).digest(), "little") or 1


@final
class IdSet:
    """The ids so far, as hashes of 8 bytes in a table with open addressing.

    A million ids take 16 MiB, where a ``set`` of them takes over 100. Two different ids share a hash, and the second
    is then taken for a duplicate, with a chance of 3 in 100 million for a million ids. Which ids do so is the same in
    every run.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 << 10))
        self._count = 0

    def add(self, id: str) -> bool:
        """Remember `id`; False if it was there before."""
        if not self._put(id_hash(id)):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def _put(self, value: int) -> bool:
        slots = self._slots
        mask = len(slots) - 1
        place = value & mask
        while held := slots[place]:  # 0 is an empty slot
            if held == value:
                return False
            place = (place + 1) & mask
        slots[place] = value
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for value in old:
            if value:
                self._put(value)
