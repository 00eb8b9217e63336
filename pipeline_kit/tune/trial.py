"""What became of one candidate, and which of several is the one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pipeline_kit.bench.machine import paired_ratio
from pipeline_kit.evaluate.likeness import Quality
from pipeline_kit.tune.space import Candidate

MARGIN = 0.03
"""How much faster a winner has to be: two equal pipelines differ by about as much."""
_DEFAULT_TOLERANCE = 0.01
_EXACT = 1e-5


@dataclass(frozen=True)
class AccuracyLimits:
    """How far answers may be from the reference's.

    :param tolerance: the largest difference of a number; None: any, unless there is nothing else to go by.
    :param min_agreement: the smallest share of texts with the same answer.
    :param varied: whether the reference's labels differ from text to text, without which agreement means nothing.
    """

    tolerance: float | None
    min_agreement: float
    varied: bool = True

    @property
    def limit(self) -> float | None:
        """The tolerance that is held to."""
        return _DEFAULT_TOLERANCE if self.tolerance is None and not self.varied else self.tolerance

    def why_not(self, quality: Quality) -> str | None:
        """Describe which floor results are under; None if they are good enough."""
        if quality.not_finite:
            return f"{quality.not_finite} numbers are not finite"
        if quality.agreement < self.min_agreement:
            return f"agreement {quality.agreement:.1%} is under {self.min_agreement:.1%}"
        if self.limit is not None and (quality.largest or 0.0) > self.limit:
            return f"a difference of {quality.largest:.2g} is over {self.limit:g}"
        return None


@dataclass
class Trial:
    """One candidate and what was measured of it.

    :param problem: why nothing was measured: it does not load, fails on texts, or the time was up.
    :param rejected_because: why it may not be chosen although it runs.
    :param tokens: tokens that the model read in one round of `rows` texts.
    :param seconds: for each round what it took, and `own_seconds` what the user's config took in the same round.
    :param final: whether these are the rounds of the last race, in which the best ran side by side.
    """

    candidate: Candidate
    problem: str | None = None
    rejected_because: str | None = None
    quality: Quality | None = None
    rows: int = 0
    tokens: int = 0
    max_tokens: int | None = None
    max_rows: int | None = None
    threads: int | None = None
    dtype: str | None = None
    seconds: list[float] = field(default_factory=list)
    own_seconds: list[float] = field(default_factory=list)
    final: bool = False

    @property
    def passes(self) -> bool:
        """Whether it ran and is good enough."""
        return bool(self.seconds) and self.problem is None and self.rejected_because is None

    @property
    def rounds(self) -> dict[str, Any] | None:
        """How many times as fast as the user's config it was, see `paired_ratio`; None if it was not timed."""
        return paired_ratio(self.seconds, self.own_seconds) if self.seconds else None

    @property
    def ratio(self) -> float:
        """The median of that; 0 if it was not timed."""
        return float(self.rounds["median"]) if self.rounds is not None else 0.0

    @property
    def second(self) -> float:
        """The median time of a round."""
        return max(median(self.seconds), 1e-9)

    @property
    def exact(self) -> bool:
        """Whether its answers are those of float32."""
        found = self.quality
        return found is not None and found.agreement == 1.0 and (found.largest or 0.0) <= _EXACT


def best_of(trials: Sequence[Trial], own: Trial) -> Trial | None:
    """Choose the fastest that passes; one with exact answers, where it is as fast but for `MARGIN`.

    Where a last race was run, it is among those who ran it.

    :returns: None if no one is faster than `own` by `MARGIN`.
    """
    pool = [trial for trial in trials if trial is not own and trial.passes]
    raced = [trial for trial in pool if trial.final]
    fast = [trial for trial in (raced or pool) if trial.ratio >= 1 + MARGIN]
    if not fast:
        return None
    best = max(fast, key=lambda trial: trial.ratio)
    exact = [trial for trial in fast if trial.exact and trial.ratio * (1 + MARGIN) >= best.ratio]
    return max(exact, key=lambda trial: trial.ratio) if exact else best
