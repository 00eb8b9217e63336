"""The conformance suites for formats of input and output, and for devices."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from pipeline_kit.contract.registry import BUILTIN
from pipeline_kit.contract.types import Device
from pipeline_kit.errors import DeviceError, InputError, RowFailure
from pipeline_kit.files.read import formats
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.write.base import StreamFormat, UnwritableRowsError
from pipeline_kit.files.write.formats import stream_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.runtime.device import DTYPES
from pipeline_kit.testing.policy_suite import answers
from pipeline_kit.testing.stages import tiny_stage_context
from pipeline_kit.testing.suite import StageConformance
from pipeline_kit.testing.tokenizer_suite import assert_same

CUTS = 24


class _FunctionConformance(StageConformance):
    """What is registered may be a function too."""

    def test_registered(self) -> None:
        """It is found by kind and name, and can be called; it has a summary."""
        assert self.spec().summary, f"{self.kind}={self.stage} has no summary, which `pipeline-kit ls` shows"
        assert callable(self.spec().load()), f"{self.spec().target} is neither a function nor a class"


class InputFormatConformance(_FunctionConformance):
    """Checks the function that reads a format.

    :cvar sample: the bytes of a file with several rows.
    :cvar rows: what is in it; None in the place of a bad row.
    """

    kind: ClassVar[str] = "input_format"
    interface: ClassVar[type[Any]] = object
    sample: ClassVar[bytes]
    rows: ClassVar[Sequence[Mapping[str, Any] | None]]

    def build(self, context: Any = None) -> Any:
        """Return the function."""
        return self.spec().load()

    def use(self, stage: Any) -> None:
        """Read the sample."""
        self.read(self.sample)

    def read(self, data: bytes, name: str = "sample") -> list[Mapping[str, Any] | None]:
        """Return the rows of a file as a job reads them; up to where it is damaged, if it is."""
        good = [row for row in self.rows if row is not None]
        fields = list(dict.fromkeys(name for row in good for name in row))
        takes = [name if all(name in row for row in good) else f"{name}?" for name in fields]
        plugged = {} if self.stage in formats.FORMATS else {self.stage: self.build}
        found: list[Mapping[str, Any] | None] = []
        with TemporaryDirectory() as folder, patch.dict(formats.PLUGGED, plugged):
            path = Path(folder) / name
            path.write_bytes(data)
            options = InputConfig(format=self.stage)
            with suppress(InputError), Source.open([path], options, takes) as source:
                for row in source.rows():
                    example = {fields[0]: row.example} if isinstance(row.example, str) else row.example
                    found.append(None if isinstance(example, RowFailure) else example)
        return found

    def test_reads_its_rows(self) -> None:
        """Every row, in order and each time; a bad one fails in its place, alone."""
        for _ in range(2):
            found = self.read(self.sample)
            assert found == list(self.rows), f"its rows are {found}"

    def test_reads_from_a_stream(self) -> None:
        """The file may be unpacked as it is read, so it has no name, and no end that is known."""
        if self.stage not in ("parquet", "arrow"):
            found = self.read(gzip.compress(self.sample), "sample.gz")
            assert found == list(self.rows), f"from a stream its rows are {found}"

    def test_a_cut_file_keeps_its_first_rows(self) -> None:
        """Of a file that is cut off somewhere all rows but the last are those of the whole one."""
        for cut in range(0, len(self.sample), max(1, len(self.sample) // CUTS)):
            found = self.read(self.sample[:cut])[:-1]
            assert found == list(self.rows[: len(found)]), f"cut after {cut} bytes its rows are {found}"


class OutputFormatConformance(StageConformance):
    """Checks a :class:`pipeline_kit.kit.StreamFormat`; a subclass has :meth:`read`.

    :cvar rows: with the columns of `layout`.
    """

    kind: ClassVar[str] = "output_format"
    interface: ClassVar[type[Any]] = StreamFormat
    layout: ClassVar[Layout] = Layout.of({"label": "string", "score": "float64"}, carry=["n"])
    rows: ClassVar[Sequence[Mapping[str, Any]]] = tuple(
        {"id": f"r{n}", "n": n, "label": label, "score": n / 8}
        for n, label in enumerate(('a "b",\n\tc', "ä🙂", "", "  ", "plain", "%"))
    )

    def build(self, context: Any = None) -> StreamFormat:
        """Make the format of a file with the columns of `layout`."""
        spec = self.spec()
        found: StreamFormat = (
            stream_format(self.stage, self.layout) if spec.source == BUILTIN else spec.load()(self.layout)
        )
        return found

    def use(self, stage: StreamFormat) -> None:
        """Write a file."""
        self.write(stage)

    def read(self, data: bytes) -> list[Mapping[str, Any]]:
        """Return the rows of a file that was written."""
        raise NotImplementedError("a suite of an output format has read(data), which returns the rows of a file")

    def write(self, stage: StreamFormat, chunks: int = 2) -> bytes:
        """Write `rows`, so many at a time."""
        data, schema = bytearray(), json.loads(json.dumps(stage.schema(self.rows)))
        with stage.stream(data.extend, schema) as append:
            for start in range(0, len(self.rows), chunks):
                append(self.rows[start : start + chunks])
        return bytes(data)

    def test_says_how_its_files_end(self) -> None:
        """Files are recognised by the ending, which is the format's name."""
        assert self.build().suffix == f".{self.stage}", f"its suffix is {self.build().suffix!r}"
        assert self.build().chunk_rows >= 1

    def test_nothing_is_lost(self) -> None:
        """Each row and value can be read back, however many rows come at a time; rows are not changed."""
        before = deepcopy(self.rows)
        for chunks in (1, 4, len(self.rows)):
            found = self.read(self.write(self.build(), chunks))
            assert found == list(before), f"{chunks} rows at a time, it holds {found}"
        assert self.rows == before, "it changes the rows that it is given"

    def test_the_same_rows_make_the_same_bytes(self) -> None:
        """A job that is resumed writes what it would have written."""
        stage = self.build()
        first = self.write(stage)
        assert first == self.write(stage) == self.write(self.build()), "the same rows make other bytes"

    def test_a_file_may_have_no_rows(self) -> None:
        """Its schema is settled without rows, and it can be read."""
        data, stage = bytearray(), self.build()
        with stage.stream(data.extend, stage.schema([])):
            pass
        assert self.read(bytes(data)) == []

    def test_a_row_that_does_not_fit_is_named(self) -> None:
        """It is written, or an UnwritableRowsError has its place, and no row that came with it is written."""
        stage, data, refused = self.build(), bytearray(), []
        with stage.stream(data.extend, stage.schema(self.rows)) as append:
            append(self.rows[:1])
            before = len(data)
            try:
                append([self.rows[1], {**self.rows[1], "label": "\ud800"}])
            except UnwritableRowsError as error:
                refused = [failure.index for failure in error.failures]
            written = len(data) > before
            append(self.rows[2:])
        assert refused in ([], [1]), f"row 1 of two has a text that is not Unicode, and the rows {refused} are refused"
        assert not (refused and written), "a row is written although one that came with it is refused"

    def test_an_error_passes_through(self) -> None:
        """What is raised while a file is written ends the writing."""
        with pytest.raises(KeyError), self.build().stream(bytearray().extend, self.build().schema(self.rows)):
            raise KeyError


