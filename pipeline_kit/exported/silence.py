"""Keeps the exporter and the quantiser, which print and log as they go, from a user's terminal and stdout."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from pipeline_kit.builtin.quiet import quiet

__all__ = ["silence"]


@contextmanager
def silence() -> Iterator[None]:
    """Hide what is printed, logged or warned of in the body; put all back after it."""
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = root.handlers[:]
    logging.disable(logging.CRITICAL)
    try:
        with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers  # logging.warning() adds one of its own where there is none
