"""Libraries of the extra ``files``, which not every installation has."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pipeline_kit.errors import UsageError

__all__ = ["need"]


def need(module: str, library: str, what: str) -> Any:
    """Import a module that needs an optional library.

    :param module: the module to import.
    :param library: the library that may be absent.
    :param what: what it is needed for, such as ``reading Parquet``.
    :raises UsageError: if it cannot be imported; it says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs {library}: pip install 'pipeline-kit[files]' ({error})") from error