class DeviceConformance(_FunctionConformance):
    """Checks what finds a device; it is skipped on a machine that lacks the device."""

    kind: ClassVar[str] = "device"
    interface: ClassVar[type[Any]] = Device

    def build(self, context: Any = None, **options: Any) -> Device:
        """Find the device for a checkpoint, with these options besides those of the suite."""
        try:
            device: Device = self.spec().load()(replace(self.config(), **options), tiny_stage_context().checkpoint)
        except DeviceError as error:
            pytest.skip(str(error))
        return device

    def use(self, stage: Device) -> None:
        """Nothing more is done with a device."""

    def test_options_are_followed(self) -> None:
        """It is the same each time, with the dtype and the threads that are asked for; none of them is auto."""
        assert self.build() == self.build(), "the same options, another device"
        assert self.build().dtype in DTYPES, f"its dtype is {self.build().dtype!r}"
        assert self.build(threads=3).threads == 3, "device.threads has no effect"
        for dtype in DTYPES:
            assert self.build(dtype=dtype).dtype == dtype, f"device.dtype={dtype} has no effect"

    def test_answers_are_those_of_the_cpu(self) -> None:
        """Torch knows the device, and its answers in float32 are those of the CPU."""
        context = tiny_stage_context(device=self.build(dtype="float32"))
        assert_same(answers(context=context), answers(), self.tolerance, "answers on this device and on the CPU")
