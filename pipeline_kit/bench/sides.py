"""What takes a turn in a measurement: a pipeline of ours, or one of another library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from pipeline_kit.contract.types import Device, Example, TokenBatch

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.runtime.pipeline import Pipeline


@dataclass
class TextBatch:
    """What one pass over the texts did.

    :param results: a result or a :class:`~pipeline_kit.errors.RowFailure` for each text, in order.
    :param tokens: tokens of the texts that the model read; `slots` counts padding too.
    :param sequences: rows of all batches: texts, their windows, their parts.
    :param pairs: the sum of the squares of their lengths.
    """

    results: list[Any]
    tokens: int = 0
    slots: int = 0
    batches: int = 0
    sequences: int = 0
    pairs: int = 0

    @property
    def padding_share(self) -> float | None:
        """The share of the slots that was padding; None if nothing was counted."""
        return 1 - self.tokens / self.slots if self.slots else None

    def count(self, lengths: Any, slots: int) -> None:
        """Add a batch whose rows have `lengths`, ``[B]``, and take `slots` with padding."""
        self.tokens += int(lengths.sum())
        self.pairs += int((lengths.astype("int64") ** 2).sum())
        self.sequences += len(lengths)
        self.slots += slots
        self.batches += 1


class BenchSide(ABC):
    """One of the pipelines that are measured against each other."""

    name: str
    device: Device
    best_first: Collection[str] = ()
    """See :attr:`~pipeline_kit.contract.stages.Postprocessor.best_first`."""

    @abstractmethod
    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        """Run on all examples and count what was done, untimed; raise StageError if it cannot run on them."""

    @abstractmethod
    def run(self, examples: Sequence[Example]) -> object:
        """Run on all examples, as a user would; this is timed."""

    @abstractmethod
    def run_one(self, example: Example) -> object:
        """Run on one example alone; this is timed."""

    @property
    @abstractmethod
    def description(self) -> Mapping[str, Any]:
        """What it is, resolved, as JSON values."""


@final
class PipelineSide(BenchSide):
    """A composed pipeline."""

    def __init__(self, name: str, pipeline: Pipeline, config: PipelineConfig) -> None:
        self.name = name
        self.pipeline = pipeline
        self.config = config
        self.device = pipeline.device
        self.best_first = pipeline.postprocessor.best_first

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        work = TextBatch([])

        def observe(stage: str, given: Any, made: Any) -> None:
            if stage == "padding":
                batch: TokenBatch = made
                work.count(batch.lengths, batch.input_ids.numel())

        before, self.pipeline.observer = self.pipeline.observer, observe
        try:
            work.results = list(self.pipeline.results_or_failures(examples))
        finally:
            self.pipeline.observer = before
        return work

    def run(self, examples: Sequence[Example]) -> object:
        return list(self.pipeline.results_or_failures(examples))

    def run_one(self, example: Example) -> object:
        return self.pipeline([example])

    @property
    def description(self) -> Mapping[str, Any]:
        return self.pipeline.description
