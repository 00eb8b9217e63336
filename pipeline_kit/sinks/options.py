"""Options of the group ``output``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline_kit.config import option
from pipeline_kit.sinks.kinds import Scalar

__all__ = ["FILE_FORMATS", "FileFormat", "OutputConfig", "Vectors", "ending_of"]

FileFormat = Literal["jsonl", "csv", "parquet"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)

Vectors = Literal["inline", "npy", "safetensors"]


@dataclass
class OutputConfig:
    """How results are written."""

    format: FileFormat | None = option(None, "null: by the ending of a file's name; jsonl for a folder of shards")
    vectors: Vectors = option(
        "inline", "in the rows, or in a file beside each shard: one float32 matrix, in the rows' order"
    )
    rows_per_shard: int = option(10_000, "rows of a shard; fewer for results that are large", minimum=1, maximum=10**7)
    compression: Literal["zstd", "snappy"] = option("zstd", "of Parquet: zstd is smaller, snappy read by older tools")
    types: dict[str, Scalar] = option(
        {}, "Parquet: the type of a carried column, where the first rows do not show it, such as stars: float64"
    )


def ending_of(path: Path) -> FileFormat | None:
    """Tell the format from a file's ending, ``.gz`` left aside; None where it names none."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    suffix = name.suffix.lower()
    return "jsonl" if suffix == ".ndjson" else next((known for known in FILE_FORMATS if suffix == f".{known}"), None)
