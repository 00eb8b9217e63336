"""An HTTP server for any composed pipeline."""

from __future__ import annotations

from importlib import import_module

from pipeline_kit.errors import UsageError

for _library in ("httptools", "msgspec", "prometheus_client", "starlette", "uvicorn"):
    try:
        import_module(_library)
    except ImportError as error:
        raise UsageError(f"serving needs {_library}: pip install 'pipeline-kit[serve]'") from error
