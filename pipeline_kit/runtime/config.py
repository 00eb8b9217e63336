"""Options of the group ``runner``: how the work is done. None of them changes a result."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline_kit.contract.options import option


@dataclass
class RunnerConfig:
    """Options of the group ``runner``. None of them changes a result, so a job may be resumed with others."""

    workers: int = option(
        1, "processes that share a job; each loads the model, devices and threads are divided", minimum=1, maximum=256
    )
    batch_timeout: float | None = option(
        None,
        "of a job: seconds a stage may take for one batch before its process is ended; null: any",
        minimum=0.001,
        maximum=31_536_000,
    )
    retries: int = option(2, "how often to retry a call after a transient error", minimum=0, maximum=100)
    retry_delay: float = option(
        0.5, "seconds before the first of those, about; before each further one twice as long", minimum=0, maximum=3600
    )


_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)


@dataclass
class JobConfig:
    """Options of the group ``job``. None of them changes a result, so a job may be resumed with others."""

    max_failed_rows: int | str | None = option(
        0, "rows that may fail before the job stops: a number, a share of those done such as '1%', null for any"
    )

    def __post_init__(self) -> None:
        """Refuse what is neither a number nor a share.

        :raises ValueError: saying what is allowed.
        """
        value = self.max_failed_rows
        if isinstance(value, str) and value.isascii() and value.isdigit():
            self.max_failed_rows = int(value)
        elif isinstance(value, str) and (_SHARE.fullmatch(value) is None or self.share_of(value) > 1):
            raise ValueError(f"max_failed_rows '{value[:40]}' is not a number, a share such as '1%', or null.")
        elif isinstance(value, int) and value < 0:
            raise ValueError(f"max_failed_rows {value} is less than 0; null allows any number.")

    @staticmethod
    def share_of(text: str) -> float:
        """Return the share that `text` stands for: ``"1%"`` is 0.01."""
        return float(text.replace("%", "").strip()) / 100

    def allows(self, failed: int, rows: int) -> bool:
        """Return whether a job may continue after `failed` of `rows` rows failed."""
        if self.max_failed_rows is None:
            return True
        if isinstance(self.max_failed_rows, str):
            return failed <= self.share_of(self.max_failed_rows) * rows
        return failed <= self.max_failed_rows
