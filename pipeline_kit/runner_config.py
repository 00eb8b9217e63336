"""Options of the group ``runner``: how the work is done. None of them changes a result."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_kit.config import option

__all__ = ["TRANSIENT", "RunnerConfig"]

TRANSIENT = ["TransientError", "ConnectionError", "TimeoutError"]


@dataclass
class RunnerConfig:
    """Options of the group ``runner``. None of them changes a result, so a job may be taken up with others."""

    workers: int = option(
        1, "processes that share a job; each loads the model, devices and threads are divided", minimum=1, maximum=256
    )
    batch_timeout: float | None = option(
        None,
        "of a job: seconds a stage may take for one batch before its process is ended; null: any",
        minimum=0.001,
        maximum=31_536_000,
    )
    retries: int = option(2, "how often a call is made again after an error that may pass", minimum=0, maximum=100)
    retry_delay: float = option(
        0.5, "seconds before the first of those, about; before each further one twice as long", minimum=0, maximum=3600
    )
    retry_errors: list[str] = option(TRANSIENT, "the classes of such errors, by name; what is derived from them too")
