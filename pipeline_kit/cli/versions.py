"""What is installed, told without importing it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version

from pipeline_kit import __version__

__all__ = ["NAME", "installed_version", "requirements", "version_line"]

NAME = "pipeline-kit"


def installed_version(distribution: str) -> str | None:
    """Give the version of an installed distribution, None if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def requirements() -> list[str]:
    """Give what the package needs to run, as written in its metadata; nothing if it is not installed."""
    try:
        return [line for line in requires(NAME) or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return []


def version_line() -> str:
    """Give the line that ``--version`` prints."""
    parts = [f"python {platform.python_version()}"]
    parts += [f"{name} {installed_version(name) or 'missing'}" for name in ("torch", "transformers", "hydra-core")]
    return f"{NAME} {__version__} ({', '.join(parts)})"
