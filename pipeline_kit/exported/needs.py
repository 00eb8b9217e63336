"""Whether the packages that an export and a run need are there, and in which version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from pipeline_kit.errors import ConfigError, Fault

__all__ = ["versions"]


def versions(
    stage: str, packages: Sequence[str], instead: Mapping[str, Sequence[str]] | None = None
) -> Mapping[str, str]:
    """Give the versions that a graph depends on.

    :param stage: for the message, such as ``model=onnxruntime``.
    :param instead: packages that do as well, by the one that they stand for.
    :raises ConfigError: naming what is missing and how to install it.
    """
    found, missing = {}, []
    for package in packages:
        for name in (package, *(instead or {}).get(package, ())):
            try:
                found[package] = f"{name} {version(name)}"
                break
            except PackageNotFoundError:
                continue
        else:
            missing.append(package)
    if missing:
        problem = f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed."
        raise ConfigError([Fault(stage, problem, hint=f"run: pip install {' '.join(missing)}")])
    return found
