"""What the doctor says about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "note", "fail"]


@dataclass
class Finding:
    """One line of the doctor's report; a ``fail`` makes the exit code 1."""

    level: Level
    topic: str
    text: str
