"""From names and options to formats; what cannot work is found out here, before any row is."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pipeline_kit.errors import ConfigError, Fault, UsageError
from pipeline_kit.sinks.base import ShardFormat, StreamFormat
from pipeline_kit.sinks.layout import Layout
from pipeline_kit.sinks.options import FileFormat, OutputConfig

__all__ = ["check_installed", "shard_format", "stream_format"]


def check_installed(format: FileFormat) -> None:
    """See that the library for a format is there.

    :raises UsageError: with what to install.
    """
    if format == "parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed: pip install 'pipeline-kit[files]'; "
            "JSON lines and CSV need nothing more"
        )


def stream_format(format: FileFormat, layout: Layout, compression: Literal["zstd", "snappy"] = "zstd") -> StreamFormat:
    """Give the format of one file.

    :raises UsageError: if its library is not installed.
    """
    check_installed(format)
    if format == "parquet":
        from pipeline_kit.sinks.parquet import Parquet

        return Parquet(layout, compression)
    if format == "csv":
        from pipeline_kit.sinks.csv import Csv

        return Csv(layout)
    from pipeline_kit.sinks.jsonl import Jsonl

    return Jsonl()


def shard_format(options: OutputConfig, layout: Layout) -> ShardFormat:
    """Give the format of a folder of shards.

    :raises ConfigError: if vectors are to go beside the rows, but there are none or they do not fit that file.
    :raises UsageError: if a library is not installed.
    """
    from pipeline_kit.sinks.shards import InlineShards, OutOfLineShards

    name = options.format or "jsonl"
    if options.vectors == "inline":
        return InlineShards(stream_format(name, layout, options.compression))
    columns = layout.vectors
    problem = hint = None
    if not columns:
        problem = f"'{options.vectors}' is for vectors, and the results have none: {', '.join(layout.results)}."
        hint = "leave it at inline, or use task=sentence-embedding or task=feature-extraction"
    elif options.vectors == "npy" and any(columns.values()):
        ragged = next(column for column, several in columns.items() if several)
        problem = f"'npy' holds one vector a row, and '{ragged}' has one a token."
        hint = "use output.vectors=safetensors"
    elif options.vectors == "npy" and len(columns) > 1:
        problem = f"'npy' holds one matrix, and the results have {' and '.join(columns)}."
        hint = "use output.vectors=safetensors"
    if problem is not None:
        raise ConfigError([Fault("output.vectors", problem, hint=hint)])
    rows = stream_format(name, layout.without(columns), options.compression)
    return OutOfLineShards(rows, columns, options.vectors)
