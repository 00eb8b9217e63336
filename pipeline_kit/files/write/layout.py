"""Which columns the rows of an output have, in which order and of which kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline_kit.contract.column_types import COUNTS, VECTOR, VECTORS, ColumnType, infer_type
from pipeline_kit.errors import ConfigError, Fault, StageError, for_message
from pipeline_kit.files.write.base import OutputValues

ID, ERROR = "id", "error"


@dataclass(frozen=True)
class Layout:
    """The columns of an output: ``id``, carried ones, the result's keys, `COUNTS`, ``error``.

    :param results: the result's keys in order, with their kinds.
    :param fixed: whether `results` are known; if not, the first rows show them.
    :param carry: columns of the input that go with the results.
    :param identified: whether rows have an ``id``.
    :param errors: whether rows that failed keep their place, with the reason under ``error``.
    :param kinds: kinds that the user set, by column.
    """

    results: Mapping[str, ColumnType]
    fixed: bool = True
    carry: tuple[str, ...] = ()
    identified: bool = True
    errors: bool = False
    kinds: Mapping[str, ColumnType] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        gives: Mapping[str, ColumnType] | None,
        *,
        carry: Sequence[str] = (),
        identified: bool = True,
        errors: bool = False,
        kinds: Mapping[str, ColumnType] | None = None,
    ) -> Layout:
        """Find the columns of results.

        :param gives: the keys of the postprocessor's results with their kinds, a ``?`` behind one that an option adds;
            None: the rows show them.
        :raises ConfigError: if a carried column has the name of another one, or `kinds` names no column.
        """
        results = {name.removesuffix("?"): kind for name, kind in (gives or {}).items()}
        layout = cls(results, gives is not None, tuple(carry), identified, errors, kinds or {})
        faults = [*layout._carry_faults(), *layout._kind_faults()]
        if faults:
            raise ConfigError(faults)
        return layout

    @property
    def vectors(self) -> Mapping[str, bool]:
        """The columns that hold vectors, as far as they are known; true for those with one vector a token."""
        return {name: kind == VECTORS for name, kind in self.results.items() if kind in (VECTOR, VECTORS)}

    def without(self, names: Iterable[str]) -> Layout:
        """Return the same columns but for some of the result's keys."""
        left_out = frozenset(names)
        return replace(self, results={name: kind for name, kind in self.results.items() if name not in left_out})

    def row(self, identity: Any, carried: Mapping[str, Any], result: Mapping[str, Any]) -> OutputValues:
        """Put a row together, its columns in order.

        :raises StageError: if the result has a key that is a carried column too, which no config could foresee.
        """
        shared = [key for key in result if key in carried or (key == ID and self.identified)]
        if shared:
            raise StageError(
                f"the result's key '{for_message(shared[0], 80)}' is a column of the input too; take it out of "
                "input.carry"
            )
        return {**({ID: identity} if self.identified else {}), **carried, **result}

    def names(self, rows: Sequence[OutputValues]) -> list[str]:
        """List the columns, `rows` being the first ones."""
        return list(dict.fromkeys([*self._front(), *self._results(rows), *self._back()]))

    def columns(self, rows: Sequence[OutputValues]) -> list[tuple[str, ColumnType]]:
        """List the columns with their kinds, `rows` being the first ones."""
        return [(name, self.kinds.get(name) or self._kind(name, rows)) for name in self.names(rows)]

    def _front(self) -> tuple[str, ...]:
        return (*((ID,) if self.identified else ()), *self.carry)

    def _back(self) -> tuple[str, ...]:
        return (*COUNTS, *((ERROR,) if self.errors else ()))

    def _results(self, rows: Sequence[OutputValues]) -> Iterable[str]:
        if self.fixed:
            return self.results
        taken = {*self._front(), *self._back()}
        good = [row for row in rows if not (self.errors and row.get(ERROR))]
        return dict.fromkeys(key for row in good for key in row if key not in taken)

    def _kind(self, name: str, rows: Sequence[OutputValues]) -> ColumnType:
        if name in self.carry or name == ID:
            return infer_type(row.get(name) for row in rows)
        if name in COUNTS:
            return COUNTS[name]
        if name == ERROR:
            return "string"
        return self.results.get(name) or infer_type(row.get(name) for row in rows)

    def _carry_faults(self) -> list[Fault]:
        own = {key: f"the result's key '{key}'" for key in (*self.results, *COUNTS)}
        own |= {ID: "the row's id"} if self.identified else {}
        own |= {ERROR: "the reason why a row failed"} if self.errors else {}
        faults = []
        for place, column in enumerate(self.carry):
            shown = for_message(column, 80)
            hint = "leave it out of input.carry, or give it another name in the input"
            if column in own:
                faults.append(Fault("input.carry", f"the column '{shown}' has the name of {own[column]}.", hint=hint))
            elif column in self.carry[:place]:
                faults.append(Fault("input.carry", f"the column '{shown}' is there twice."))
        return faults

    def _kind_faults(self) -> list[Fault]:
        allowed = (*((ID,) if self.identified else ()), *self.carry)
        return [
            Fault(
                f"output.types.{for_message(name, 80)}", "is not a column whose type can be set.", allowed or ("none",)
            )
            for name in self.kinds
            if name not in allowed and (self.fixed or name in (*COUNTS, ERROR))
        ]
