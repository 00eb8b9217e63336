"""What the doctor says about Python, its packages, the processor, the devices and the hub's cache."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from pipeline_kit import __version__
from pipeline_kit.cli.doctor_finding import Finding
from pipeline_kit.cli.versions import installed_version, requirements
from pipeline_kit.device import available_cpus

__all__ = ["devices", "hub_cache", "processor", "versions"]

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


def versions() -> Iterator[Finding]:
    """Compare what is installed with what the package's metadata asks for."""
    from packaging.requirements import Requirement

    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    needed = requirements()
    if needed:
        yield Finding("ok", "pipeline-kit", __version__)
    else:
        yield Finding("note", "pipeline-kit", f"{__version__}, not installed as a package: pip install -e . to mend it")
    for line in needed:
        requirement = Requirement(line)
        found = installed_version(requirement.name)
        if found is None:
            text = f"missing; needs {requirement.specifier}: pip install '{requirement}'"
            yield Finding("fail", requirement.name, text)
        elif not requirement.specifier.contains(found, prereleases=True):
            text = f"{found} is not {requirement.specifier}: pip install '{requirement}'"
            yield Finding("fail", requirement.name, text)
        else:
            yield Finding("ok", requirement.name, f"{found} ({requirement.specifier})")
    yield Finding("ok", "omegaconf", installed_version("omegaconf") or "missing")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Iterator[Finding]:
    """Name the processor's features that make models fast, where the system tells."""
    usable, there = available_cpus(), os.cpu_count() or 1
    cores = f"{usable} of {there} processors usable" if usable != there else f"{there} processors"
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        yield Finding("ok", "processor", cores)
        return
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    found = [name for name in _FEATURES if name in flags]
    yield Finding("ok", "processor", f"{cores}; {' '.join(found) or 'no vector features found'}")


def devices() -> Iterator[Finding]:
    """Name the devices torch can use."""
    try:
        import torch
    except Exception as error:
        yield Finding("fail", "torch", f"cannot be imported: {type(error).__name__}: {error}")
        return
    yield Finding("ok", "device cpu", f"{torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding("ok", f"device cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("ok", "device mps", "available")


def hub_cache() -> Iterator[Finding]:
    """Say where downloads go and whether the network may be used."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    count = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    yield Finding("ok", "hub cache", f"{folder}, {count} models" if folder.is_dir() else f"{folder}, not there yet")
    writable = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not os.access(writable, os.W_OK):
        yield Finding(
            "note", "hub cache", f"{writable} cannot be written; set HF_HOME or checkpoint.cache_dir to download"
        )
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    yield Finding("ok", "hub network", f"off: {', '.join(offline)} is set" if offline else "allowed")
