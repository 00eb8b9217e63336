"""Which columns of a file become which fields of an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline_kit.errors import InputError, closest, shorten

__all__ = ["TEXT_FIELDS", "Fields"]


@dataclass(frozen=True)
class Fields:
    """The fields that a task reads, and the columns (or JSON keys) they come from.

    :param columns: field to column. Columns not named here are left out of the example.
    :param required: fields that must be there.
    :param option: the option that renames a field, for messages.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    option: str = "--fields "

    @classmethod
    def of(cls, takes: Sequence[str]) -> Fields:
        """Read a task's ``takes``: names of fields, a ``?`` behind one that may be left out."""
        names = [name.removesuffix("?") for name in takes]
        return cls({name: name for name in names}, tuple(name for name in takes if not name.endswith("?")))

    def renamed(self, mapping: Mapping[str, str]) -> Fields:
        """Take some fields from other columns; those columns must then be there."""
        required = tuple(dict.fromkeys((*self.required, *mapping)))
        return Fields({**self.columns, **mapping}, required, self.option)

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
                    + f" To take another: {self.option}{name}=COLUMN"
                )


TEXT_FIELDS = Fields.of(("text", "text_pair?"))
"""The fields of the tasks that read a text and, some of them, a second one."""
