"""Prints on stderr how long each side ran, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline_kit.bench.rounds import turns

from .script import tell

__all__ = ["Progress"]


class Progress:
    """The steps of one measurement, in the order in which ``bench`` takes them."""

    def __init__(self, sides: Sequence[str], rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin: the first step is under way."""
        self._steps = [f"warm-up: {name}" for name in sides]
        self._round_ends = []
        for number in range(rounds):
            self._steps += [f"round {number + 1} of {rounds}: {sides[place]}" for place in turns(len(sides), number)]
            self._round_ends.append(len(self._steps))
        self._steps.append("single texts")
        self._sides, self._clock, self._done = len(sides), clock, 0
        self._last = clock()
        self._seconds: list[float] = []

    def step(self) -> None:
        """Count a step that has just ended."""
        now = self._clock()
        self._seconds.append(now - self._last)
        self._last = now
        # A text that fails makes the warm-up begin again, so there may be more steps than were planned.
        name = self._steps[self._done] if self._done < len(self._steps) else "one more"
        self._done += 1
        tell(f"{name}, {self._seconds[-1]:.1f} s" + self._rest())

    def _rest(self) -> str:
        if self._done not in self._round_ends[:-1]:
            return ""
        left = len(self._round_ends) - 1 - self._round_ends.index(self._done)
        return f"; about {left * sum(self._seconds[-self._sides :]):.0f} s for the other rounds"
