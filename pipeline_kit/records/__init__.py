"""Examples from files and streams."""

from __future__ import annotations

from pipeline_kit.records.fields import TEXT_FIELDS, Fields
from pipeline_kit.records.read import FORMATS, Format, Record, format_of, read_records

__all__ = ["FORMATS", "TEXT_FIELDS", "Fields", "Format", "Record", "format_of", "read_records"]
