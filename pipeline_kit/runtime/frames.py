"""Rows from what Python programs hold data in, and results into it: pandas, polars, pyarrow, datasets, numpy.

None of these libraries is imported: a value of theirs comes from a program that has done so. A frame is never iterated,
since that yields columns here and rows there; its columns are read by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_kit.contract.column_types import COUNTS, ColumnType, holds, library_type
from pipeline_kit.contract.fields import is_missing
from pipeline_kit.contract.types import Example, Result
from pipeline_kit.errors import ExampleError, UsageError, did_you_mean, for_message

READABLE = "a pandas or polars DataFrame, a pyarrow Table, or a Dataset of the library datasets"

Columns = dict[str, tuple[list[Any], ColumnType | None]]
"""The values of each column with their type; None: the values show it."""
Fields = Mapping[str, str | None] | None
"""For fields of the task the column that holds each; None for a field to leave out."""


@dataclass(frozen=True)
class SizedRows:
    """Rows to come of a list. It has a length, so chunks are whole windows from the first on, as for the list."""

    rows: Iterable[Example]
    count: int

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    def __len__(self) -> int:
        return self.count


def is_from(value: object, library: str, *names: str) -> bool:
    """Return whether `value` is of one of the classes `names` of `library`, without importing it."""
    kinds = [getattr(sys.modules.get(library), name, None) for name in names]
    return any(isinstance(value, kind) for kind in kinds if isinstance(kind, type))


def is_frame(value: object) -> bool:
    """Return whether `value` is a table that can be read.

    :raises UsageError: if it is a table, or several, of a kind that is not read.
    """
    if any(is_from(value, library, *types) for library, (types, _) in _ADD.items()):
        return True
    if is_streamed(value) or not any(hasattr(type(value), name) for name in ("columns", "column_names")):
        return False
    name = type(value).__name__
    if isinstance(value, Mapping):
        parts = ", ".join(repr(str(part)) for part in value)
        raise UsageError(f"a {name} holds several tables: {parts}. Pass one of them: data[{next(iter(value), '')!r}]")
    way = next((f": frame.{way}()" for way in ("collect", "to_pandas") if hasattr(value, way)), "")
    raise UsageError(f"a {name} is not read as it is; pass {READABLE}{way}")


def is_streamed(value: object) -> bool:
    """Return whether `value` is a dataset whose rows are read only once they are asked for."""
    return is_from(value, "datasets", "IterableDataset")


def is_example(inputs: object) -> bool:
    """Return whether `inputs` is one example: a text or a mapping of fields, and not a mapping of tables."""
    return isinstance(inputs, str) or (isinstance(inputs, Mapping) and not hasattr(type(inputs), "column_names"))


def rows_of(inputs: Any, takes: Sequence[str], fields: Fields = None) -> Iterable[Any]:
    """Return `inputs`, one example or several, as examples; what has a length keeps it.

    :raises ExampleError: if it is neither.
    :raises UsageError: if it is a frame without the task's fields, see :func:`frame_rows`; or `fields` are named for
        anything but a frame.
    """
    one = is_example(inputs)
    if not one and is_frame(inputs):
        return frame_rows(inputs, takes, fields)
    if is_streamed(inputs):
        singles = ({name: [value] for name, value in row.items()} for row in inputs.with_format(None))
        return (row for single in singles for row in frame_rows(single, takes, fields))
    if fields:
        raise UsageError(f"fields names columns, and a {type(inputs).__name__} has none; pass {READABLE}")
    if one:
        return [inputs]
    if is_from(inputs, "numpy", "ndarray") and inputs.ndim != 1:
        hint = "; pass one of its columns: array[:, 0]" if inputs.ndim == 2 else ""
        raise ExampleError(f"an array of examples has one dimension, this one has {inputs.ndim}{hint}")
    if not hasattr(inputs, "__iter__") and hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        return SizedRows(map(inputs.__getitem__, range(len(inputs))), len(inputs))  # such as a Dataset of torch
    if isinstance(inputs, bytes | bytearray) or not hasattr(inputs, "__iter__"):
        raise ExampleError(f"a pipeline takes a text, a mapping, or several of them, not {type(inputs).__name__}")
    # An arrow column yields scalars of its own.
    rows: Iterable[Any] = inputs.to_pylist() if is_from(inputs, "pyarrow", "Array", "ChunkedArray") else inputs
    return rows


def frame_rows(frame: Any, takes: Sequence[str], fields: Fields) -> list[Example | None]:
    """Return the rows of a frame as mappings of the task's fields, which are the columns of their names.

    :param takes: the task's fields, a ``?`` behind one that may be left out.
    :param fields: other columns for some of them.
    :returns: None for a row where a field that the task needs has no value.
    :raises UsageError: naming the columns there are, if one is missing or there twice.
    """
    names, known, chosen = names_of(frame), [name.removesuffix("?") for name in takes], fields or {}
    for name in chosen:
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(f"fields: the task takes {', '.join(known)}, and not '{for_message(name)}'.{near}")
    wanted = {name: chosen.get(name, name) for name in known}
    needed = frozenset(name for name in takes if not name.endswith("?") and wanted[name] is not None)
    found = {name: column for name, column in wanted.items() if column is not None and column in names}
    lacking = [name for name in known if name not in found and (name in needed or chosen.get(name))]
    if lacking or not found:
        column, texts = wanted[field := (lacking or known)[0]] or field, [str(name) for name in names]
        shown = ", ".join(f"'{for_message(name, 60)}'" for name in texts[:20]) + (", …" if len(texts) > 20 else "")
        raise UsageError(
            f"the frame has no column '{for_message(column)}'; its columns: {shown or 'none'}."
            f"{did_you_mean(column, texts)} Name the column that holds it: fields={{'{field}': 'COLUMN'}}"
        )
    for column in found.values():
        if names.count(column) > 1:
            raise UsageError(f"the frame has {names.count(column)} columns called '{for_message(column)}'; rename one")
    rows: list[Example | None] = []
    for values in zip(*(_values(frame, column) for column in found.values()), strict=True):
        row = {name: _plain(value) for name, value in zip(found, values, strict=True) if not is_missing(value)}
        rows.append(row if row and needed <= row.keys() else None)
    return rows


def names_of(frame: Any) -> list[Any]:
    """Return the columns of a frame, or of a mapping of lists, in order."""
    return list(frame) if isinstance(frame, Mapping) else list(getattr(frame, "column_names", None) or frame.columns)


def _values(frame: Any, name: Any) -> Any:
    """Return the values of a column as Python's own."""
    if is_from(frame, "pyarrow", "Table", "RecordBatch"):
        return frame.column(name).to_pylist()
    if is_from(frame, "datasets", "Dataset"):
        return frame.with_format(None)[name][:]
    return frame[name] if isinstance(frame, Mapping) else frame[name].to_list()


