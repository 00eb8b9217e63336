"""The search: engines first, then budgets and threads of the best of them, then a last race."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from pipeline_kit.bench.rounds import Clock, Timing, alternate, warm_up
from pipeline_kit.bench.sides import BenchSide, TextBatch
from pipeline_kit.contract.types import Example
from pipeline_kit.errors import RowFailure, StageError, for_message
from pipeline_kit.evaluate.likeness import compare_results, is_varied
from pipeline_kit.runtime.device import prepare_process
from pipeline_kit.tune.space import Candidate, SearchSpace, reason_of
from pipeline_kit.tune.trial import AccuracyLimits, Trial

LEADERS = 2
FINALISTS = 3
NOT_TRIED = "not tried: the time was up"
# One whose first round is this much slower than the best is not timed further, nor tried with other budgets.
_HOPELESS = 0.8
_SHARE_OF_SEARCH = 0.85  # of the time; the rest is the last race's


@dataclass(frozen=True)
class Effort:
    """How long and how strictly.

    :param seconds: after so many nothing new is begun; what runs is finished.
    :param repeats: rounds for each candidate; the last race has two thirds more.
    """

    seconds: float
    repeats: int
    limits: AccuracyLimits


Opener = Callable[[Candidate], BenchSide]
"""Loads a candidate's model; may raise anything."""


