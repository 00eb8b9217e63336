"""Facts about the machine that figures are worth nothing without."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_kit.contract.types import Device
from pipeline_kit.contract.version import __version__
from pipeline_kit.runtime.device import available_cpus

BUSY = 0.5
"""A 1-minute load average above this for each processor bends the figures."""


def load_per_cpu() -> float | None:
    """Return the 1-minute load average for each processor that may be used; None where the system has none."""
    try:
        return os.getloadavg()[0] / available_cpus()
    except (AttributeError, OSError):
        return None


def machine_facts(device: Device, load: float | None) -> dict[str, Any]:
    """Return the processor, its `load` before anything was measured, the device and the versions."""
    import torch
    import transformers

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_model(),
        "processors": available_cpus(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device.name) if device.kind == "cuda" else None,
        "threads": device.threads,
        "load_per_processor": None if load is None else round(load, 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pipeline_kit": __version__,
    }


def processor_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor as the system does."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def counted(number: int, thing: str) -> str:
    """Write ``1 round`` or ``5 rounds``."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def counted_texts(texts: Mapping[str, Any]) -> str:
    """Write how many texts of a report there are and where they are from."""
    return f"{texts['rows']:,} " + (
        "given texts" if texts["source"] == "given" else f"texts of the sample '{texts['source']}'"
    )


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return ``median``, ``q1`` and ``q3``, interpolated linearly between neighbours."""
    q1, median, q3 = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q1": q1, "q3": q3}


def speeds(count: int, seconds: Sequence[float]) -> dict[str, float]:
    """Return the quartiles of `count` things a second over several rounds."""
    return quartiles([count / max(value, 1e-9) for value in seconds])


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles as a share of the median."""
    found = quartiles(values)
    return (found["q3"] - found["q1"]) / found["median"] if found["median"] else 0.0


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return ``p50``, ``p95`` and ``p99``; of fewer than 100 values the last is close to the largest of them."""
    found = np.percentile(values, (50, 95, 99))
    return dict(zip(("p50", "p95", "p99"), map(float, found), strict=True))


def paired_ratio(first: Sequence[float], other: Sequence[float]) -> dict[str, object]:
    """Describe how many times as fast as the other the first was, from the seconds of the same rounds.

    A ratio is taken within each round, since what slows the machine down for a while slows both sides of a
    round; then come the ``median``, ``min`` and ``max`` of these.
    """
    rounds = [b / max(a, 1e-9) for a, b in zip(first, other, strict=True)]
    return {"median": float(np.median(rounds)), "min": min(rounds), "max": max(rounds), "rounds": rounds}
