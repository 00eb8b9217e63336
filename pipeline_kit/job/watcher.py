"""What a job tells while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pipeline_kit.contract.types import RunStats
from pipeline_kit.job.receipt import Receipt


class JobWatcher(Protocol):
    """Is told how a job goes on."""

    def resumed(self, rows: int) -> None:
        """Hear how many rows were done before."""
        ...

    def loaded(self, notes: Sequence[str]) -> None:
        """Hear that the model is there, and what a user should know of it."""
        ...

    def advanced(self, stats: RunStats) -> None:
        """Hear how far the job is; now and then."""
        ...

    def shard(self, receipt: Receipt) -> None:
        """Hear that a shard is done."""
        ...