@final
class Search:
    """One run of the search. The user's pipeline takes part in every round of every candidate.

    :ivar trials: what is known at any time, the user's config first.
    :ivar own: the trial of the user's config.
    :ivar examples: the texts that both the user's config and the reference can answer.
    :ivar reference: what answers are compared with; see `SearchSpace.reference`.
    :ivar notes: what a reader of the figures has to know.
    :ivar interrupted: whether ctrl-c ended it.
    :ivar late: whether something was left untried for want of time.
    """

    def __init__(
        self,
        space: SearchSpace,
        side: BenchSide,
        effort: Effort,
        opener: Opener,
        clock: Clock = time.perf_counter,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Search `space`, whose own config was loaded as `side`; `tell` gets a line for each step."""
        self._space, self._side, self._effort, self._open = space, side, effort, opener
        self._clock, self._tell = clock, tell
        self.limits = effort.limits
        self.own = Trial(space.own)
        self.trials = [self.own]
        self.examples: list[Example] = []
        self.notes: list[str] = []
        self.reference = f"{space.reference.engine} in float32"
        self.interrupted = self.late = False
        self._expected: list[Any] = []
        self._end = self._last = 0.0

    def run(self, examples: Sequence[Example]) -> None:
        """Try what there is on `examples`; ctrl-c ends it early and leaves what is known.

        :raises RowError: if no example can be answered.
        """
        begun = self._clock()
        self._end, self._last = begun + _SHARE_OF_SEARCH * self._effort.seconds, begun + self._effort.seconds
        try:
            self._answer_reference(examples)
            for candidate in self._space.engines():
                self._attempt(candidate)
            for leader in self._leaders():
                self._refine(leader)
            self._race()
        except KeyboardInterrupt:
            self.interrupted = True
        for trial in self.trials:
            if not trial.seconds and trial.problem is None:
                trial.problem = "interrupted"

    def _answer_reference(self, examples: Sequence[Example]) -> None:
        """Get the answers of the reference, and time it; if it does not load, the user's config is taken for it."""
        reference, sides, trials = self._space.reference, [self._side], [self.own]
        self._tell(f"the reference: {reference.engine}")
        if reference.key == self._space.own.key:
            self.reference = f"{reference.engine} in float32, your config"
        else:
            trial = Trial(reference)
            self.trials.append(trial)
            if (side := self._loaded(trial)) is not None:
                sides, trials = [*sides, side], [*trials, trial]
            else:
                self.reference = "your config"
                self.notes.append(
                    f"answers are compared with those of your config: {reference.engine}: {trial.problem}"
                )
        timings, self.examples = warm_up(sides, examples, lambda: None)
        self._expected = timings[-1].work.results
        self.limits = replace(self.limits, varied=is_varied(self._expected))
        for trial, side, timing in zip(trials, sides, timings, strict=True):
            self._judge(trial, side, timing.work)
        self._time(sides[1:], trials[1:], self._effort.repeats if trials[1:] else 1, self._enough)
        if self.own.rejected_because is not None:
            self.notes.append(f"your own config is not good enough itself: {self.own.rejected_because}")
        if len(self.trials) > 1:
            self._tell(f"  {_outcome(self.trials[1])}")

    def _attempt(self, candidate: Candidate) -> Trial:
        """Load, judge and time one candidate; whatever goes wrong is its ``problem``."""
        trial = Trial(candidate, candidate.problem)
        self.trials.append(trial)
        self._tell(_shown(candidate))
        if trial.problem is None and self._clock() >= self._end:
            trial.problem, self.late = NOT_TRIED, True
        if trial.problem is None and (side := self._judged(trial)) is not None:
            self._time([side], [trial], self._effort.repeats, self._enough)
            del side  # its memory, before the next one is loaded
        gc.collect()
        if self._side.device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()
        self._tell(f"  {_outcome(trial)}")
        return trial

    def _loaded(self, trial: Trial) -> BenchSide | None:
        try:
            if trial.candidate.config is None:
                raise StageError(str(trial.candidate.problem))
            # device.threads=null leaves torch's own number, which the candidate before may have changed.
            prepare_process(self._side.device)
            return self._open(trial.candidate)
        except Exception as error:
            trial.problem = reason_of(error)
            return None

    def _judged(self, trial: Trial) -> BenchSide | None:
        """Load a candidate and judge its answers; None if it cannot be timed, see its ``problem``."""
        side = self._loaded(trial)
        if side is not None:
            try:
                prepare_process(side.device)
                self._judge(trial, side, side.warm_up(self.examples))
            except Exception as error:  # see _time
                trial.problem = reason_of(error)
        return side if trial.problem is None else None

    def _judge(self, trial: Trial, side: BenchSide, work: TextBatch) -> None:
        """Note what was done and compare the results with the reference's."""
        batching = side.description.get("batching", {})
        trial.rows, trial.tokens = len(work.results), work.tokens
        trial.max_tokens, trial.max_rows = batching.get("max_tokens"), batching.get("max_rows")
        trial.threads, trial.dtype = side.device.threads, side.device.dtype
        failed = [result for result in work.results if isinstance(result, RowFailure)]
        if failed:
            first = for_message(f"{failed[0].error}: {failed[0].message}")
            trial.problem = f"fails on {len(failed)} of the texts: {first}"
            return
        trial.quality = compare_results(self._expected, work.results, self._side.best_first)
        trial.rejected_because = self.limits.why_not(trial.quality)

    def _time(
        self, sides: Sequence[BenchSide], trials: Sequence[Trial], repeats: int, enough: Callable[[Trial], bool]
    ) -> None:
        """Run rounds of the user's config and `sides`, until it is `enough` for one of them.

        Where one fails, that is the problem of all `trials`: whatever a plugin raises must not end the search.
        """
        own = Timing(TextBatch([]))
        for trial in trials:
            trial.own_seconds = own.seconds
        timings = [own, *(Timing(TextBatch([]), trial.seconds) for trial in trials)]
        try:
            alternate(
                [self._side, *sides],
                timings,
                self.examples,
                repeats,
                lambda: None,
                self._clock,
                lambda: any(enough(trial) for trial in trials),
            )
        except Exception as error:
            if not trials:
                raise
            for trial in trials:
                trial.problem = reason_of(error)
        finally:  # ctrl-c may have left half a round
            rounds = min(len(timing.seconds) for timing in timings)
            for timing in timings:
                del timing.seconds[rounds:]
            self.own.seconds += own.seconds
            self.own.own_seconds += own.seconds

    def _enough(self, trial: Trial) -> bool:
        """Return whether more rounds of `trial` would be lost time."""
        best = max((other.ratio for other in self.trials if other.passes), default=1.0)
        return (
            trial.rejected_because is not None or trial.ratio < _HOPELESS * max(best, 1.0) or self._clock() >= self._end
        )

    def _leaders(self) -> list[Trial]:
        """Return the engines that are worth trying with other budgets and threads."""
        found = sorted((trial for trial in self.trials if trial.passes), key=lambda trial: -trial.ratio)
        return [trial for trial in found[:LEADERS] if trial.ratio >= _HOPELESS * found[0].ratio]

    def _refine(self, leader: Trial) -> None:
        """Try other budgets, then other numbers of threads with the best of these."""
        best = leader
        for candidate in self._space.budgets(leader.candidate, leader.max_tokens):
            best = self._better(best, candidate)
        for candidate in self._space.threads(best.candidate, best.threads or 1):
            best = self._better(best, candidate)

    def _better(self, best: Trial, candidate: Candidate) -> Trial:
        if self._clock() >= self._end:
            self.late = True
            return best
        trial = self._attempt(candidate)
        return trial if trial.passes and trial.ratio > best.ratio else best

    def _race(self) -> None:
        """Measure the best anew, side by side: the best of many figures is the one that luck helped most."""
        best = self._finalists()
        if not best or self._clock() >= self._last:
            return
        self._tell(f"last race: {', '.join(_shown(trial.candidate) for trial in best)}")
        racing = [(again, self._judged(again)) for again in (Trial(trial.candidate, final=True) for trial in best)]
        sides = [side for _, side in racing if side is not None]
        found = [trial for trial, side in racing if side is not None]
        if sides:
            rounds = -(-self._effort.repeats * 5 // 3)
            self._time(sides, found, rounds, lambda trial: self._clock() >= self._last)
            if (problem := found[0].problem) is not None:
                self.notes.append(f"the last race failed, so the figures are those from before it: {problem}")
                return
        for again in found:
            place = next(i for i, trial in enumerate(self.trials) if trial.candidate is again.candidate)
            self.trials[place] = again
            self._tell(f"  {_shown(again.candidate)}: {_outcome(again)}")

    def _finalists(self) -> list[Trial]:
        """Return the best of all, but the best of each engine before the second best of one."""
        pool = [trial for trial in self.trials if trial.passes and trial is not self.own and trial.ratio >= 1]
        pool.sort(key=lambda trial: -trial.ratio)
        engines = [trial.candidate.engine for trial in pool]
        firsts = [trial for place, trial in enumerate(pool) if engines[place] not in engines[:place]][: FINALISTS - 1]
        rest = [trial for trial in pool if not any(trial is first for first in firsts)]
        return [*firsts, *rest][:FINALISTS]


def _shown(candidate: Candidate) -> str:
    if candidate.config is None:
        return candidate.engine
    budget, threads = candidate.config.batching.max_tokens, candidate.config.device.threads
    more = [f"batching.max_tokens={budget}"] if budget else []
    return " ".join([candidate.engine, *more, *([f"device.threads={threads}"] if threads else [])])


def _outcome(trial: Trial) -> str:
    if trial.problem is not None:
        return trial.problem
    text = f"{trial.ratio:.2f}x of your config"
    if trial.quality is not None:
        text += f", agreement {trial.quality.agreement:.1%}"
    return f"{text}; {trial.rejected_because}" if trial.rejected_because is not None else text