def _plain(value: Any) -> Any:
    if isinstance(value, str):  # most are, and a million of them are looked at
        return value
    return value.tolist() if is_from(value, "numpy", "ndarray", "generic") else value


def with_results(
    frame: Any, results: Sequence[Result | None], gives: Mapping[str, ColumnType | None], prefix: str
) -> Any:
    """Return a frame with results as more columns, null where a row has none; for a mapping of lists these alone.

    :param gives: the columns of a frame without rows, their order in any other, and their types.
    """
    found = dict.fromkeys(key for result in results if result for key in result)
    types = {**{name.removesuffix("?"): kind for name, kind in gives.items()}, **COUNTS}
    names = [name for name in types if name in found] + [name for name in found if name not in types]
    names = names or [name for name in gives if not name.endswith("?")]
    check_names(frame, names, prefix)
    values = {name: [result.get(name) if result else None for result in results] for name in names}
    add = next((add for library, (kinds, add) in _ADD.items() if is_from(frame, library, *kinds)), None)
    if add is None:
        return {prefix + name: column for name, column in values.items()}
    return add(frame, {prefix + name: (column, _type(column, types.get(name))) for name, column in values.items()})


def _type(values: Sequence[Any], kind: ColumnType | None) -> ColumnType | None:
    """Return `kind` if all values fit it."""
    return kind if kind is not None and all(holds(value, kind) for value in values) else None


