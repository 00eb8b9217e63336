"""How much of the processors something else used while a comparison ran: that bends its figures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["BENT", "Neighbours", "neighbours"]

BENT = 0.05
"""From this share on the figures are not to be quoted."""

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass
class Neighbours:
    """The share of all processors' time, 0 to 1, that went to others; None where it cannot be told."""

    share: float | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader has to be told."""
        if self.share is None:
            return ["what else ran on this machine is not known: pip install psutil"]
        if self.share > BENT:
            return [f"other programs used {self.share:.0%} of the processors meanwhile: do not quote these figures"]
        return []


@contextmanager
def neighbours() -> Iterator[Neighbours]:
    """Fill in the share when the body ends; time that a hypervisor took away counts as others' too.

    Child processes count as own if they have ended and were waited for.
    """
    found = Neighbours()
    if find_spec("psutil") is None:
        yield found
        return
    import psutil

    started, busy, own = time.monotonic(), _busy(), _own()
    yield found
    whole = max(time.monotonic() - started, 1e-3) * (psutil.cpu_count() or 1)
    found.share = min(1.0, max(0.0, ((_busy() - busy) - (_own() - own)) / whole))


def _busy() -> float:
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in _BUSY))


def _own() -> float:
    return sum(os.times()[:4])
