"""Arrow columns as JSON values, whatever bytes a hostile file has in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pyarrow as pa

from pipeline_kit.errors import InputError, for_message
from pipeline_kit.files.read.columns import base64_text, finite_or_none, fraction_of_second, iso_duration

Convert = Callable[[Any], Any]

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_EPOCH = datetime(1970, 1, 1)
_DIGITS = {32: 9, 64: 18, 128: 38, 256: 76}
"""The most digits of a decimal, by its bits; a larger scale has no use, and Python's decimals do not take it."""
_EPOCH_DAY = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class ColumnReader:
    """How a column of one type is read.

    :param raw: the type it is looked at as: texts as bytes and times as integers, which hold whatever the file has.
    :param convert: from a cell of that to a JSON value; None where they are the same. Raises ValueError.
    """

    raw: Any
    convert: Convert | None = None


def reading_of(kind: Any, text: bool) -> ColumnReader:
    """Plan how a column of the Arrow type `kind` is read.

    :param text: whether bytes in it are texts; they become base64 otherwise.
    :raises InputError: if it has no meaning in JSON.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    reading = _reading(kind, text)
    try:
        _storage(pa.array([], kind)).view(reading.raw)
    except (pa.ArrowException, NotImplementedError) as error:
        raise _no_json(kind) from error
    return reading


def cells_of(column: Any, reading: ColumnReader) -> list[Any]:
    """Return the cells of an Arrow array; one that cannot be read is an InputError.

    :raises pyarrow.ArrowException: if the array is damaged, so that a cell is outside its data.
    """
    column = _storage(column)
    if pa.types.is_dictionary(column.type):
        words = _checked(column.dictionary, reading)
        indices = column.indices
        indices.validate(full=True)
        raw = words.take(indices)  # it checks that each is in bounds
    else:
        raw = _checked(column, reading)
    values: list[Any] = raw.to_pylist()
    if reading.convert is None:
        return values
    return [None if value is None else _cell(reading.convert, value) for value in values]


def _checked(column: Any, reading: ColumnReader) -> Any:
    raw = _storage(column).view(reading.raw)
    raw.validate(full=True)
    return raw


def _storage(column: Any) -> Any:
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


def _cell(convert: Convert, value: Any) -> Any:
    try:
        return convert(value)
    except UnicodeDecodeError as error:
        return InputError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the cell")
    except (ValueError, OverflowError) as error:
        return InputError(f"the cell has no JSON value: {for_message(str(error))}")


def _no_json(kind: Any) -> InputError:
    return InputError(f"the type {for_message(str(kind), 80)} has no JSON value; cast the column to another")


def _reading(kind: Any, text: bool) -> ColumnReader:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return ColumnReader(kind.storage_type, lambda value: str(UUID(bytes=value)))
        return _reading(kind.storage_type, text)
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind):
        return ColumnReader(kind)
    if types.is_floating(kind):
        return ColumnReader(kind, finite_or_none)
    if types.is_decimal(kind) and abs(kind.scale) <= _DIGITS[kind.bit_width]:
        return ColumnReader(kind, lambda value: format(value, "f"))
    if kind in _TEXTS:
        return ColumnReader(_TEXTS[kind], bytes.decode)
    if any(test(kind) for test in _BYTES):
        return ColumnReader(kind, bytes.decode if text else base64_text)
    return _time(kind) if types.is_temporal(kind) else _nested(kind, text)


def _time(kind: Any) -> ColumnReader:
    types = pa.types
    if types.is_date32(kind):
        return ColumnReader(pa.int32(), _day)
    if types.is_date64(kind):
        return ColumnReader(pa.int64(), lambda value: _day(value // 86_400_000))
    if types.is_interval(kind):
        raise _no_json(kind)
    per_second = _PER_SECOND[kind.unit]
    if types.is_duration(kind):
        return ColumnReader(pa.int64(), lambda value: iso_duration(value, per_second))
    if types.is_timestamp(kind):
        zone = "" if kind.tz is None else "+00:00"
        return ColumnReader(pa.int64(), lambda value: _moment(value, per_second) + zone)
    raw = pa.int32() if types.is_time32(kind) else pa.int64()
    return ColumnReader(raw, lambda value: _clock(value, per_second))


def _nested(kind: Any, text: bool) -> ColumnReader:
    types = pa.types
    if types.is_map(kind):
        return _map(kind, text)
    if types.is_struct(kind):
        return _struct(kind, text)
    for test, build in _LISTS:
        if test(kind):
            item = _reading(kind.value_type, text)
            if _weightless(item.raw):  # a file of 1 kB could hold a list of 2 billion of them
                raise _no_json(kind)
            return ColumnReader(build(kind, item.raw), None if item.convert is None else partial(_each, item.convert))
    raise _no_json(kind)


def _struct(kind: Any, text: bool) -> ColumnReader:
    names = [kind.field(place).name for place in range(kind.num_fields)]
    if len(set(names)) < len(names):
        raise InputError(f"the type {for_message(str(kind), 80)} has a name twice")
    inner = {name: _reading(kind.field(place).type, text) for place, name in enumerate(names)}
    converts = {name: reading.convert for name, reading in inner.items()}

    def convert(value: dict[str, Any]) -> dict[str, Any]:
        return {name: _one(converts[name], cell) for name, cell in value.items()}

    return ColumnReader(pa.struct([(name, reading.raw) for name, reading in inner.items()]), convert)


def _map(kind: Any, text: bool) -> ColumnReader:
    """Plan for a map: an object where the keys are texts, a list of pairs otherwise."""
    key, item = _reading(kind.key_type, text), _reading(kind.item_type, text)
    named = kind.key_type in _TEXTS

    def convert(value: list[tuple[Any, Any]]) -> Any:
        pairs = [[_one(key.convert, name), _one(item.convert, cell)] for name, cell in value]
        if not named:
            return pairs
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a map has a key twice")
        return found

    return ColumnReader(pa.map_(key.raw, item.raw), convert)


def _one(convert: Convert | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _each(convert: Convert, values: list[Any]) -> list[Any]:
    return [None if value is None else convert(value) for value in values]


def _day(days: int) -> str:
    return date.fromordinal(_EPOCH_DAY + days).isoformat()


def _moment(units: int, per_second: int) -> str:
    seconds, rest = divmod(units, per_second)
    return (_EPOCH + timedelta(seconds=seconds)).isoformat() + fraction_of_second(rest, per_second)


def _clock(units: int, per_second: int) -> str:
    seconds, rest = divmod(units, per_second)
    if not 0 <= seconds < 86_400:
        raise ValueError(f"{units} is not a time of a day")
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}" + fraction_of_second(rest, per_second)


def _weightless(kind: Any) -> bool:
    """Return whether values of a type take no bytes in a file, however many they are."""
    types = pa.types
    if types.is_fixed_size_list(kind):
        return kind.list_size == 0 or _weightless(kind.value_type)
    fields = [kind.field(place).type for place in range(kind.num_fields)] if types.is_struct(kind) else []
    return bool(types.is_null(kind)) or (types.is_struct(kind) and all(map(_weightless, fields)))


_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
_TEXTS = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_LISTS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Any], Any]], ...] = (
    (pa.types.is_list, lambda kind, item: pa.list_(item)),
    (pa.types.is_large_list, lambda kind, item: pa.large_list(item)),
    (pa.types.is_fixed_size_list, lambda kind, item: pa.list_(item, kind.list_size)),
    (pa.types.is_list_view, lambda kind, item: pa.list_view(item)),
    (pa.types.is_large_list_view, lambda kind, item: pa.large_list_view(item)),
)