def check_names(frame: Any, names: Iterable[str], prefix: str) -> None:
    """Raise a UsageError if the frame has a column with the name of a result already."""
    taken = [prefix + name for name in names if prefix + name in names_of(frame)]
    if taken:
        raise UsageError(
            f"the frame has a column '{for_message(taken[0])}' already, and results have one too; put something "
            f"before the names of the results: prefix='{prefix}result_'"
        )


def _add_to_pandas(frame: Any, columns: Columns) -> Any:
    """Keep the index, which may hold a value twice: the new columns are in the order of the rows."""
    series, more = sys.modules["pandas"].Series, {}
    # With room for None; text as pandas itself would hold it.
    nullable: dict[str, Any] = {"int64": "Int64", "bool": "boolean", "string": series([""]).dtype}
    for name, (values, kind) in columns.items():
        # Integers beside None would become floats, and pandas would look into lists for a type.
        types = {type(value) for value in values}
        if kind is None:
            kind = "int64" if types == {int, type(None)} else {} if not types or types & {list, dict} else None
        dtype = "object" if isinstance(kind, Mapping) else kind
        if dtype is not None and (dtype == "string" or type(None) in types):
            dtype = nullable.get(dtype, dtype)
        more[name] = series(values, index=frame.index, dtype=dtype)
    return frame.assign(**more)


def _add_to_polars(frame: Any, columns: Columns) -> Any:
    pl = sys.modules["polars"]
    scalars = {"string": pl.String, "int64": pl.Int64, "float64": pl.Float64, "float32": pl.Float32, "bool": pl.Boolean}
    more = []
    for name, (values, kind) in columns.items():
        dtype = None if kind is None else library_type(kind, scalars, pl.List, lambda parts: pl.Struct(dict(parts)))
        # strict=False: 1 beside 2.5 is a float, and a struct has the keys of all entries, not those of the first one.
        more.append(pl.Series(name, values, dtype, strict=False))
    return frame.with_columns(more)


def _arrow_type(kind: ColumnType | None) -> Any:
    pa = sys.modules["pyarrow"]
    scalars = {name: getattr(pa, name)() for name in ("string", "int64", "float64", "float32")} | {"bool": pa.bool_()}
    return None if kind is None else library_type(kind, scalars, pa.list_, pa.struct)


def _add_to_arrow(frame: Any, columns: Columns) -> Any:
    for name, (values, kind) in columns.items():
        frame = frame.append_column(name, sys.modules["pyarrow"].array(values, _arrow_type(kind)))
    return frame


def _add_to_dataset(frame: Any, columns: Columns) -> Any:
    schema, features = sys.modules["pyarrow"].schema, sys.modules["datasets"].Features
    for name, (values, kind) in columns.items():
        typed = None if kind is None else features.from_arrow_schema(schema([(name, _arrow_type(kind))]))[name]
        frame = frame.add_column(name, values, feature=typed)
    return frame


_ADD: Mapping[str, tuple[tuple[str, ...], Callable[[Any, Columns], Any]]] = {
    "pandas": (("DataFrame",), _add_to_pandas),
    "polars": (("DataFrame",), _add_to_polars),
    "pyarrow": (("Table", "RecordBatch"), _add_to_arrow),
    "datasets": (("Dataset",), _add_to_dataset),
}
"""For each library its classes, and what returns one with more columns, its own ones as they are."""
