"""What the flags and the options ``input.*`` choose together, opened once for all pipelines of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

from pipeline_kit.cli.inputs import Inputs
from pipeline_kit.errors import UsageError
from pipeline_kit.records import Fields, Format, InputConfig, Source
from pipeline_kit.records.columns import Columns
from pipeline_kit.records.names import parts_of
from pipeline_kit.records.python_part import PythonPart
from pipeline_kit.records.unpack import Limits

if TYPE_CHECKING:
    from pipeline_kit.records.part import Part

__all__ = ["ChosenInput"]


@final
class ChosenInput:
    """The rows of ``--text``, ``--json`` and ``--input``, in this order, as ``input.*`` chooses them.

    Files can be gone through more than once; stdin and pipes are copied for that.
    """

    def __init__(self, inputs: Inputs) -> None:
        """Take what the flags say; nothing is opened yet."""
        self._inputs = inputs
        self._parts: dict[tuple[Format | None, Limits], list[Part]] = {}

    def format(self, options: InputConfig) -> Format | None:
        """Give the format of every file, as the flag says or, without it, the option."""
        return self._inputs.format or options.format

    def source(self, options: InputConfig, takes: Sequence[str]) -> Source:
        """Open the rows for one pipeline, and look for the columns.

        :param takes: the fields, see :class:`~pipeline_kit.pipeline_config.TaskConfig`.
        :raises UsageError: if ``--fields`` or ``input.fields`` names another field.
        :raises InputError: if something cannot be read here, or lacks a column.
        """
        Columns.of(takes, options.fields, options.id, options.carry)  # names a field that the task does not have
        self._inputs.fields(takes)
        fields = Fields.of(takes).renamed({**options.fields, **self._inputs.columns})
        columns = Columns(fields, options.id, tuple(options.carry))
        source = Source(self._opened(options), replace(options, format=self.format(options)), columns)
        source.check()
        return source

    def close(self) -> None:
        """Remove the copies."""
        for parts in self._parts.values():
            for part in parts:
                part.close()

    def _opened(self, options: InputConfig) -> list[Part]:
        key = (self.format(options), Limits(options.max_decompressed_bytes, options.max_ratio))
        if key not in self._parts:
            if self._parts and "-" in self._inputs.files:
                raise UsageError(
                    "a sweep over input.format, input.max_ratio or input.max_decompressed_bytes would read stdin in "
                    "several ways, and it can be read once; put it into a file"
                )
            examples: list[Part] = [PythonPart(self._inputs.examples, "arguments")] if self._inputs.examples else []
            self._parts[key] = [*examples, *parts_of(self._inputs.files, *key)]
        return self._parts[key]
