"""The command line: ``pipeline-kit`` and ``python -m pipeline_kit``."""

from __future__ import annotations

from pipeline_kit.cli.app import main

__all__ = ["main"]
