"""How much memory a turn takes at its peak."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline_kit.types import Device

__all__ = ["Peak", "peak_of", "read_status", "watch"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The high-water mark of one turn, in bytes.

    :param peak: resident memory of the whole process, everything that is loaded included.
    :param growth: how far it rose over where the turn began.
    :param device_peak: the most that torch had allocated on a GPU; None on other devices.
    """

    peak: int = 0
    growth: int = 0
    device_peak: int | None = None


def peak_of(turns: list[Peak]) -> Peak:
    """Put several turns together: the largest of each figure."""
    on_device = [turn.device_peak for turn in turns if turn.device_peak is not None]
    peak, growth = max(turn.peak for turn in turns), max(turn.growth for turn in turns)
    return Peak(peak, growth, max(on_device) if on_device else None)


@contextmanager
def watch(device: Device) -> Iterator[Peak]:
    """Fill a :class:`Peak` with what the body needs.

    On Linux the mark is set back before each turn (proc(5), ``clear_refs``); elsewhere it is that of the process so
    far, ``ru_maxrss``, and `growth` is what a turn added to it.
    """
    found = Peak()
    if device.kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device.name)
    with suppress(OSError):
        _CLEAR.write_text("5")
    before = _resident()
    yield found
    found.peak = _high_water()
    found.growth = max(0, found.peak - before)
    if device.kind == "cuda":
        import torch

        found.device_peak = int(torch.cuda.max_memory_allocated(device.name))


def read_status(text: str, key: str) -> int | None:
    """Find a line such as ``VmHWM:  1234 kB`` of /proc/self/status; give bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _status(key: str) -> int | None:
    try:
        return read_status(_STATUS.read_text(encoding="ascii", errors="replace"), key)
    except OSError:
        return None


def _high_water() -> int:
    return _status("VmHWM") or _process_peak()


def _resident() -> int:
    # Without /proc only the mark itself can be read, so growth is what it rises by.
    return _status("VmRSS") or _process_peak()


def _process_peak() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
