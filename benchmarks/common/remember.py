"""A side whose results are kept, so that what was timed is also what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from pipeline_kit.bench.sides import BenchSide, TextBatch
from pipeline_kit.contract.types import Example
from pipeline_kit.evaluate.likeness import compare_scores

__all__ = ["Remembering", "difference"]

_WARM_UP = 16


@final
class Remembering(BenchSide):
    """Another side, with the results of its last pass.

    :param like: a side that reads the same tokens. With it the uncounted pass runs on a few texts only, and what it
        counts is taken from `like`: a slow peer would take as long for that pass as for a timed one.
    """

    def __init__(self, side: BenchSide, like: Remembering | None = None) -> None:
        """Run `side` in its place; after `like` in a measurement."""
        self.name, self.device = side.name, side.device
        self.results: list[Any] = []
        self.work = TextBatch([])
        self._side, self._like = side, like

    def warm_up(self, examples: Sequence[Example]) -> TextBatch:
        """Run and count, or only warm up."""
        if self._like is None:
            self.work = self._side.warm_up(examples)
            self.results = self.work.results
            return self.work
        self._side.run(examples[:_WARM_UP])
        known = self._like.work
        self.work = TextBatch([{} for _ in known.results], known.tokens, sequences=known.sequences, pairs=known.pairs)
        return self.work

    def run(self, examples: Sequence[Example]) -> object:
        """Run, and keep the results; what keeps them costs nothing."""
        found = self._side.run(examples)
        self.results = found if isinstance(found, list) else [found]
        return found

    def run_one(self, example: Example) -> object:
        """Run on one example."""
        return self._side.run_one(example)

    @property
    def description(self) -> Mapping[str, Any]:
        """The side's own."""
        return self._side.description


def difference(first: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """Hold two sides' results against each other: as ``bench`` does, or as vectors where they are embeddings."""
    if not (first and isinstance(first[0], Mapping) and "embedding" in first[0]):
        return compare_scores(first, other)
    mine, theirs = (np.array([row["embedding"] for row in rows], dtype=np.float64) for rows in (first, other))
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (mine * theirs).sum(1) / np.maximum(lengths, 1e-12)
    largest = float(np.abs(mine - theirs).max())
    return {"rows": len(mine), "largest_score_difference": largest, "smallest_cosine": float(cosines.min())}
