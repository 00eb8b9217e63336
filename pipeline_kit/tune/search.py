"""The search: engines first, then budgets and threads of the best of them, then a last race."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from pipeline_kit.bench.rounds import Clock
from pipeline_kit.bench.sides import BenchSide
from pipeline_kit.tune.candidates import Candidate
from pipeline_kit.tune.measuring import Measuring, Opener
from pipeline_kit.tune.trial import Floors, Trial
from pipeline_kit.types import Example

__all__ = ["NOT_TRIED", "Candidates", "Plan", "Search"]

LEADERS = 2
FINALISTS = 3
NOT_TRIED = "not tried: the time was up"
# One whose first round is this much slower than the best is not timed further, nor tried with other budgets.
_HOPELESS = 0.8
_SHARE_OF_SEARCH = 0.85  # of the time; the rest is the last race's


class Candidates(Protocol):
    """What is searched; see :class:`~pipeline_kit.tune.space.Space`."""

    own: Candidate
    reference: Candidate

    def engines(self) -> list[Candidate]:
        """Give the engines to try."""
        ...

    def budgets(self, leader: Candidate, now: int | None) -> list[Candidate]:
        """Give `leader` with other budgets than the one it has `now`."""
        ...

    def threads(self, leader: Candidate, now: int) -> list[Candidate]:
        """Give `leader` with other numbers of threads than the one it has `now`."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long and how strictly.

    :param seconds: after so many nothing new is begun; what runs is finished.
    :param repeats: rounds for each candidate; the last race has two thirds more.
    """

    seconds: float
    repeats: int
    floors: Floors


@final
class Search:
    """One run of the search.

    :ivar trials: what is known at any time, the user's config first.
    :ivar reference: what answers are held against; see `Space.reference`.
    :ivar notes: what a reader of the figures has to know.
    :ivar interrupted: whether ctrl-c ended it.
    :ivar late: whether something was left untried for want of time.
    """

    def __init__(
        self,
        space: Candidates,
        side: BenchSide,
        plan: Plan,
        opener: Opener,
        clock: Clock = time.perf_counter,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Search `space`, whose own config was loaded as `side`; `tell` gets a line for each step."""
        self._space, self._plan, self._clock, self._tell = space, plan, clock, tell
        self.measuring = Measuring(space.own, side, plan.floors, opener, clock)
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
            self.notes.append(f"answers are held against those of your config: {reference.engine}: {trial.problem}")
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
        """Tell whether more rounds of `trial` would be lost time."""
        best = max((other.ratio for other in self.trials if other.passes), default=1.0)
        return trial.excluded is not None or trial.ratio < _HOPELESS * max(best, 1.0) or self._clock() >= self._end

    def _leaders(self) -> list[Trial]:
        """Give the engines that are worth trying with other budgets and threads."""
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
        """Give the best of all, but the best of each engine before the second best of one."""
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
