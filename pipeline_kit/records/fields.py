"""Which columns of a file become which fields of an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline_kit.errors import InputError, closest, shorten
from pipeline_kit.records.json import has_lone_surrogate

__all__ = ["TEXT_FIELDS", "Fields"]


@dataclass(frozen=True)
class Fields:
    """The fields that a task reads, and the columns (or JSON keys) they come from.

    :param columns: field to column. Columns not named here are left out of the example.
    :param required: fields that must be there.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    @classmethod
    def of(cls, takes: Sequence[str]) -> Fields:
        """Read a task's ``takes``: names of fields, a ``?`` behind one that may be left out."""
        names = [name.removesuffix("?") for name in takes]
        return cls({name: name for name in names}, tuple(name for name in takes if not name.endswith("?")))

    def renamed(self, mapping: Mapping[str, str]) -> Fields:
        """Take some fields from other columns; those columns must then be there."""
        required = tuple(dict.fromkeys((*self.required, *mapping)))
        return Fields({**self.columns, **mapping}, required)

    def pick(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Give the example that `row` holds.

        :raises InputError: if a required column is missing or a text cannot be represented in UTF-8.
        """
        self.check(list(row))
        found = {name: row[column] for name, column in self.columns.items() if column in row}
        for name, value in found.items():
            if has_lone_surrogate(value):
                raise InputError(f"the field '{name}' has a lone surrogate, which no encoder can represent")
        return found

    def check(self, columns: Sequence[str]) -> None:
        """See that every required column is among `columns`.

        :raises InputError: naming the columns there are and the closest one.
        """
        for name in self.required:
            wanted = self.columns[name]
            if wanted not in columns:
                near = closest(wanted, columns)
                there = shorten(", ".join(columns), 300) if columns else "none"
                raise InputError(
                    f"'{shorten(wanted, 60)}' is missing; there are: {there}."
                    + (f" Did you mean '{near}'?" if near else "")
                    + f" To take another: --fields {name}=COLUMN"
                )


TEXT_FIELDS = Fields.of(("text", "text_pair?"))
"""The fields of the tasks that read a text and, some of them, a second one."""
