"""What makes a job's shards, and what it asks of the job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline_kit.job.shard import Finished, Work
from pipeline_kit.pipeline_config import PipelineConfig
from pipeline_kit.sinks import Layout, Schema, ShardFormat
from pipeline_kit.stats import RunStats
from pipeline_kit.types import RowFailure

__all__ = ["Host", "Maker", "Plan"]


@dataclass(frozen=True)
class Plan:
    """What every shard is made with.

    :param plugins: files and modules of plugins that the user named.
    """

    config: PipelineConfig
    layout: Layout
    format: ShardFormat
    plugins: Sequence[str] = ()


class Host(Protocol):
    """The job, as what makes its shards sees it."""

    @property
    def settled(self) -> Mapping[str, Any] | None:
        """What an earlier load settled; None if there was none."""
        ...

    def loaded(self, settled: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Hear that a pipeline was built, what its model settled, and what the config became."""
        ...

    @property
    def schema(self) -> Schema | None:
        """What all shards agree on; None if that is not settled, or if there is nothing."""
        ...

    def agree(self, schema: Schema) -> None:
        """Hear what all shards are to agree on, before any of them is finished."""
        ...

    def advanced(self, stats: RunStats) -> None:
        """Hear how far the shards are that are being made, taken together."""
        ...

    def late(self, failure: RowFailure, work: Work) -> None:
        """Hear of a row that took too long, before its shard is finished.

        :raises JobError: if no row more may fail.
        """
        ...


class Maker(ABC):
    """Makes shards, in this process or in others."""

    @abstractmethod
    def finished(self, missing: Iterator[Work]) -> Iterator[Finished]:
        """Make all shards of `missing`, taking them when they are needed; in any order.

        :raises JobError: if it cannot go on.
        """

    def close(self) -> None:
        """End what is still running."""
        return
