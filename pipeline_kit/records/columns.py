"""Which columns of a row are the example, its id and what is carried into the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pipeline_kit.errors import InputError, UsageError, closest, shorten
from pipeline_kit.records.cells import json_value
from pipeline_kit.records.fields import Fields
from pipeline_kit.records.ids import id_text
from pipeline_kit.records.json import has_lone_surrogate

__all__ = ["NOTHING", "Columns", "Picked", "Row"]

Row = str | Mapping[str, Any] | InputError
"""A text, the cells by column, or why the row could not be read. A cell that could not be read is an InputError."""

NOTHING: Any = object()


class Picked(NamedTuple):
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
    """The columns that are taken.

    :param fields: the example's.
    :param id: the one that holds the row's id; None for none.
    :param carry: those copied into the output.
    """

    fields: Fields
    id: str | None = None
    carry: tuple[str, ...] = ()

    @classmethod
    def of(cls, takes: Sequence[str], mapping: Mapping[str, str], id: str | None, carry: Sequence[str]) -> Columns:
        """Read a task's ``takes`` and the options ``input.fields``, ``input.id`` and ``input.carry``.

        :raises UsageError: if `mapping` names a field that the task does not have.
        """
        fields = Fields.of(takes)
        for name, column in mapping.items():
            if name not in fields.columns:
                near = closest(name, list(fields.columns))
                hint = f" Did you mean '{near}'?" if near else ""
                raise UsageError(
                    f"input.fields.{shorten(f'{name}={column}', 80)}: the task's fields are "
                    f"{', '.join(fields.columns)}.{hint}"
                )
        renamed = fields.renamed(mapping)
        return cls(Fields(renamed.columns, renamed.required, "input.fields."), id, tuple(carry))

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The columns other than the fields', each once."""
        return tuple(dict.fromkeys((*(() if self.id is None else (self.id,)), *self.carry)))

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        return tuple(dict.fromkeys((*self.fields.columns.values(), *self.named)))

    @cached_property
    def texts(self) -> frozenset[str]:
        """The columns in which bytes are text."""
        return frozenset((*self.fields.columns.values(), *(() if self.id is None else (self.id,))))

    @cached_property
    def _fields(self) -> tuple[tuple[str, str, bool], ...]:
        required = self.fields.required
        return tuple((name, column, name in required) for name, column in self.fields.columns.items())

    @property
    def only_id(self) -> Columns:
        """The same without everything but the id."""
        return Columns(Fields(), self.id)

    def check(self, there: Sequence[str]) -> None:
        """See that the columns `there` have all that must be, and one field at least.

        :raises InputError: naming the columns there are and the closest one.
        """
        self.fields.check(there)
        names = self.fields.columns
        if names and not any(column in there for column in names.values()):
            wanted = " or ".join(f"'{shorten(column, 60)}'" for column in names.values())
            first = next(iter(names))
            raise InputError(
                f"there is no column {wanted}; there are: {_listed(there)}."
                f" To take another: {self.fields.option}{first}=COLUMN"
            )
        for column in self.named:
            if column not in there:
                near = closest(column, there)
                hint = f" Did you mean '{near}'?" if near else ""
                option = "input.id" if column == self.id else "input.carry"
                raise InputError(f"'{shorten(column, 60)}' of {option} is missing; there are: {_listed(there)}.{hint}")

    def pick(self, row: Row, absent: Any = NOTHING) -> Picked:
        """Take what is wanted of a row.

        :param absent: what an empty cell holds in this format; a field that may be left out is, where it has that.
        """
        if isinstance(row, InputError):
            return Picked(row, None, {})
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
                problem = problem or InputError(f"the column '{shorten(column, 60)}' {error}")
        if problem is not None:
            return Picked(problem, id, carried)
        try:
            return Picked(self._example(row, absent), id, carried)
        except InputError as error:
            return Picked(error, id, carried)

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
                    self.fields.check([str(key) for key in row])
                continue
            _refuse(name, value, required)
            if required or not (value is absent or (isinstance(value, str) and value == absent)):
                example[name] = value
        return example

    def _id(self, row: str | Mapping[str, Any]) -> str:
        if isinstance(row, str):
            raise InputError(f"the row is a text alone, without the id column '{shorten(self.id, 60)}'")
        value = row.get(self.id, NOTHING) if self.id is not None else NOTHING
        if value is NOTHING:
            raise InputError(f"the id column '{shorten(self.id, 60)}' is missing")
        if isinstance(value, InputError):
            raise InputError(f"the id: {value}")
        return id_text(value)

    @staticmethod
    def _carried(row: str | Mapping[str, Any], column: str) -> Any:
        value = None if isinstance(row, str) else row.get(column)
        if isinstance(value, InputError):
            raise InputError(f"cannot be carried: {value}")
        return json_value(value)


def _refuse(name: str, value: Any, required: bool) -> None:
    """See that a field's cell was read and can be represented."""
    if isinstance(value, InputError):
        raise InputError(f"the field '{name}': {value}")
    if value is None and required:
        raise InputError(f"the field '{name}' is null")
    if has_lone_surrogate(value):
        raise InputError(f"the field '{name}' has a lone surrogate, which no encoder can represent")


def _listed(there: Sequence[str]) -> str:
    return shorten(", ".join(there), 300) if there else "none"
