"""The search: engines first, then budgets and threads of the best of them, then a last race."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

from pipeline_kit.bench.rounds import Clock, Timing, alternate, turns, warm_up
from pipeline_kit.bench.sides import BenchSide, TextBatch, use_threads
from pipeline_kit.contract.types import Example, RowFailure
from pipeline_kit.errors import StageError, for_message
from pipeline_kit.evaluate.likeness import compare_results, is_varied
from pipeline_kit.tune.space import Candidate, reason_of
from pipeline_kit.tune.trial import AccuracyLimits, Trial

LEADERS = 2
FINALISTS = 3
NOT_TRIED = "not tried: the time was up"
# One whose first round is this much slower than the best is not timed further, nor tried with other budgets.
_HOPELESS = 0.8
_SHARE_OF_SEARCH = 0.85  # of the time; the rest is the last race's


class Candidates(Protocol):
    """What is searched; see :class:`~pipeline_kit.tune.space.SearchSpace`."""

    own: Candidate
    reference: Candidate

    def engines(self) -> list[Candidate]:
        """Return the engines to try."""
        ...

    def budgets(self, leader: Candidate, now: int | None) -> list[Candidate]:
        """Return `leader` with other budgets than the one it has `now`."""
        ...

    def threads(self, leader: Candidate, now: int) -> list[Candidate]:
        """Return `leader` with other numbers of threads than the one it has `now`."""
        ...


@dataclass(frozen=True)
class Effort:
    """How long and how strictly.

    :param seconds: after so many nothing new is begun; what runs is finished.
    :param repeats: rounds for each candidate; the last race has two thirds more.
    """

    seconds: float
    repeats: int
    floors: AccuracyLimits


@final
class Search:
    """One run of the search.

    :ivar trials: what is known at any time, the user's config first.
    :ivar reference: what answers are compared with; see `Space.reference`.
    :ivar notes: what a reader of the figures has to know.
    :ivar interrupted: whether ctrl-c ended it.
    :ivar late: whether something was left untried for want of time.
    """

    def __init__(
        self,
        space: Candidates,
        side: BenchSide,
        plan: Effort,
        opener: Opener,
        clock: Clock = time.perf_counter,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Search `space`, whose own config was loaded as `side`; `tell` gets a line for each step."""
        self._space, self._plan, self._clock, self._tell = space, plan, clock, tell
        self.measuring = TrialRunner(space.own, side, plan.floors, opener, clock)
        self.own = self.measuring.own
        self.trials = [self.own]
        self.notes: list[str] = []
        self.reference = f"{space.reference.engine} in float32"
        self.interrupted = self.late = False
        self._end = self._last = 0.0

    def run(self, examples: Sequence[Example]) -> None:
        """Try what there is on `examples`; ctrl-c ends it early and leaves what is known.

        :raises RowError: if no example can be answered.
        """
        begun = self._clock()
        self._end, self._last = begun + _SHARE_OF_SEARCH * self._plan.seconds, begun + self._plan.seconds
        try:
            self._hold(examples)
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

    def _hold(self, examples: Sequence[Example]) -> None:
        reference = self._space.reference
        trial = None
        self._tell(f"the reference: {reference.engine}")
        if reference.key == self._space.own.key:
            self.reference = f"{reference.engine} in float32, your config"
        else:
            trial = Trial(reference)
            self.trials.append(trial)
        self.measuring.hold(examples, trial, self._plan.repeats, self._enough)
        if trial is not None and trial.problem is not None:
            self.reference = "your config"
            self.notes.append(f"answers are compared with those of your config: {reference.engine}: {trial.problem}")
        if self.own.excluded is not None:
            self.notes.append(f"your own config is not good enough itself: {self.own.excluded}")
        if trial is not None:
            self._tell(f"  {_outcome(trial)}")

    def _attempt(self, candidate: Candidate) -> Trial:
        """Try one candidate."""
        trial = Trial(candidate, candidate.problem)
        self.trials.append(trial)
        self._tell(_shown(candidate))
        if trial.problem is None and self._clock() >= self._end:
            trial.problem, self.late = NOT_TRIED, True
        if trial.problem is None:
            self.measuring.measure(trial, self._plan.repeats, self._enough)
        self._tell(f"  {_outcome(trial)}")
        return trial

    def _enough(self, trial: Trial) -> bool:
        """Return whether more rounds of `trial` would be lost time."""
        best = max((other.ratio for other in self.trials if other.passes), default=1.0)
        return trial.excluded is not None or trial.ratio < _HOPELESS * max(best, 1.0) or self._clock() >= self._end

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
        rounds = -(-self._plan.repeats * 5 // 3)
        for again in self.measuring.race(best, rounds, lambda trial: self._clock() >= self._last):
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
    return f"{text}; {trial.excluded}" if trial.excluded is not None else text


Opener = Callable[[Candidate], BenchSide]
"""Loads a candidate's model; may raise anything."""

Enough = Callable[[Trial], bool]
"""Asked after each round whether that was the last one."""


@final
class TrialRunner:
    """Holds the user's pipeline, which takes part in every round, and the answers of the reference.

    :ivar own: the trial of the user's config.
    :ivar examples: the texts that both the user's config and the reference can answer.
    """

    def __init__(
        self, own: Candidate, side: BenchSide, floors: AccuracyLimits, opener: Opener, clock: Clock = time.perf_counter
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

    def _judge(self, trial: Trial, side: BenchSide, work: TextBatch) -> None:
        """Note what was done and hold the results against the reference's."""
        batching = side.description.get("batching", {})
        trial.rows, trial.tokens = len(work.results), work.tokens
        trial.max_tokens, trial.max_rows = batching.get("max_tokens"), batching.get("max_rows")
        trial.threads, trial.dtype = side.device.threads, side.device.dtype
        failed = [result for result in work.results if isinstance(result, RowFailure)]
        if failed:
            first = for_message(f"{failed[0].error}: {failed[0].message}")
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
        timings = [Timing(TextBatch([])) for _ in sides]
        taking = [sides[place] for place in order], [timings[place] for place in order]
        alternate(*taking, self.examples, 1, lambda: None, self._clock)
        for trial, timing in zip(trials, timings, strict=True):
            trial.seconds.append(timing.seconds[0])
            trial.own_seconds.append(timings[0].seconds[0])

    def _free(self) -> None:
        """Free the memory of a model before the next one is loaded."""
        gc.collect()
        if self._side.device.kind == "cuda":
            import torch

            torch.cuda.empty_cache()
