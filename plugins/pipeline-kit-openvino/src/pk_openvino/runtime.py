"""OpenVINO itself, imported so that it reports to nobody."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

__all__ = ["openvino"]

_REPORTS = "openvino_telemetry"


def openvino() -> Any:
    """Return the module ``openvino``.

    It reports each import and each conversion to its maker over the network unless the user has refused, and writes
    to their home folder. Without the package for that, which is hidden here while it is imported, it has a stub.
    Where the process has imported it before, that is left as it is.
    """
    if "openvino" not in sys.modules:
        before = sys.modules.get(_REPORTS)
        sys.modules[_REPORTS] = None  # type: ignore[assignment]  # an import of it now fails
        try:
            import_module("openvino.tools.ovc.convert_impl")
        finally:
            if before is None:
                del sys.modules[_REPORTS]
            else:
                sys.modules[_REPORTS] = before
    return sys.modules["openvino"]
