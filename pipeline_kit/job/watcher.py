"""The events of a job while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_kit.contract.types import RunStats
from pipeline_kit.job.receipt import Receipt


class JobWatcher:
    """Receives the progress of a job. The methods of this class do nothing."""

    def resumed(self, rows: int) -> None:
        """Receive the number of rows that were done before."""

    def loaded(self, notes: Sequence[str]) -> None:
        """Note that the model is loaded, with what a user should know of it."""

    def advanced(self, stats: RunStats) -> None:
        """Receive the progress of the job."""

    def shard(self, receipt: Receipt) -> None:
        """Note that a shard is done."""
