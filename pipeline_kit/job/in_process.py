"""Shards made in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

from pipeline_kit.job.loading import with_settled
from pipeline_kit.job.maker import Host, Maker, Plan
from pipeline_kit.job.shard import Finished, Listener, Work, make
from pipeline_kit.pipeline import Pipeline
from pipeline_kit.pipeline_config import PipelineConfig
from pipeline_kit.sinks import Row, Schema
from pipeline_kit.stats import RunStats

__all__ = ["InProcess"]


@final
class InProcess(Maker, Listener):
    """Builds the pipeline when the first shard needs it."""

    def __init__(self, plan: Plan, host: Host, build: Callable[[PipelineConfig], Pipeline]) -> None:
        """Make shards by `plan` with what `build` builds."""
        self._plan, self._host, self._build = plan, host, build

    def finished(self, missing: Iterator[Work]) -> Iterator[Finished]:
        """Make the shards in their order."""
        pipeline: Pipeline | None = None
        for work in missing:
            if pipeline is None:
                pipeline = self._build(with_settled(self._plan.config, self._host.settled or {}))
                self._host.loaded(pipeline.model.settled, pipeline.description)
            yield make(pipeline, work, self._plan.layout, self._plan.format, self._agree, self)

    def told(self, stats: RunStats) -> None:
        """Pass it on."""
        self._host.advanced(stats)

    def _agree(self, rows: Sequence[Row]) -> Schema | None:
        if self._host.schema is None and (schema := self._plan.format.schema(rows)) is not None:
            self._host.agree(schema)
        return self._host.schema
