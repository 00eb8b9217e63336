"""Examples from files, streams and Python objects."""

from __future__ import annotations

from pipeline_kit.records.fields import TEXT_FIELDS, Fields
from pipeline_kit.records.formats import FORMATS, LINE_FORMATS, Format, format_of
from pipeline_kit.records.options import InputConfig
from pipeline_kit.records.read import Record, read_records
from pipeline_kit.records.source import Source, SourceRow

__all__ = [
    "FORMATS",
    "LINE_FORMATS",
    "TEXT_FIELDS",
    "Fields",
    "Format",
    "InputConfig",
    "Record",
    "Source",
    "SourceRow",
    "format_of",
    "read_records",
]
