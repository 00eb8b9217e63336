"""Sees a pipeline run: the observer it tells of each step, and a model that is watched while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, final

from pipeline_kit.errors import shorten
from pipeline_kit.isolate import is_interruption
from pipeline_kit.prepare import Encoded
from pipeline_kit.stages import Model
from pipeline_kit.types import Encoding, Example, ModelOutput, Side, TokenBatch

__all__ = ["Recorder", "SeenBatch", "WatchedModel", "attempt"]


def attempt(notes: list[str], what: str, call: Any, otherwise: Any) -> Any:
    """Give what `call` gives; where a stage's account of itself fails, note that and give `otherwise`."""
    try:
        return call()
    except BaseException as error:
        if is_interruption(error):
            raise
        notes.append(f"{what} failed: {type(error).__name__}: {shorten(str(error))}")
        return otherwise


@final
class WatchedModel(Model):
    """Another model, called as ever; notes what its layers give, and how long it takes."""

    def __init__(self, model: Model, notes: list[str]) -> None:
        """Watch `model`; what goes wrong with watching is added to `notes`."""
        self._model, self._notes = model, notes
        self.layers: Sequence[tuple[str, Any]] = ()
        self.seconds = 0.0

    @property
    def supported_sides(self) -> frozenset[Side]:
        """Those of the model."""
        return self._model.supported_sides

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the model; what its layers gave is then in `layers`, the time it took in `seconds`."""
        with ExitStack() as stack:
            seen = attempt(self._notes, "watching the model", lambda: stack.enter_context(self._model.watched()), ())
            start = perf_counter()
            output = self._model.forward(batch)
            self.seconds = perf_counter() - start
        self.layers = tuple(seen)
        return output


@dataclass
class SeenBatch:
    """One batch that ran."""

    encodings: Sequence[Encoding]
    batch: TokenBatch
    output: ModelOutput
    layers: Sequence[tuple[str, Any]]
    seconds: float
    reduced: ModelOutput | None = None


@final
@dataclass
class Recorder:
    """Keeps what a pipeline's observer is told.

    :ivar chunks: for each chunk its examples' parts, as the pipeline has them, and their encodings.
    :ivar batches: those that ran, in the order in which they did.
    """

    model: WatchedModel
    chunks: list[tuple[Sequence[Any], Encoded]] = field(default_factory=list)
    batches: list[SeenBatch] = field(default_factory=list)
    _padded: Sequence[Encoding] = ()

    def observe(self, stage: str, given: Any, gave: Any) -> None:
        """See :class:`pipeline_kit.pipeline.Pipeline`."""
        if stage == "tokenizer":
            self.chunks.append((given, gave))
        elif stage == "padding":
            self._padded = given
        elif stage == "model":
            self.batches.append(SeenBatch(self._padded, given, gave, self.model.layers, self.model.seconds))
        elif stage == "reduce":
            self.batches[-1].reduced = gave

    def parts(self) -> list[Sequence[Example]]:
        """Give for each example what was encoded for it; nothing where it could not be read."""
        found: list[Sequence[Example]] = []
        for given, _ in self.chunks:
            for item in given:
                parts = isinstance(item, Sequence) and not isinstance(item, str)
                single = isinstance(item, str | Mapping)
                found.append(tuple(item) if parts else (item,) if single else ())
        return found

    def encodings(self) -> list[Sequence[Encoding]]:
        """Give each example's encodings; nothing where there are none."""
        return [item if isinstance(item, list) else () for _, encoded in self.chunks for item in encoded]
