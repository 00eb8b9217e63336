"""Where results are written: JSON lines, CSV and Parquet, as one file or as shards."""

from __future__ import annotations

from pipeline_kit.sinks.base import Row, Schema, ShardFormat, StreamFormat, UnwritableRows
from pipeline_kit.sinks.files import rows_file
from pipeline_kit.sinks.formats import check_installed, shard_format, stream_format
from pipeline_kit.sinks.json_text import json_line
from pipeline_kit.sinks.layout import Layout
from pipeline_kit.sinks.options import FILE_FORMATS, FileFormat, OutputConfig, ending_of

__all__ = [
    "FILE_FORMATS",
    "FileFormat",
    "Layout",
    "OutputConfig",
    "Row",
    "Schema",
    "ShardFormat",
    "StreamFormat",
    "UnwritableRows",
    "check_installed",
    "ending_of",
    "json_line",
    "rows_file",
    "shard_format",
    "stream_format",
]
