"""The machine and the versions that a result belongs to."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["cpu_flags", "facts", "versions"]

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "onnxruntime",
    "openvino",
    "numpy",
)
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")


def facts() -> dict[str, Any]:
    """Return the processor, its instructions that matter here, threads, memory, Python and the date."""
    import torch

    from pipeline_kit.bench.machine import machine_facts
    from pipeline_kit.contract.types import Device

    found = machine_facts(Device(threads=torch.get_num_threads()), None)
    mine = ("date", "system", "processor", "processors", "threads", "python")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**{name: found[name] for name in mine}, "flags": cpu_flags(), "memory_gib": _memory(), "gpu": gpu}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Name the vector instructions of the processor, as Linux does; none where it cannot be read."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    line = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    present = set(line.partition(":")[2].split())
    return [name for name in (*_FLAGS, *_ARM_FLAGS) if name in present]


def versions() -> dict[str, str | None]:
    """Return the versions of what takes part; None for what is not installed."""
    from pipeline_kit import __version__

    found: dict[str, str | None] = {"pipeline-kit": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _memory() -> float | None:
    try:
        line = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return round(int(line.split()[1]) / 1024**2, 1)
