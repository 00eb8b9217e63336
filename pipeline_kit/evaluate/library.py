"""The libraries that compute metrics, which come with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from pipeline_kit.errors import UsageError

__all__ = ["require_libraries"]


def require_libraries() -> None:
    """See, before anything is loaded, that they are there.

    :raises UsageError: saying what to install.
    """
    missing = [name for module, name in (("sklearn", "scikit-learn"), ("scipy", "scipy")) if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"evaluate needs {' and '.join(missing)}, which {verb} not installed: pip install 'pipeline-kit[evaluate]'"
        )
