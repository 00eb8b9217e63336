"""Whether the packages that an export and a run need are there, and in which version."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pipeline_kit.errors import ConfigError, Fault

__all__ = ["versions"]

_PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
_INSTEAD = {"onnxruntime": ("onnxruntime-gpu",)}


def versions() -> Mapping[str, str]:
    """Give the versions that a graph depends on.

    :raises ConfigError: naming what is missing and how to install it.
    """
    found, missing = {}, []
    for package in _PACKAGES:
        for name in (package, *_INSTEAD.get(package, ())):
            try:
                found[package] = f"{name} {version(name)}"
                break
            except PackageNotFoundError:
                continue
        else:
            missing.append(package)
    if missing:
        problem = f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed."
        raise ConfigError([Fault("model=onnxruntime", problem, hint=f"run: pip install {' '.join(missing)}")])
    return found
