"""A plugin with a policy of each kind, as docs/plugins.md shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from pipeline_kit import Registry, option
from pipeline_kit.kit import (
    REQUIRED,
    BatchingConfig,
    BatchingPolicy,
    Checkpoint,
    Device,
    DeviceConfig,
    InputError,
    PaddingConfig,
    PaddingPolicy,
    Runner,
    RunnerConfig,
    ShardResult,
    ShardTask,
    StreamFormat,
)


@dataclass
class BucketsConfig(PaddingConfig):
    """Options of ``padding=buckets``."""

    sizes: list[int] = option(REQUIRED, "lengths that a batch may have; a longer one stays as it is", least=1)


class Buckets(PaddingPolicy):
    """Few shapes: the smallest size that the longest row fits into."""

    def padded(self, longest: int) -> int:
        fitting = [size for size in self.config.sizes if size >= longest]
        width = min(fitting, default=longest)
        return width if self.max_length is None else max(longest, min(width, self.max_length))


class Alone(BatchingPolicy):
    """A batch a row, the last row first."""

    def plan(self, lengths: Sequence[int], padding: PaddingPolicy) -> list[list[int]]:
        return [[place] for place in reversed(range(len(lengths)))]


class Lossy(BatchingPolicy):
    """Forgets a row."""

    def plan(self, lengths: Sequence[int], padding: PaddingPolicy) -> list[list[int]]:
        return [list(range(len(lengths) - 1))]


def npu(config: DeviceConfig, checkpoint: Checkpoint) -> Device:
    """The CPU under another name."""
    assert checkpoint.path.name
    return Device("cpu", "float32" if config.dtype == "auto" else config.dtype, config.threads or 1)


@dataclass
class BackwardsConfig(RunnerConfig):
    """Options of ``runner=backwards``."""

    note: str = option("", "printed with each shard")


class Backwards(Runner):
    """Makes the first shard, which settles the schema, then the others from the last one on."""

    def shards(self, tasks: Iterator[ShardTask]) -> Iterator[ShardResult]:
        yield from (self.run(task) for task in islice(tasks, 1))
        yield from (self.run(task) for task in reversed(list(tasks)))


def verses(stream: BinaryIO) -> Iterator[Mapping[str, Any] | InputError]:
    """Yield a row for each block between lines of ``%``, its first line the title."""
    for block in stream.read().decode("utf-8").split("%\n"):
        title, newline, text = block.partition("\n")
        yield {"title": title, "text": text.strip()} if newline else InputError("a verse has a title and a text")


class Verses(StreamFormat):
    """A block a row: its id, and the result as JSON."""

    suffix = ".verse"
    chunk_rows = 100

    def __init__(self, layout: Any) -> None:
        self.columns = layout.carry

    def schema(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        return None

    @contextmanager
    def stream(self, write: Callable[[bytes], object], schema: dict[str, Any] | None) -> Iterator[Any]:
        def append(rows: Sequence[Mapping[str, Any]]) -> None:
            write("".join(f"{row.get('id', '')}\n{json.dumps(row)}\n%\n" for row in rows).encode())

        yield append


def register(registry: Registry) -> None:
    here = __name__
    registry.add("padding", "buckets", f"{here}:Buckets", BucketsConfig, "to the smallest of some sizes")
    registry.add("batching", "alone", f"{here}:Alone", BatchingConfig, "a batch a row")
    registry.add("batching", "lossy", f"{here}:Lossy", BatchingConfig, "forgets a row")
    registry.add("device", "npu", f"{here}:npu", DeviceConfig, "a device of its own")
    registry.add("runner", "backwards", f"{here}:Backwards", BackwardsConfig, "shards in another order")
    registry.add("input_format", "verse", f"{here}:verses", summary="blocks between lines of %")
    registry.add("output_format", "verse", f"{here}:Verses", summary="blocks between lines of %")
