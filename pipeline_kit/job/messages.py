"""What a job and its workers say to each other; all of it is pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_kit.job.shard import Finished
from pipeline_kit.sinks import Layout, Schema, ShardFormat
from pipeline_kit.stats import RunStats

__all__ = ["Advanced", "Agreed", "Broke", "Entered", "Loaded", "Made", "Proposed", "Start"]


@dataclass(frozen=True, slots=True)
class Start:
    """To a worker, first: what to build. A worker then gets a ``Work`` at a time, and None at the end.

    :param data: the config as plain data.
    :param told: whether it says what stage works on which rows.
    """

    data: Mapping[str, Any]
    plugins: Sequence[str]
    settled: Mapping[str, Any]
    layout: Layout
    format: ShardFormat
    worker: int
    workers: int
    told: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """The pipeline is built."""

    settled: Mapping[str, Any]
    description: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entered:
    """A stage begins a call on these rows, numbered as in the input; with none: the call has ended."""

    stage: str
    rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class Advanced:
    """How far the shard is."""

    stats: RunStats


@dataclass(frozen=True, slots=True)
class Proposed:
    """What all shards could agree on, going by this one; the worker waits for :class:`Agreed`."""

    schema: Schema


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all shards do agree on."""

    schema: Schema


@dataclass(frozen=True, slots=True)
class Made:
    """The shard is made."""

    shard: Finished


@dataclass(frozen=True, slots=True)
class Broke:
    """The worker cannot go on: the error's class, its message, and where it was raised."""

    error: str
    message: str
    trace: str
