"""Facts about the machine that figures are worth nothing without."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline_kit import __version__
from pipeline_kit.device import available_cpus
from pipeline_kit.types import Device

__all__ = ["BUSY", "load_per_cpu", "machine_facts", "processor_model"]

BUSY = 0.5
"""A 1-minute load average above this for each processor bends the figures."""


def load_per_cpu() -> float | None:
    """Give the 1-minute load average for each processor that may be used; None where the system has none."""
    try:
        return os.getloadavg()[0] / available_cpus()
    except (AttributeError, OSError):
        return None


def machine_facts(device: Device, load: float | None) -> dict[str, Any]:
    """Give the processor, the device and the versions.

    :param load: the load for each processor before anything was measured.
    """
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
