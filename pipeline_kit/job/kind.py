"""What must be equal where shards of one job are made: what is installed, the checkpoint, and the kind of machine."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.registry import KINDS, Spec
from pipeline_kit.job.manifest import WITHOUT_EFFECT, differences, identity_of, versions

_SETTINGS = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables by which libraries choose other kernels."""
_FAMILIES = ("avx", "amx", "fma", "sve", "bf16", "asimd")


def machine_kind(*, gpus: bool = True) -> dict[str, Any]:
    """Return what libraries choose their kernels by: on two kinds of machine, last bits of numbers may differ.

    That is the architecture, the maker and the vector instructions of the processor, the GPU, and what the environment
    allows of them.

    :param gpus: whether a GPU is used.
    """
    import torch

    found = torch.cpu.get_capabilities()
    vectors = sorted(name for name, there in found.items() if there is True and name.startswith(_FAMILIES))
    return {
        "architecture": platform.machine(),
        "processor": str(found.get("cpu_name", "")).partition(" ")[0],
        "vectors": " ".join(vectors),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if gpus and torch.cuda.is_available() else None,
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def uses_gpus(config: PipelineConfig) -> bool:
    """Return whether a pipeline of this config takes a GPU where there is one."""
    return any(part.device.name != "cpu" for part in config.parts.values())


def installed() -> dict[str, Any]:
    """Return the versions that this process has, and a hash of this package's own files."""
    code = {"pipeline-kit": _digest(Path(__file__).parents[1])}
    return {"python": platform.python_version(), "versions": versions(), "code": code}


def environment(config: PipelineConfig) -> dict[str, Any]:
    """Return the versions, the plugins and the checkpoint that a job of this config has in this process.

    :raises CheckpointError: if the checkpoint cannot be read.
    """
    identity = identity_of(config, [])
    found, code = installed(), {name: _code(spec) for name, spec in sorted(_specs(config).items())}
    return {
        **found,
        **{name: identity[name] for name in ("plugins", "checkpoint")},
        "code": {**found["code"], **code},
    }


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """Return the first place where two descriptions differ, with both values; None if there is none."""
    return next(differences(here, there, words=("here", "there")), None)


def _specs(config: PipelineConfig) -> dict[str, Spec]:
    """Return what plugins registered and the config uses."""
    parts = config.parts.values()
    found = [getattr(part, kind).spec for part in parts for kind in KINDS]
    found += [spec for part in parts for kind, spec in part.policies.items() if kind not in WITHOUT_EFFECT]
    return {f"{spec.kind}={spec.name}": spec for spec in found if spec.source != "pipeline-kit"}


def _code(spec: Spec) -> str | None:
    """Return a hash of the Python files of the package or file that a plugin's class is in."""
    name = spec.target.partition(":")[0].partition(".")[0]
    module = sys.modules.get(name)
    if module is not None and getattr(module, "__path__", None) is None:
        return _digest(Path(str(module.__file__)))
    found = find_spec(name) if name else None
    if found is None or found.origin is None:
        return None
    return _digest(Path(found.origin).parent if found.submodule_search_locations else Path(found.origin))


def _digest(path: Path) -> str:
    """Return a hash of a Python file, or of all in a folder with their names."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    hashed = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if file != path else ""
        hashed.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return hashed.hexdigest()
