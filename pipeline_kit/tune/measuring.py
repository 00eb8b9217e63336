"""Measuring one candidate after the other against the user's config and against the reference's answers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

from pipeline_kit.bench.rounds import Clock, Timing, alternate, turns, warm_up
from pipeline_kit.bench.sides import BenchSide, Work, use_threads
from pipeline_kit.errors import StageError, shorten
from pipeline_kit.tune.agreement import compare_results, is_varied
from pipeline_kit.tune.candidates import Candidate, reason_of
from pipeline_kit.tune.trial import Floors, Trial
from pipeline_kit.types import Example, RowFailure

__all__ = ["Enough", "Measuring", "Opener"]

Opener = Callable[[Candidate], BenchSide]
"""Loads a candidate's model; may raise anything."""

Enough = Callable[[Trial], bool]
"""Asked after each round whether that was the last one."""


@final
class Measuring:
    """Holds the user's pipeline, which takes part in every round, and the answers of the reference.

    :ivar own: the trial of the user's config.
    :ivar examples: the texts that both the user's config and the reference can answer.
    """

    def __init__(
        self, own: Candidate, side: BenchSide, floors: Floors, opener: Opener, clock: Clock = time.perf_counter
    ) -> None:
        """Measure against `own`, which was loaded as `side`."""
        self.own, self.floors = Trial(own), floors
        self.examples: list[Example] = []
        self._side, self._open, self._clock = side, opener, clock
        self._expected: list[Any] = []

    def hold(self, examples: Sequence[Example], trial: Trial | None, repeats: int, enough: Enough) -> None:
        """Get the answers of the reference, and time it.

        :param trial: of the reference; None if the user's config is it. If it does not load, which becomes its
            ``problem``, the user's config is taken for it.
        :raises RowError: if no example can be answered.
        """
        side = None if trial is None else self._loaded(trial)
        sides = [self._side] if side is None else [self._side, side]
        timings, self.examples = warm_up(sides, examples, lambda: None)
        self._expected = timings[-1].work.results
        self.floors = replace(self.floors, varied=is_varied(self._expected))
        self._judge(self.own, self._side, timings[0].work)
        if side is None or trial is None:
            self._round([self._side], [self.own], 0)
            return
        self._judge(trial, side, timings[1].work)
        self._rounds([side], [trial], repeats, enough)

    def measure(self, trial: Trial, repeats: int, enough: Enough) -> None:
        """Load, judge and time one candidate; whatever goes wrong is its ``problem``."""
        side = self._studied(trial)
        if side is not None:
            try:
                self._rounds([side], [trial], repeats, enough)
            except Exception as error:  # whatever a plugin raises is this candidate's problem alone
                trial.problem = reason_of(error)
        del side
        self._free()

    def race(self, trials: Sequence[Trial], repeats: int, enough: Enough) -> list[Trial]:
        """Measure several side by side.

        :returns: new trials, of those that could be loaded and answered once more.
        """
        racing = [(again, self._studied(again)) for again in (Trial(t.candidate, final=True) for t in trials)]
        sides = [side for _, side in racing if side is not None]
        found = [trial for trial, side in racing if side is not None]
        if sides:
            self._rounds(sides, found, repeats, enough)
        return found

    def _studied(self, trial: Trial) -> BenchSide | None:
        """Load a candidate and judge its answers; None if it cannot be timed, see its ``problem``."""
        side = self._loaded(trial)
        if side is None:
            return None
        try:
            use_threads(side.device)
            self._judge(trial, side, side.study(self.examples))
        except Exception as error:  # see measure
            trial.problem = reason_of(error)
        return side if trial.problem is None else None

    def _loaded(self, trial: Trial) -> BenchSide | None:
        try:
            if trial.candidate.config is None:
                raise StageError(str(trial.candidate.problem))
            # device.threads=null leaves torch's own number, which the candidate before may have changed.
            use_threads(self._side.device)
            return self._open(trial.candidate)
        except Exception as error:
            trial.problem = reason_of(error)
            return None

    def _judge(self, trial: Trial, side: BenchSide, work: Work) -> None:
        """Note what was done and hold the results against the reference's."""
        batching = side.description.get("batching", {})
        trial.rows, trial.tokens = len(work.results), work.tokens
        trial.max_tokens, trial.max_rows = batching.get("max_tokens"), batching.get("max_rows")
        trial.threads, trial.dtype = side.device.threads, side.device.dtype
        failed = [result for result in work.results if isinstance(result, RowFailure)]
        if failed:
            first = shorten(f"{failed[0].error}: {failed[0].message}")
            trial.problem = f"fails on {len(failed)} of the texts: {first}"
            return
        trial.quality = compare_results(self._expected, work.results)
        trial.excluded = self.floors.why_not(trial.quality)

    def _rounds(self, sides: Sequence[BenchSide], trials: Sequence[Trial], repeats: int, enough: Enough) -> None:
        for number in range(repeats):
            self._round([self._side, *sides], [self.own, *trials], number)
            if any(enough(trial) for trial in trials):
                return

    def _round(self, sides: Sequence[BenchSide], trials: Sequence[Trial], number: int) -> None:
        """Let each side run once; the first of them is the user's config, whose time goes to every trial."""
        order = turns(len(sides), number)
        timings = [Timing(Work([])) for _ in sides]
        taking = [sides[place] for place in order], [timings[place] for place in order]
        alternate(*taking, self.examples, 1, lambda: None, self._clock)
        for trial, timing in zip(trials, timings, strict=True):
            trial.seconds.append(timing.seconds[0])
            trial.own_seconds.append(timings[0].seconds[0])

    def _free(self) -> None:
        """Give back what a model held before the next one is loaded."""
        gc.collect()
        if self._side.device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()
