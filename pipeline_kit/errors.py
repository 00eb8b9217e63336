"""The exception tree. Every error a user can meet is one of these.

::

    PipelineKitError              exit code 1
    |-- UsageError                exit code 2: wrong flags or arguments
    |-- ConfigError               exit code 2: carries every fault of a config
    |   `-- RegistryError         a stage name that is unknown, doubled or broken
    |-- CheckpointError           exit code 2: a model folder or hub id that cannot be used
    |-- DeviceError               exit code 2: a device that is not there
    |-- InputError                exit code 2: a file that cannot be read
    |-- OutputError               exit code 1: a file that cannot be written
    |-- JobError                  exit code 1: a job that stopped; what is done is kept
    |-- ExampleError              one example is not what the task takes
    |-- StageError                a stage broke its contract
    |-- TransientError            for stages to raise: the same call may succeed a moment later
    `-- RowError                  one row failed in a stage; raised by ``pipe(...)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pipeline_kit.redaction import hidden

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "ExampleError",
    "Fault",
    "InputError",
    "JobError",
    "OutputError",
    "PipelineKitError",
    "RegistryError",
    "RowError",
    "StageError",
    "Stopped",
    "TransientError",
    "UsageError",
    "closest",
    "shorten",
]


class PipelineKitError(Exception):
    """Any error of this project that is meant for a user's eyes."""

    exit_code = 1


class UsageError(PipelineKitError):
    """Flags or arguments that make no sense together."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a config: where, what, what is allowed, what to do."""

    key: str
    problem: str
    allowed: tuple[str, ...] = ()
    suggestion: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        """Return the fault as one to three lines, without secrets."""
        head = f"{self.key}: {self.problem}" if self.key else self.problem
        if self.suggestion is not None:
            head += f" Did you mean '{self.suggestion}'?"
        lines = [head]
        if self.allowed:
            lines.append("  allowed: " + ", ".join(self.allowed))
        if self.hint is not None:
            lines.append("  " + self.hint)
        return hidden("\n".join(lines))


class Stopped(SystemExit):
    """A signal asked the process to end. Only our own handlers raise it, so it is never taken for a failed row."""


class ConfigError(PipelineKitError):
    """A config with one or more faults, all of them in `faults`."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Hold `faults`, each with its own lines in the message."""
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class RegistryError(ConfigError):
    """A stage name that is unknown, registered twice, or whose plugin is broken."""


class CheckpointError(PipelineKitError):
    """A model folder or hub id that is missing, unsafe, or lacks what the task needs."""

    exit_code = 2


class DeviceError(PipelineKitError):
    """A device or dtype that this machine does not have."""

    exit_code = 2


class InputError(PipelineKitError):
    """An input file that cannot be read."""

    exit_code = 2


class OutputError(PipelineKitError):
    """An output file that cannot be written; nothing is left under its final name."""


class JobError(PipelineKitError):
    """A job that cannot go on, or cannot be taken up; what it has done is kept."""


class ExampleError(PipelineKitError):
    """An example that the task or the tokenizer cannot take; it fails that row alone."""


class StageError(PipelineKitError):
    """A stage returned something its contract does not allow."""


class TransientError(PipelineKitError):
    """For a stage to raise where the same call may succeed a moment later; see ``runner.retries``."""


class RowError(PipelineKitError):
    """One row failed. `index` is its place in the input, `stage` where it failed."""

    def __init__(self, index: int, stage: str, error: str, message: str) -> None:
        """Name the row, the stage, the error's class and its message."""
        super().__init__(f"row {index}: {stage}: {error}: {shorten(message)}")
        self.index = index
        self.stage = stage
        self.error = error
        self.message = message


def closest(name: object, known: Sequence[str]) -> str | None:
    """Give the one of `known` that `name` was most likely meant to be, or None."""
    text = str(name)[:200].replace("-", "_").lower()
    by_folded = {item.replace("-", "_").lower(): item for item in known}
    found = get_close_matches(text, list(by_folded), n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def shorten(value: object, limit: int = 200) -> str:
    """Return `value` for a message: no secrets, control characters escaped, at most `limit` characters."""
    text = hidden(value if isinstance(value, str) else repr(value))
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
